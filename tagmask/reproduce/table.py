"""A table of runs as data: rows are configuration overrides, columns are scores."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from tagmask.config import Strict
from tagmask.errors import ConfigError, nearest
from tagmask.workflow.scoring import AT_VAL, SCORES

KEYS = ("miou", "miou_strict", "miou_without", "c_miou", "coverage", "accuracy")
"""What a column can show of a score."""


class Column(Strict):
    """One score that every row reports. title: heading; score: a name of ``tagmask evaluate``; key: of the score."""

    title: str
    split: str
    score: str
    key: str = "miou"


class Row(Strict):
    """One configuration. configs and set come on top of the table's; masks_from: the row whose masks it trains on."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", description="also the name of its folder")
    configs: list[str] = []
    set: list[str] = []
    seeds: list[int] | None = None
    masks_from: str | None = None
    label: bool = Field(False, description="write the training masks, too")
    printed: dict[str, float] = Field({}, description="the paper's value by column title, in per cent")


class Table(Strict):
    """A whole table. ``about`` says where it is from and what is compared."""

    title: str
    about: str = ""
    configs: list[str] = []
    set: list[str] = []
    seeds: list[int] = [0]
    columns: list[Column]
    rows: list[Row]

    def seeds_of(self, row: Row, count: int | None = None) -> list[int]:
        """Seeds that a row is run with: ``count`` from 0 on, or its own, or the table's."""
        if count is not None:
            return list(range(count))
        return row.seeds if row.seeds is not None else self.seeds


def packaged_tables() -> list[str]:
    """Names of the tables that come with the package, such as 'msrc14/baseline'."""
    root = files("tagmask.reproduce").joinpath("tables")
    found = []
    for folder in root.iterdir():
        if folder.is_dir():
            found += [
                f"{folder.name}/{f.name.removesuffix('.yaml')}" for f in folder.iterdir() if f.name.endswith(".yaml")
            ]
    return sorted(found)


def read_table(name: str) -> Table:
    """A table by the path of its YAML file or its packaged name. Raises ConfigError naming what is wrong."""
    path = Path(name)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif name in packaged_tables():
        text = files("tagmask.reproduce").joinpath("tables", *f"{name}.yaml".split("/")).read_text(encoding="utf-8")
    else:
        raise ConfigError(f"'{name}' is neither a file nor a packaged table.{nearest(name, packaged_tables())}")
    try:
        table = Table.model_validate(yaml.safe_load(text))
    except (ValidationError, yaml.YAMLError) as error:
        raise ConfigError(f"{name}: not a valid table ({error}).") from error
    names = [row.name for row in table.rows]
    known = [*SCORES, AT_VAL]
    for column in table.columns:
        if column.score not in known:
            raise ConfigError(
                f"{name}: column '{column.title}' has an unknown score '{column.score}'.{nearest(column.score, known)}"
            )
        if column.key not in KEYS:
            raise ConfigError(
                f"{name}: column '{column.title}' has an unknown key '{column.key}'.{nearest(column.key, KEYS)}"
            )
    for row in table.rows:
        if names.count(row.name) > 1:
            raise ConfigError(f"{name}: two rows are called '{row.name}'.")
        if row.masks_from is not None and row.masks_from not in names[: names.index(row.name)]:
            raise ConfigError(
                f"{name}: row '{row.name}' takes masks from '{row.masks_from}', which is no row before it."
            )
        if row.masks_from is not None and not table.rows[names.index(row.masks_from)].label:
            raise ConfigError(f"{name}: row '{row.masks_from}' writes no masks for '{row.name}'; give it label: true.")
    return table
