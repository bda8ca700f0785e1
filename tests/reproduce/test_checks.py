"""What a table's rows lack is said before anything is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tagmask.errors import DataError, WeightsError
from tagmask.reproduce import read_table, reproduce
from tagmask.reproduce.checks import missing_weights
from tagmask.reproduce.runner import make_jobs
from tests.reproduce.tiny_table import SMALL, TABLE, staged_table


def test_weights_of_the_last_stage(
    table: str, scenes: Path, tmp_path: Path, forbid_training: Callable[[], None]
) -> None:
    stages = "{classifier: {}, masks: {}, segmenter: {encoder: {weights: /none/such.pth}}}"
    Path(table).write_text(staged_table(stages, f"  - {{name: plain, {SMALL}}}\n"), encoding="utf-8")
    forbid_training()
    with pytest.raises(WeightsError, match="Row staged: .none.such.pth"):
        reproduce(table, scenes, tmp_path / "out")
    (told,) = reproduce(table, scenes, tmp_path / "out", plan=True)["missing"]
    assert "Row staged" in told
    assert missing_weights(make_jobs(read_table(table), table, tmp_path, scenes, [], ["plain"], None)) == []


def test_true_masks(table: str, scenes: Path, tmp_path: Path, forbid_training: Callable[[], None]) -> None:
    data, out = shutil.copytree(scenes, tmp_path / "scenes"), tmp_path / "out"
    first = ["first"]
    reproduce(table, data, out, rows=first, seeds=1)
    (data / "masks").rename(tmp_path / "masks")
    forbid_training()
    assert reproduce(table, data, out, rows=first, seeds=1)["rows"][0]["cells"]["CAM"], "what is scored needs none"
    missing = r"(?s)Row first \(score cam\): .*'train'.*'val'.*\(score segmenter\).*'test'"
    with pytest.raises(DataError, match=missing):
        reproduce(table, data, tmp_path / "new", rows=first, seeds=1)
    told = reproduce(table, data, tmp_path / "new", plan=True)["missing"]
    assert [text.partition(" (")[0] for text in told] == ["Row first", "Row first", "Rows first, second"]
    assert not (tmp_path / "new").exists()


def test_splits_and_data(table: str, scenes: Path, tmp_path: Path, forbid_training: Callable[[], None]) -> None:
    forbid_training()
    Path(table).write_text(TABLE.replace("split: test", "split: list:own"), encoding="utf-8")
    with pytest.raises(DataError, match=r"Rows first, second \(score segmenter\): .*'list:own'"):
        reproduce(table, scenes, tmp_path / "out")
    (told,) = reproduce(table, scenes, tmp_path / "out", plan=True)["missing"]
    assert "'list:own'" in told
    with pytest.raises(DataError, match="^[^(]*nowhere"):
        reproduce(table, tmp_path / "nowhere", tmp_path / "out")
