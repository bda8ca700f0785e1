"""The papers' tables: what they print has a column, and every row of theirs is a configuration that can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tagmask.data.benchmarks import BENCHMARKS
from tagmask.methods import build_method
from tagmask.reproduce import packaged_tables, read_table
from tagmask.reproduce.runner import configure

PAPERS = {
    "tscd": ["table1", "table2", "table3", "table4", "table5"],
    "rcm_mam": ["figure7", "table1", "table2", "table3", "table5"],
    "eca": ["table1", "table1_coco", "table4", "table5", "table6a", "table6b"],
    "crt": ["table1", "table2", "table3", "table4", "table5"],
    "cosa": [
        *("table1", "table1_coco", "table2", "table3a", "table3a_coco", "table3b", "table3b_coco"),
        *("table4a", "table4b", "table4c"),
    ],
}
TABLES = [f"{paper}/{table}" for paper, tables in PAPERS.items() for table in tables]


def test_all_are_there() -> None:
    assert sorted(name for name in packaged_tables() if not name.startswith("msrc14/")) == sorted(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_what_is_printed_has_a_column(name: str) -> None:
    table = read_table(name)
    titles = [column.title for column in table.columns]
    assert len(set(titles)) == len(titles)
    lists = {f"list:{own}" for benchmark in BENCHMARKS.values() for own in benchmark}
    assert {column.split for column in table.columns} <= lists | {"train", "val", "test"}
    printed = [(title, value) for row in table.rows for title, value in row.printed.items()]
    assert printed and {title for title, _ in printed} <= set(titles)
    assert all(20 < value < 100 for _, value in printed), "in per cent"


@pytest.mark.parametrize("name", TABLES)
def test_rows_differ(name: str, tmp_path: Path) -> None:
    table = read_table(name)
    made = [configure(table, row, 0, tmp_path, tmp_path, []).model_dump_json() for row in table.rows]
    assert len(set(made)) == len(made), "two rows are the same run"


@pytest.mark.slow
def test_rows_can_be_built(tmp_path: Path) -> None:
    built = set()
    for name in TABLES:
        table = read_table(name)
        for row in table.rows:
            config = configure(table, row, 0, tmp_path, tmp_path, ["encoder.weights=none"])
            if hasattr(config.method, "guide"):
                config.method.guide.encoder.weights = "none"
            parts = (config.encoder, config.views, config.method)
            kind = "".join(part.model_dump_json() for part in parts)
            if kind not in built:
                with torch.device("meta"):
                    build_method(config, 20)
                built.add(kind)
