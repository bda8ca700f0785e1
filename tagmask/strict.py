"""The base of all configuration models, the bounds of their fields, and their roles: what a setting decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tagmask.errors import nearest


@dataclass(frozen=True)
class Role:
    """What a setting decides. A field says it as ``Annotated[int, COMPUTED]``; a model has one for all its fields.

    learned: it decides what a training learns, and stays as it is on a resume. used: it may be set when a trained run
    is used. outputs: what it decides of the CAMs, masks and scores that are made then, by the names in ``LabelConfig``
    and ``EvaluateConfig``; None for all of them.
    """

    learned: bool = False
    used: bool = True
    outputs: frozenset[str] | None = frozenset()

    @property
    def computed(self) -> bool:
        """Whether it changes no result."""
        return not self.learned and self.outputs == frozenset()

    def decides(self, outputs: frozenset[str]) -> bool:
        """Whether it decides one of these outputs when a trained run is used."""
        return self.used and (self.outputs is None or bool(self.outputs & outputs))


LEARNED = Role(learned=True, used=False)
"""Decides what is learned. Fixed once the training began."""
COMPUTED = Role()
"""Says how or where something is computed, stored or logged. It changes no result."""
APART = Role(used=False)
"""Is guarded by itself: it may differ on a resume, and is not set when a run is used."""
PLACE = Role(learned=True)
"""Where files of the data lie. They may lie elsewhere when a trained run is used."""
LEARNED_AND_USED = Role(learned=True, outputs=None)
"""Decides what is learned, and may be set anew when a trained run is used."""
USED = Role(outputs=None)
"""Decides only how a trained run is used."""


def used_for(*outputs: str) -> Role:
    """Role of a setting that decides only these outputs of a trained run."""
    return Role(outputs=frozenset(outputs))


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Natural = Annotated[int, Field(ge=0, le=10**9)]
"""Steps, and other numbers that may be 0."""
Count = Annotated[int, Field(ge=1, le=10**9)]
Few = Annotated[int, Field(ge=1, le=1000)]
Pixels = Annotated[int, Field(ge=16, le=2**14)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Block = Annotated[int, Field(ge=-1000, le=1000, description="of an encoder; -1 is the last")]
Share = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(ge=0, le=1e6)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Scale = Annotated[float, Field(gt=0, le=8)]
"""Of an image, relative."""
Scales = Annotated[list[Scale], Field(min_length=1, max_length=32)]
Place = Annotated[Path, BeforeValidator(_as_text)]
"""A path, which may look like a number."""


class Strict(BaseModel):
    """Base of all configuration models: unknown keys are errors, values are checked on assignment. A number is taken
    for text where text is asked for; infinity and NaN are refused.

    role: of the fields that name none.
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
    )
    role: ClassVar[Role] = LEARNED

    @classmethod
    def roles(cls) -> dict[str, Role]:
        """The role of each field by its name."""
        return {
            name: next((part for part in field.metadata if isinstance(part, Role)), cls.role)
            for name, field in cls.model_fields.items()
        }


def settings(config: BaseModel, wanted: Callable[[Role], bool]) -> dict[str, Any]:
    """Values, fit for JSON, of the settings whose role is wanted, by dotted key ('train.lr').

    Sections are looked into, but for one whose field has a role of its own.
    """
    found: dict[str, Any] = {}

    def visit(part: BaseModel, values: dict[str, Any], prefix: str) -> None:
        roles = part.roles() if isinstance(part, Strict) else {}
        for name, field in type(part).model_fields.items():
            inner, own = getattr(part, name), any(isinstance(x, Role) for x in field.metadata)
            if isinstance(inner, BaseModel) and not own:
                visit(inner, values[name], f"{prefix}{name}.")
            elif wanted(roles.get(name, LEARNED)):
                found[f"{prefix}{name}"] = values[name]

    visit(config, config.model_dump(mode="json"), "")
    return found


def differing(one: BaseModel, other: BaseModel, wanted: Callable[[Role], bool]) -> list[str]:
    """Dotted keys of the settings of a wanted role in which two configurations differ."""
    mine, theirs = settings(one, wanted), settings(other, wanted)
    missing = object()
    return [key for key in mine | theirs if mine.get(key, missing) != theirs.get(key, missing)]


def role_of(config: BaseModel, key: str) -> Role:
    """The role of a setting by its dotted key; LEARNED for a key that there is not."""
    *sections, name = key.split(".")
    part: Any = config
    for section in sections:
        part = getattr(part, section, None)
    return part.roles().get(name, LEARNED) if isinstance(part, Strict) else LEARNED


TYPE_LABEL = re.compile(r"(constrained-)?(int|float|str)|(literal|list|lax-or-strict|function-before)\[.*\]")
"""How pydantic names the type of a field that takes one type or another, as if it were a key."""
MOST = 10
"""Wrong settings that one message explains."""


def explain(error: ValidationError, root: type[BaseModel], inner: Mapping[str, type[BaseModel]]) -> str:
    """One line for each wrong key or value, with the nearest known key.

    root: the model that was asked for. inner: classes of its fields that the annotations do not say.
    """
    found: dict[str, list[Any]] = {}
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"] if not TYPE_LABEL.fullmatch(str(part)))
        if not any(other.startswith(f"{key}.") for other in found):  # of a list or a path, what is wrong in the list
            found.setdefault(key, []).append(fault)
    lines = [_line(key, faults, root, inner) for key, faults in [*found.items()][:MOST]]
    return "\n".join(lines + [f"... and {len(found) - MOST} more."] * (len(found) > MOST))


def _line(key: str, faults: list[Any], root: type[BaseModel], inner: Mapping[str, type[BaseModel]]) -> str:
    if faults[0]["type"] == "extra_forbidden":
        *path, last = key.split(".")
        return f"Unknown configuration key '{key}'.{nearest(last, _known(path, root, inner))}"
    given = faults[0]["input"]
    what = "; or: ".join(fault["msg"].removeprefix("Value error, ") for fault in faults)
    quotes = f" Put text in quotes: '[\"{str(given).lower()}\"]'." if isinstance(given, bool) else ""
    return f"Configuration key '{key}': {what} (got {_shown(given)}).{quotes}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or what holds itself
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _known(path: list[str], root: type[BaseModel], inner: Mapping[str, type[BaseModel]]) -> list[str]:
    model: Any = root
    for part in path:
        if part in inner:
            model = inner[part]
        elif not part.isdigit():
            annotation = model.model_fields[part].annotation if part in model.model_fields else None
            # Of 'Model | None' and 'list[Model]', the model.
            annotation = next((a for a in get_args(annotation) if a is not type(None)), annotation)
            if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
                return []
            model = annotation
    return list(model.model_fields)
