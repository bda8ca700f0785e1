"""docs/fidelity.md: each equation, table and figure of a paper has a row, and what a row names is there."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

from tagmask.config import load_config
from tagmask.reproduce import read_table
from tests.test_docs import ROOT, parsed

PAPERS = {"TSCD": (15, 5, 6), "RCM + MAM": (9, 5, 10), "ECA": (12, 6, 6), "CRT": (3, 6, 6), "CoSA": (11, 4, 9)}
"""Numbers of the papers' equations, tables and figures."""
HEADINGS = ["what", "where", "command", "how"]


def sections() -> dict[str, list[dict[str, str]]]:
    """The rows below each heading, cells by the heading of their column."""
    text = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    found = {}
    for name, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, flags=re.S | re.M):
        lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in re.findall(r"^\|.*\|$", body, re.M)]
        assert lines[0] == HEADINGS and all(len(cells) == len(HEADINGS) for cells in lines), name
        found[name] = [dict(zip(HEADINGS, cells, strict=True)) for cells in lines[2:]]
    return found


SECTIONS = sections()
ROWS = [pytest.param(row, id=f"{paper}-{row['what']}") for paper, rows in SECTIONS.items() for row in rows]


@lru_cache
def symbols(path: Path) -> set[str]:
    """Names of a module's functions, classes and their methods, as 'f', 'C' and 'C.f'."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("paper", PAPERS)
def test_each_equation_table_and_figure_has_a_row(paper: str) -> None:
    named = [re.match(r"(Eq\.|Table|Figure) (\d+)", row["what"]) for row in SECTIONS[paper]]
    for kind, count in zip(("Eq.", "Table", "Figure"), PAPERS[paper], strict=True):
        found = {int(name[2]) for name in named if name is not None and name[1] == kind}
        assert found == set(range(1, count + 1)), kind


@pytest.mark.parametrize("row", ROWS)
def test_no_cell_is_empty_and_each_row_has_its_mark(row: dict[str, str]) -> None:
    assert all(row.values())
    assert re.search(r"\b(as printed|variant|ours|a drawing)\b", row["how"])


@pytest.mark.parametrize("row", ROWS)
def test_what_a_row_names_is_there(row: dict[str, str]) -> None:
    places = [place for place in re.findall(r"`([^`]+)`", row["where"]) if "/" in place]
    assert places
    for place in places:
        file, _, names = place.partition(": ")
        assert (ROOT / file).is_file(), place
        assert file.endswith(".yaml") or (names and set(names.split(", ")) <= symbols(ROOT / file)), place


@pytest.mark.parametrize("row", ROWS)
def test_commands_can_be_typed(row: dict[str, str]) -> None:
    lines = [line for line in re.findall(r"`([^`]+)`", row["command"]) if line.startswith("tagmask ")]
    assert lines
    for line in lines:
        verb, given = parsed(line)
        if verb == "train":
            load_config(*given["configs"], overrides=[word for word in given["words"] if "=" in word])
        elif verb == "reproduce":
            assert read_table(given["table"]).rows
        for table, rows in re.findall(r"runs/tables/(\w+/\w+)/(\{[^}]+\}|[^/]+)/seed0", line):
            named = set(rows.strip("{}").split(","))
            assert named <= {own.name for own in read_table(table).rows}, line
