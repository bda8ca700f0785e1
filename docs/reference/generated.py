"""A hook of mkdocs: writes what the reference takes from the package itself, where a page has its mark."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tagmask.config import RunConfig
from tagmask.methods import default_method
from tagmask.registry import METHODS
from tagmask.stage_config import StagesConfig

MARK = re.compile(r"^<!-- (commands|settings|tagmask[.\w]*) -->$", re.M)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its mark replaced, if it has one. Called by mkdocs for every page."""
    return MARK.sub(lambda mark: made(mark[1]), markdown)


def made(what: str) -> str:
    if what == "commands":
        return commands()
    return settings() if what == "settings" else package(what)


def package(name: str) -> str:
    """The package's docstring, and what it exports, for mkdocstrings.

    Each object is named where it is defined: some have the name of their module, which a look at the source alone
    would take for the module.
    """
    module = import_module(name)
    parts = [module.__doc__ or ""]
    for exported in module.__all__:
        value = getattr(module, exported)
        home = value.__module__ if hasattr(value, "__qualname__") else name  # classes and functions know theirs
        parts.append(f"::: {home}.{exported}")
    return "\n\n".join(parts)


def commands() -> str:
    """Help of all commands, as typer writes it: a section each."""
    call = [sys.executable, "-m", "typer", "tagmask.cli", "utils", "docs", "--name", "tagmask"]
    text = subprocess.run(call, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    return text[text.index("## `tagmask ") :]  # the first section lists the commands, as the page's contents do


def settings() -> str:
    """Tables of all settings: of a run, of its stages and of each method."""
    top = {name: field for name, field in RunConfig.model_fields.items() if name not in ("method", "stages")}
    single = [name for name, field in top.items() if model_of(field) is None]
    parts = ["## Of the run", table(RunConfig, "", single)]
    for name, field in top.items():
        if name not in single:
            parts += [f"## {name}", about(model_of(field)), table(model_of(field), f"{name}.")]
    parts += ["## stages", about(StagesConfig)]
    for name, field in StagesConfig.model_fields.items():
        parts += [f"### stages.{name}", about(model_of(field)), table(model_of(field), f"stages.{name}.")]
    parts += ["## method", f"`method.name` picks the method; the default is `{default_method('classifier')}`."]
    for name in METHODS.names():
        parts += [f"### method.name={name}", table(METHODS.get(name).config_class, "method.")]
    return "\n\n".join(part for part in parts if part)


def about(model: type[BaseModel]) -> str:
    """The class's docstring, without indentation."""
    return re.sub(r"\n +", "\n", model.__doc__ or "")


def table(model: type[BaseModel], prefix: str, names: list[str] | None = None) -> str:
    rows = [row for name, field in model.model_fields.items() if names is None or name in names
            for row in lines(prefix + name, field)]  # fmt: skip
    return "\n".join(["| setting | default | |", "|---|---|---|", *rows]) if rows else ""


def lines(key: str, field: FieldInfo) -> Iterator[str]:
    """A row, or those of the settings below."""
    below = model_of(field)
    default = field.get_default(call_default_factory=True)
    if below is not None and isinstance(default, BaseModel):
        for name, inner in type(default).model_fields.items():
            value = getattr(default, name)
            yield from lines(f"{key}.{name}", FieldInfo.merge_field_infos(inner, default=value))
    else:
        yield f"| `{key}` | `{shown(default)}` | {(field.description or '').replace('|', chr(92) + '|')} |"


def shown(value: Any) -> str:
    """As it is typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value)


def model_of(field: FieldInfo) -> Any:
    """The settings' class that a field holds, also where it may be none; or None."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
