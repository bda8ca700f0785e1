"""A table of runs as data: rows are configuration overrides, columns are scores."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from tagmask.config import RunConfig, load_config
from tagmask.data.collection import OWN_LIST
from tagmask.errors import ConfigError, nearest
from tagmask.strict import Seed, Strict, explain, role_of
from tagmask.workflow.scorer import AT_VAL, LOCALIZATION, SCORES, SPREAD
from tagmask.yaml_text import parse_yaml, read_yaml_file

KEYS = (
    *("miou", "miou_strict", "miou_without", "c_miou", "coverage", "accuracy", "precision", "recall", "boundary_iou"),
    *("peak", "peak_precision", "peak_recall", "peak_c_miou"),
    *("per_class", "relative"),
)
"""What a column can show of a score; those of the peak are at the threshold that is best on the split itself.

'per_class' is the mIoU, with a table of the classes' IoU below; 'relative' its share of another row's.
"""
COSTS = ("fps", "memory")
"""What a column can show of cost, see ``measure``."""
TRAINING = "training"
COSTED = ("cam", "segmenter", TRAINING)
"""Scores that have a cost; 'training' has nothing else."""
MEAN = "mean"
"""Among the printed values of a 'per_class' column: that of the mIoU."""
SPECIAL_KEYS = {
    LOCALIZATION: ("top1", "top5", "gt_known", "max_box_acc", "top1_class", "top5_class"),
    SPREAD: ("mean", "std"),
}
"""The same of scores whose entries have other values."""
SPLITS = ("train", "val", "test", "all")
"""Splits of a column, besides 'list:NAME'."""

Printed = dict[str, float | dict[str, float]]


class Column(Strict):
    """One score that every row reports.

    title: heading; score: a name of ``tagmask evaluate``, or 'training'; key: of the score; set: settings of use that
    this column is scored with, over the row's; reference: of key 'relative', the row that it is a share of.
    """

    title: str
    split: str
    score: str
    key: str = "miou"
    set: list[str] = []
    reference: str | None = None

    @property
    def entry(self) -> str:
        """Name of the entry of a result that the column is read from."""
        return f"{self.score} (cost)" if self.key in COSTS else self.score


class Row(Strict):
    """One configuration. configs and set come on top of the table's.

    masks_from: the row whose masks it trains on. run_of: the row whose trained model it scores with other settings of
    ``label`` and ``evaluate``; it trains nothing itself. stages: run the configuration's stages, too. The score
    'segmenter' is then that of the stage 'segmenter', where there is one.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", description="also the name of its folder")
    configs: list[str] = []
    set: list[str] = []
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=1000)] | None = None
    masks_from: str | None = None
    run_of: str | None = None
    stages: bool = False
    label: bool = Field(False, description="write the training masks, too")
    printed: Printed = Field({}, description="the paper's value by column title, in per cent; of per_class by class")


class NotBuilt(Strict):
    """A row of the paper's that is no configuration here: its values are shown, and why there are none of ours."""

    name: str
    why: str = Field(min_length=1)
    printed: Printed = Field(min_length=1, description="as a row's")


class Table(Strict):
    """A whole table. ``about`` says where it is from and what is compared."""

    title: str
    about: str = ""
    configs: list[str] = []
    set: list[str] = []
    seeds: list[Seed] = Field([0], min_length=1, max_length=1000)
    columns: list[Column]
    rows: list[Row]
    not_built: list[NotBuilt] = []

    def seeds_of(self, row: Row, count: int | None = None) -> list[int]:
        """Seeds that a row is run with: ``count`` from 0 on, or its own, or the table's."""
        if count is not None:
            return list(range(count))
        if row.seeds is not None:
            return row.seeds
        return self.seeds_of(self.row(row.run_of)) if row.run_of is not None else self.seeds

    def row(self, name: str) -> Row:
        """The row of that name, which is there."""
        return next(row for row in self.rows if row.name == name)

    def needs(self, row: Row) -> list[Row]:
        """The rows that have to be done before a row, the first ones first."""
        source = row.run_of or row.masks_from
        return [] if source is None else [*self.needs(self.row(source)), self.row(source)]


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
    if os.path.isfile(name) or name not in packaged_tables():
        if not os.path.exists(name):
            raise ConfigError(f"'{name}' is neither a file nor a packaged table.{nearest(name, packaged_tables())}")
        values = read_yaml_file(Path(name))
    else:
        packaged = files("tagmask.reproduce").joinpath("tables", *f"{name}.yaml".split("/"))
        values = parse_yaml(packaged.read_text(encoding="utf-8"), name)
    try:
        table = Table.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{name}: not a valid table. {explain(error, Table, {})}") from error
    _check_columns(name, table)
    _check_rows(name, table)
    return table


