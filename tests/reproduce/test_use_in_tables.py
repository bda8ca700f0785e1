"""Rows that score another row's run in another of the ways that its method can be used in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tagmask.errors import ConfigError
from tagmask.reproduce import read_table, reproduce
from tests.reproduce.tiny_table import SET, SMALL

TABLE = f"""
title: use
{SET}columns:
  - {{title: val, split: val, score: segmenter}}
  - {{title: val threshold, split: train, score: cam (val threshold)}}
rows:
  - {{name: plain, {SMALL}}}
  - name: average
    set: [method.name=cosa, "method.head_options={{hidden: 8}}", method.warmup=0, method.momentum=0.5]
  - {{name: online, run_of: average, set: [method.inference=online, method.ensemble=true]}}
"""
USE = ("method.inference", "method.ensemble")


def test_a_run_is_scored_in_another_use(scenes: Path, tmp_path: Path) -> None:
    path = tmp_path / "use.yaml"
    path.write_text(TABLE, encoding="utf-8")
    plain, average, online = reproduce(str(path), scenes, tmp_path / "out")["rows"]
    cells = [row["cells"]["val"] for row in (plain, average, online)]
    uses = [[cell["stamp"]["settings"].get(key) for key in USE] for cell in cells]
    assert uses == [[None, None], ["assignment", False], ["online", True]]
    assert cells[1]["stamp"]["run"] == cells[2]["stamp"]["run"]
    assert average["cells"]["val threshold"]["mean"] != online["cells"]["val threshold"]["mean"]
    assert not (tmp_path / "out" / "use" / "online" / "seed0" / "model").exists(), "no training of its own"
    text = (tmp_path / "out" / "use" / "table.md").read_text()
    assert "method.inference: online / assignment" in text, "beside the first row of its method"
    scores = json.loads((tmp_path / "out" / "use" / "online" / "seed0" / "result.json").read_text())["scores"]
    assert {s["stamp"]["settings"]["method.inference"] for s in scores} == {"online"}


@pytest.mark.parametrize(
    ("before", "after"),
    [("run_of: average", "run_of: plain"), ("method.ensemble=true]", "method.momentum=0.1]")],
)
def test_what_the_method_does_not_allow_is_refused_before_anything_trains(
    before: str, after: str, tmp_path: Path
) -> None:
    path = tmp_path / "use.yaml"
    path.write_text(TABLE.replace(before, after), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"row 'online' sets method\."):
        read_table(str(path))


def test_a_row_that_is_guided_by_true_masks_says_so(scenes: Path, tmp_path: Path) -> None:
    path, cosa = tmp_path / "guided.yaml", '[method.name=cosa, "method.head_options={hidden: 8}", method.warmup=0'
    columns = "columns:\n  - {title: val, split: val, score: cam}\n"
    rows = f"rows:\n  - {{name: plain, set: {cosa}]}}\n  - {{name: truth, set: {cosa}, method.guidance=truth]}}\n"
    path.write_text(f"title: guided\n{SET}{columns}{rows}", encoding="utf-8")
    summary = reproduce(str(path), scenes, tmp_path / "out")
    made = [row["cells"]["val"]["stamp"]["run"]["supervision"] for row in summary["rows"]]
    assert made == ["tags", "true masks"] and "supervision: true masks / tags" in summary["markdown"]
