"""``run`` opens a run once: how often data, configuration, networks and photos are opened, and CAMs are made."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tagmask.data import write_demo
from tagmask.errors import DataError
from tagmask.files import read_json
from tagmask.label import Inference
from tagmask.methods.baseline import Baseline
from tagmask.workflow import Run, run
from tests.workflow.conftest import BASE

REPORT = import_module("tagmask.workflow.report")
TRAINING = import_module("tagmask.workflow.train")
"""Modules; the package has the verbs under these names."""


def values(scenes: Path, **data: Any) -> dict[str, Any]:
    lists = {"train": "train.txt", "val": "val.txt", "test": "test.txt", "masks": "masks"}
    return BASE | {"data": {"root": str(scenes), **lists, **data}}


class Recorder:
    """Counts calls of functions, each wrapped where it is looked up, by the function's name and a key."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.calls: dict[str, Counter] = {}

    def wrap(self, place: Any, name: str, key: Callable[..., Any] = lambda *args: None) -> None:
        """key: takes the call's arguments."""
        original, calls = getattr(place, name), self.calls.setdefault(name, Counter())

        def counted(*args: Any, **options: Any) -> Any:
            calls[key(*args)] += 1
            return original(*args, **options)

        self.patch.setattr(place, name, counted)


def read_for(path: Any) -> tuple[str, str]:
    """A photo and what it is decoded for, by the function that asks."""
    return Path(path).stem, sys._getframe(2).f_code.co_qualname


def test_a_run_opens_everything_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, out = tmp_path / "scenes", tmp_path / "run"
    write_demo(scenes, images=24, size=(48, 64), seed=5)
    monkeypatch.setattr("tagmask.data.looks.Looks.get", lambda self, key: None)
    recorder = Recorder(monkeypatch)
    recorder.wrap(import_module("tagmask.config"), "validate")
    recorder.wrap(import_module("tagmask.workflow.opened"), "open_data")
    for room in ("workflow.opened", "workflow.stages", "training.model_files"):
        recorder.wrap(import_module(f"tagmask.{room}"), "build_method")
    for room in ("data.loader", "data.photos", "data.fingerprint", "workflow.report"):
        recorder.wrap(import_module(f"tagmask.{room}"), "read_image", read_for)
    cams_of: Counter = Counter()
    cams = Inference.cams

    def counted(self: Inference, photo: Tensor, tags: Tensor | None) -> Tensor:
        cams_of[hashlib.sha256(photo.numpy().tobytes()).hexdigest()] += 1
        return cams(self, photo, tags)

    monkeypatch.setattr(Inference, "cams", counted)
    recorder.wrap(Baseline, "cams")
    monkeypatch.setattr(REPORT, "write_report", lambda folder, *parts, **options: folder / "report.html")
    result = run([values(scenes)], {}, [], out)

    calls = recorder.calls
    assert calls["validate"].total() <= 2, "the configuration is resolved, and resolved with its plan"
    assert calls["open_data"].total() == 1
    assert calls["build_method"].total() <= 2, "to be trained, and as it is used"
    splits = Run(out).collection.splits
    assert len(splits["train"]) > len(splits["val"]) > 0 and splits["test"] and result["masks"]["written"]
    read = calls["read_image"]
    readers = {reader for _, reader in read}
    checking, passes, training, shown = (
        {reader for reader in readers if name in reader} for name in ("_look", "read_ahead", "read_sample", "report")
    )
    assert readers == checking | passes | training | shown, readers

    def times(name: str, by: set[str]) -> int:
        return sum(read[name, reader] for reader in by)

    for split, wanted in {"train": 1, "val": 2, "test": 1}.items():
        for name in splits[split]:
            assert times(name, checking) == 1, (name, read)
            assert times(name, passes) == wanted, (split, name, read)
            # Only the scores of 'test' need no CAMs, which the report makes of photos that it shows.
            assert times(name, shown) <= (split == "test"), (split, name, read)
    assert set(cams_of.values()) == {1} and calls["cams"].total() == len(cams_of)
    assert len(cams_of) == len(splits["train"]) + len(splits["val"]) + sum(times(n, shown) for n in splits["test"])


def test_a_late_failure_keeps_what_is_done_and_says_how_to_go_on(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def full(*parts: Any, **options: Any) -> Path:
        raise DataError("report.html: the disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(REPORT, "write_report", full)
        with pytest.raises(DataError, match=rf"report\.html(.|\n)*'report'(.|\n)*run --resume -o {out}"):
            run([values(scenes)], {}, [], out)
    opened = Run(out)
    masks = {path: path.read_bytes() for path in (out / "masks").glob("*.png")}
    tagged = opened.collection.split("train") + opened.collection.split("val")
    assert opened.trained and {path.stem for path in masks} == {item.id for item in tagged}
    assert opened.method.config == opened.config.method
    assert read_json(out / "metrics.json")["scores"]
    monkeypatch.setattr(TRAINING, "train_method", None)
    monkeypatch.setattr(REPORT, "write_report", lambda folder, *parts, **options: folder / "report.html")
    result = run([], {}, [], out, resume=True)
    assert result["report"] == str(out / "report.html") and result["masks"]["skipped"] == len(masks)
    assert {path: path.read_bytes() for path in (out / "masks").glob("*.png")} == masks