def _check_columns(name: str, table: Table) -> None:
    known = [*SCORES, AT_VAL, *SPECIAL_KEYS, TRAINING]
    for column in table.columns:
        where = f"{name}: column '{column.title}'"
        if column.score not in known:
            raise ConfigError(f"{where} has an unknown score '{column.score}'.{nearest(column.score, known)}")
        keys = () if column.score == TRAINING else SPECIAL_KEYS.get(column.score, KEYS)
        keys = (*keys, *COSTS) if column.score in COSTED else keys
        if column.key not in keys:
            raise ConfigError(f"{where} has an unknown key '{column.key}'.{nearest(column.key, keys)}")
        if column.key.startswith("peak") and column.score != "cam":
            raise ConfigError(f"{where}: '{column.key}' is of score 'cam', which is scored at every threshold.")
        if column.split not in SPLITS and not column.split.startswith(OWN_LIST):
            hint = nearest(column.split, SPLITS)
            raise ConfigError(f"{where} has an unknown split '{column.split}'; a set's own one is list:NAME.{hint}")
        if column.score == AT_VAL and column.split.removeprefix(OWN_LIST) == "val":
            raise ConfigError(
                f"{where}: the threshold of '{AT_VAL}' is searched on val; score another split, or 'cam'."
            )
        _check_scoring(where, column.set, RunConfig())
        rows = [row.name for row in table.rows]
        if (column.reference is None) == (column.key == "relative"):
            raise ConfigError(f"{where}: 'reference' names the row that key 'relative' is a share of, and no other's.")
        if column.reference is not None and column.reference not in rows:
            raise ConfigError(f"{where}: there is no row '{column.reference}'.{nearest(column.reference, rows)}")
    titles = [column.title for column in table.columns]
    for title in titles:
        if titles.count(title) > 1:
            raise ConfigError(f"{name}: two columns are called '{title}'.")
    by_class = {column.title for column in table.columns if column.key == "per_class"}
    shown: list[Row | NotBuilt] = [*table.rows, *table.not_built]
    for row in shown:
        for title, value in row.printed.items():
            if title not in titles:
                raise ConfigError(f"{name}: row '{row.name}' has a value for '{title}'.{nearest(title, titles)}")
            if isinstance(value, dict) != (title in by_class):
                raise ConfigError(f"{name}: row '{row.name}': values by class go with key 'per_class' ('{title}').")


def _check_rows(name: str, table: Table) -> None:
    names = [row.name for row in table.rows] + [unbuilt.name for unbuilt in table.not_built]
    for unbuilt in table.not_built:
        if names.count(unbuilt.name) > 1:
            raise ConfigError(f"{name}: two rows are called '{unbuilt.name}'.")
    for row in table.rows:
        where = f"{name}: row '{row.name}'"
        if names.count(row.name) > 1:
            raise ConfigError(f"{name}: two rows are called '{row.name}'.")
        before = {other.name: other for other in table.rows[: names.index(row.name)]}
        if row.masks_from is not None and row.masks_from not in before:
            raise ConfigError(f"{where} takes masks from '{row.masks_from}', which is no row before it.")
        if row.masks_from is not None and not (before[row.masks_from].label or before[row.masks_from].stages):
            raise ConfigError(
                f"{name}: row '{row.masks_from}' writes no masks for '{row.name}'; give it label: true or stages: true."
            )
        if row.masks_from is not None:
            _check_seeds(where, table, row, row.masks_from)
        if row.run_of is None:
            continue
        if row.run_of not in before or before[row.run_of].run_of is not None:
            raise ConfigError(f"{where} is a run of '{row.run_of}', which is no row before it that trains.")
        if row.configs or row.masks_from or row.label or row.stages:
            raise ConfigError(f"{where} is a run of '{row.run_of}': besides seeds it has 'set' only.")
        _check_scoring(where, row.set, _config(table, before[row.run_of]))
        _check_seeds(where, table, row, row.run_of)


def _check_seeds(where: str, table: Table, row: Row, source: str) -> None:
    seeds = table.seeds_of(row)
    lacking = sorted(set(seeds) - set(table.seeds_of(table.row(source))))
    if lacking:
        raise ConfigError(f"{where} has seeds {seeds}; '{source}' is not trained with {lacking}. Give it those, too.")


def of_use(config: RunConfig, setting: str) -> bool:
    """Whether a setting 'key=value' decides only how a trained run of this configuration is used."""
    role = role_of(config, setting.partition("=")[0])
    return role.used and not role.learned and not role.computed


def _check_scoring(where: str, settings: list[str], config: RunConfig) -> None:
    for setting in settings:
        if not of_use(config, setting):
            raise ConfigError(
                f"{where} sets {setting}, which decides what is learned; without a training of its own it can only set "
                "how a trained run is used, as label.* and evaluate.* do."
            )


def _config(table: Table, row: Row) -> RunConfig:
    return load_config(*table.configs, *row.configs, overrides=[*table.set, *row.set])
