"""What a table's rows lack is said before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagmask import workflow
from tagmask.errors import DataError, WeightsError
from tagmask.reproduce import reproduce
from tests.reproduce.tiny_table import TABLE


def test_weights_of_the_last_stage(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = "stages={classifier: {}, masks: {}, segmenter: {encoder: {weights: /none/such.pth}}}"
    text = TABLE.replace("seeds: [0, 1]", f"  - '{settings}'\nseeds: [0]").split("  - {name: first")[0]
    shared = 'set: ["method.head_options={hidden: 8}", method.warmup=1]'
    Path(table).write_text(text + f"  - {{name: plain, {shared}}}\n  - {{name: staged, stages: true, {shared}}}\n")
    monkeypatch.setattr(workflow, "train", None)
    with pytest.raises(WeightsError, match="Row staged: .none.such.pth: no such weights file"):
        reproduce(table, tmp_path / "scenes", tmp_path / "out")
    (told,) = reproduce(table, tmp_path / "scenes", tmp_path / "out", plan=True)["missing"]
    assert "Row staged" in told and reproduce(table, tmp_path, tmp_path, ["data.root=" + str(tmp_path / "scenes")],
                                              rows=["plain"], plan=True)["missing"] == []  # fmt: skip


def test_true_masks(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = tmp_path / "scenes", tmp_path / "out"
    first = ["first"]
    reproduce(table, data, out, rows=first, seeds=1)
    (data / "masks").rename(tmp_path / "masks")
    monkeypatch.setattr(workflow, "train", None)
    assert reproduce(table, data, out, rows=first, seeds=1)["rows"][0]["cells"]["CAM"], "what is scored needs none"
    own = ["data.source=auto"]
    missing = (
        r"(?s)Row first \(score cam\): .*split 'train' has no true masks.*'val' has.*\(score segmenter\).*'test' has"
    )
    with pytest.raises(DataError, match=missing):
        reproduce(table, data, tmp_path / "new", own, rows=first, seeds=1)
    told = reproduce(table, data, tmp_path / "new", own, plan=True)["missing"]
    assert [text.partition(" (")[0] for text in told] == ["Row first", "Row first", "Rows first, second"]
    assert not (tmp_path / "new").exists()


def test_splits_and_data(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "train", None)
    Path(table).write_text(TABLE.replace("split: test", "split: list:own"))
    data, out = tmp_path / "scenes", tmp_path / "out"
    with pytest.raises(DataError, match=r"Rows first, second \(score segmenter\): .*there is no split 'list:own'"):
        reproduce(table, data, out)
    (told,) = reproduce(table, data, out, plan=True)["missing"]
    assert "there is no split 'list:own'" in told
    with pytest.raises(DataError, match="^[^(]*nowhere"):
        reproduce(table, tmp_path / "nowhere", out, ["data.source=auto"])
