"""From a row of a table to the configuration of a run, as the paper has it or for a small budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from tagmask.config import RunConfig, ViewConfig, load_config, merge, parse_overrides, read_yaml
from tagmask.data.collection import OWN_LIST
from tagmask.errors import ConfigError
from tagmask.methods import default_method
from tagmask.reproduce.table import Column, Row, Table, of_use
from tagmask.stage_config import stage_mapping
from tagmask.workflow.opened import default_device
from tagmask.workflow.plan import as_mapping, choose

BUDGETS = ("full", "small")
LOCAL_SIZE = "views.local.size="


def configure(
    table: Table,
    row: Row,
    seed: int,
    data: Path | None,
    home: Path,
    overrides: Sequence[str],
    encoder: str | None = None,
    found: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration of one run: the table's, the row's, then the caller's settings.

    encoder: in the place of the one in the configuration files, with that encoder's own settings; what the table or
    the row sets of the encoder one by one comes over it. found: fingerprint of the data, for a small budget; see
    ``shortened``. Raises ConfigError for several devices: a row is one process.
    """
    source = table.row(row.run_of) if row.run_of is not None else row
    base: dict[str, Any] = reduce(merge, [read_yaml(c) for c in (*table.configs, *source.configs)], {})
    if encoder is not None:
        folder = (base.get("encoder") or {}).get("weights_dir")
        base["encoder"] = {"name": encoder} | ({"weights_dir": folder} if folder else {})
    sets = [*table.set, *source.set]
    if found is not None:
        base, sets = shortened(base, sets, overrides, found)
    if not source.stages:
        base.pop("stages", None)
        sets = [setting for setting in sets if not setting.startswith("stages")]
    values: dict[str, Any] = {"seed": seed}
    if data is not None:
        values["data"] = {"root": str(data)}
    if source.masks_from is not None:
        masks = run_path(home, source.masks_from, seed).resolve() / "masks"
        values.setdefault("data", {})["train_masks"] = str(masks)
    config = load_config(base, values, overrides=[*sets, *overrides])
    if config.train.devices != 1 or config.train.nodes != 1:
        raise ConfigError(
            "train.devices and train.nodes: a row of a table is trained by one process on one device. Start the same "
            "command once a device (CUDA_VISIBLE_DEVICES), and each process takes rows that are free."
        )
    return config


def shortened(
    base: dict[str, Any], sets: Sequence[str], overrides: Sequence[str], found: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Base and settings of a row for a small budget: its method on the data at hand with the plan of ``tagmask run``.

    What makes the row (the table's and its own settings, the method and its variant, the encoder, how CAMs and
    segmentations are scored) stays. Schedule, crops and the method's values for long schedules are chosen for data
    and machine, as ``tagmask run`` does; the data's own lists are found in the folder.
    """
    kept = [setting for setting in sets if not setting.startswith("data.")]
    method = base.get("method") or {}
    given: dict[str, Any] = {"method": {key: method[key] for key in ("name", "variant") if key in method}}
    if base.get("encoder"):
        given["encoder"] = base["encoder"]
    stages = {"stages": _short_stages(base["stages"])} if base.get("stages") else {}
    given = reduce(merge, [given, stages, parse_overrides([*kept, *overrides])])
    device = default_device(load_config({"train": given.get("train") or {}}))
    planned = as_mapping(choose(found, device, given))
    named = {"method": {"name": given["method"].get("name", default_method("classifier"))}}
    scored = {section: base[section] for section in ("label", "evaluate") if base.get(section)}
    merged = reduce(merge, [scored, named, planned, given])
    _shrink_local_views(merged, base, kept, overrides)
    return merged, [setting for setting in kept if not setting.startswith(LOCAL_SIZE)]


def _shrink_local_views(
    merged: dict[str, Any], base: Mapping[str, Any], kept: Sequence[str], overrides: Sequence[str]
) -> None:
    """Let local views of a table's row keep their share of the crop where the caller sets no size."""
    if any(s.startswith(LOCAL_SIZE) for s in kept) and not any(s.startswith(LOCAL_SIZE) for s in overrides):
        local, full = merged["views"]["local"], (base.get("views") or {}).get("crop", ViewConfig().crop)
        local["size"] = max(16, round(local["size"] * merged["views"]["crop"] / full))


def _short_stages(stages: Mapping[str, Any]) -> dict[str, Any]:
    """The same stages with the packaged values for hundreds of steps, by the method of stage affinity."""
    method = ((stages.get("affinity") or {}).get("method") or {}).get("name", default_method("affinity"))
    short = stage_mapping(read_yaml(f"msrc14_stages_{method}")["stages"])
    return {name: short.get(name, {}) for name in stages}


def small_column(column: Column) -> Column:
    """A column for a small budget: a published data set's own list is the split of that name."""
    return column.model_copy(update={"split": column.split.removeprefix(OWN_LIST)})


def scoring_settings(row: Row, config: RunConfig, overrides: Sequence[str]) -> list[str]:
    """What a row that is a run of another one is scored with, the caller's settings of use included."""
    return [*row.set, *(setting for setting in overrides if of_use(config, setting))] if row.run_of else []


def run_path(home: Path, row: str, seed: int) -> Path:
    """Folder of one row's run with one seed."""
    return home / row / f"seed{seed}"
