"""What the ablation tables switch, row by row, read from the papers' ticks: rows are known by their printed values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tagmask.reproduce import read_table
from tagmask.reproduce.configure import configure

Switch = tuple[str, Any, Any]
"""A setting of the method, its value where the paper has a tick, and where it has none."""

TSCD: dict[str, Switch] = {
    "VARM": ("refine", "varm", "none"),
    "SCD": ("weight_scd", 0.1, 0.0),
    "aux": ("weight_aux", 0.1, 0.0),
    "equ": ("weight_equ", 0.1, 0.0),
}
ECA: dict[str, Switch] = {
    "AL": ("affinity_from", "region", "cam"),  # without a tick the paper has a dagger: from CAM labels
    "seg": ("weight_seg", 0.1, 0.0),
    "carm seg": ("weight_region", 0.1, 0.0),
    "CCE": ("weight_corr", 0.1, 0.0),
}
COSA: dict[str, Switch] = {
    "GC": ("weight_s2c", 0.05, 0.0),
    "SA": ("swap", True, False),
    "RAW": ("weighting", "raw", "none"),
    "CSC": ("weight_csc", 0.1, 0.0),
    "DT": ("threshold", "dynamic", 0.5),
}
TICKS: dict[str, tuple[str, dict[str, Switch], dict[float, str]]] = {
    "tscd/table3": ("segmenter, val", TSCD, {
        47.2: "", 56.8: "VARM", 63.5: "VARM, SCD", 64.2: "VARM, SCD, aux", 65.0: "VARM, SCD, aux, equ",
    }),
    "eca/table4": ("CAM, val", ECA, {
        62.2: "seg", 63.2: "AL, seg", 66.6: "AL, carm seg", 66.8: "AL, seg, carm seg", 69.1: "AL, seg, carm seg, CCE",
    }),
    "cosa/table3a": ("with tags, val", COSA, {
        55.96: "", 63.09: "GC", 64.41: "GC, SA", 68.22: "GC, SA, RAW", 71.66: "GC, SA, CSC", 75.54: "GC, SA, RAW, CSC",
        76.19: "GC, SA, RAW, CSC, DT",
    }),
    "cosa/table3a_coco": ("with tags, val", COSA, {
        37.32: "", 42.55: "GC", 43.92: "GC, SA", 45.39: "GC, SA, RAW", 47.10: "GC, SA, CSC", 49.67: "GC, SA, RAW, CSC",
        51.00: "GC, SA, RAW, CSC, DT",
    }),
    "cosa/table3b": ("with tags, val", COSA, {
        76.19: "GC, SA, RAW, CSC, DT", 75.54: "GC, SA, RAW, CSC", 69.89: "GC, SA, RAW, DT", 72.45: "GC, SA, CSC, DT",
        72.10: "GC, RAW, CSC, DT", 74.12: "SA, RAW, CSC, DT",
    }),
}  # fmt: skip
VALUES: dict[str, tuple[str, dict[float | str, dict[str, Any]]]] = {
    "rcm_mam/table1": ("CAM, VOC train, best threshold", {
        48.4: {"weight_rcm": 0, "attention": "none"}, 51.0: {"weight_rcm": 0, "attention": "smm"},
        57.0: {"weight_rcm": 0, "attention": "mmm"}, 58.0: {"weight_rcm": 0, "attention": "mam"},
        57.6: {"weight_rcm": 1, "attention": "none"}, 62.6: {"weight_rcm": 1, "attention": "mmm"},
        63.7: {"weight_rcm": 1, "attention": "mam"},
    }),
    "crt/table1": ("mask, VOC train", {
        49.0: {"weight_l1": 0}, 63.0: {"weight_l1": 0.01}, 67.0: {"weight_l1": 0.1}, 66.2: {"weight_l1": 0.2},
    }),
    "crt/table3": ("mask, VOC train", {
        69.9: {"loops": 0}, 70.4: {"loops": 1}, 71.4: {"loops": 2}, 71.8: {"loops": 3}, 71.7: {"loops": 4},
    }),
    # 49.67 is printed for two rows on COCO, without DT and without GC: these go by their names.
    "cosa/table3b_coco": ("with tags, val", {
        name: {key: off if name == f"without-{part.lower()}" else on for part, (key, on, off) in COSA.items()}
        for name in ("cosa", "without-dt", "without-csc", "without-raw", "without-sa", "without-gc")
    }),
}  # fmt: skip
EXPECTED = VALUES | {
    name: (column, {
        value: {setting: on if tick in ticks.split(", ") else off for tick, (setting, on, off) in switches.items()}
        for value, ticks in rows.items()
    })
    for name, (column, switches, rows) in TICKS.items()
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_rows_switch_what_the_paper_ticks(name: str, tmp_path: Path) -> None:
    table = read_table(name)
    column, rows = EXPECTED[name]
    found, rest = {}, []
    for row in table.rows:
        key = row.name if row.name in rows else row.printed[column]
        made = configure(table, row, 0, tmp_path, tmp_path, []).model_dump(mode="json")
        found[key] = {setting: made["method"].pop(setting) for setting in rows[key]}
        rest.append(made)
    assert found == rows
    assert all(made == rest[0] for made in rest), "and nothing else"
