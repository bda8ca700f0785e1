"""The base of all configuration models, and the roles of their fields: what a setting decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


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


class Strict(BaseModel):
    """Base of all configuration models: unknown keys are errors, values are checked on assignment.

    role: of the fields that name none.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())
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
