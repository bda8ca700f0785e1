"""What ``--plan`` measures: each part of a step, labels and scores, by parts that take a known time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tagmask.config import RunConfig
from tagmask.data import TrainViews
from tagmask.label import Inference
from tagmask.methods.baseline import Baseline
from tagmask.methods.irn import IRN
from tagmask.methods.supervised import Supervised
from tagmask.reproduce import cost, read_table, reproduce
from tagmask.reproduce.configure import configure
from tagmask.workflow import timing
from tagmask.workflow.opened import open_collection
from tagmask.workflow.stage_labels import ConfidentLabels
from tests.reproduce.tiny_table import staged_table

TIME = 0.4
"""Seconds that a slowed part takes."""


class Clock:
    """Stands for the time module of what measures: only slowed parts take time, so that answers are exact."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def slow(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def slowed(*args: Any, **kwargs: Any) -> Any:
            self.now += TIME
            return real(*args, **kwargs)

        patch.setattr(owner, name, slowed)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def planned(table: str, scenes: Path, tmp_path: Path, *rows: str) -> dict[str, Any]:
    (line,) = reproduce(table, scenes, tmp_path / "out", rows=rows, seeds=1, plan=True)["plan"]
    return line


@pytest.mark.parametrize(
    "part,workers,accumulate,times",
    [
        ("losses", 0, 1, 1),
        ("losses", 0, 2, 4),  # twice each: first without gradient, for what the whole batch has
        ("after_step", 0, 2, 1),
        ("optimizer", 0, 2, 1),
        ("views", 0, 1, 4),  # once for each of the four photos of a batch
        ("views", 0, 2, 4),
        ("views", 2, 1, 2),  # two workers make it
        ("views and losses", 2, 1, 2),  # beside the step
    ],
)
def test_every_part_of_a_step_is_timed(
    table: str,
    scenes: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    part: str,
    workers: int,
    accumulate: int,
    times: int,
) -> None:
    config = _config(table, scenes, f"train.workers={workers}", f"train.accumulate={accumulate}")
    collection = open_collection(config)
    if part == "optimizer":
        clock.slow(monkeypatch, cost.torch.optim.AdamW, "step")
    if "views" in part:
        clock.slow(monkeypatch, TrainViews, "__call__")
    if part not in ("optimizer", "views"):
        clock.slow(monkeypatch, Baseline, part.rpartition(" ")[2])
    assert cost.time_step(config, collection) == pytest.approx(TIME * times)


def test_labels_and_scores_while_training_are_timed(
    table: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(cost, "time_step", lambda *args: 0.0)
    collection = open_collection(_config(table, scenes))
    sizes = {split: len(collection.split(split)) for split in ("train", "val", "test")}
    clock.slow(monkeypatch, Inference, "refine_masks")
    line = planned(table, scenes, tmp_path, "first")
    assert line["label_hours"] * 3600 == pytest.approx(TIME * sizes["train"])
    assert line["hours"] == line["scoring_hours"] == 0
    clock.slow(monkeypatch, Inference, "logits")
    line = planned(table, scenes, tmp_path, "first")
    assert line["label_hours"] * 3600 == pytest.approx(2 * TIME * sizes["train"])
    assert line["scoring_hours"] * 3600 == pytest.approx(TIME * sizes["test"])


@pytest.mark.parametrize(
    "owner,part,key,split,each",
    [
        (ConfidentLabels, "__call__", "label_hours", "train", 1),
        (IRN, "propagate", "label_hours", "train", 1),
        (Inference, "cams", "label_hours", "train", 2),  # made again for the walk
        (Supervised, "segment", "scoring_hours", "test", 1),
        (Baseline, "segment", "scoring_hours", "test", 0),  # whose segmentation is the stage's
    ],
)
def test_stages_are_timed(
    owner: type,
    part: str,
    key: str,
    split: str,
    each: int,
    table: str,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
) -> None:
    monkeypatch.setattr(cost, "time_step", lambda *args: 0.0)
    stages = "{classifier: {}, cams: {}, affinity: {}, masks: {}, segmenter: {}}"
    Path(table).write_text(staged_table(stages), encoding="utf-8")
    collection = open_collection(_config(table, scenes))
    counted = [item for item in collection.split(split) if split == "test" or item.tags]
    clock.slow(monkeypatch, owner, part)
    assert planned(table, scenes, tmp_path)[key] * 3600 == pytest.approx(TIME * len(counted) * each)


def test_masks_that_are_refined_are_timed(
    table: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(cost, "time_step", lambda *args: 0.0)
    Path(table).write_text(staged_table("{classifier: {}, masks: {threshold: 0.2}}"), encoding="utf-8")
    items = [item for item in open_collection(_config(table, scenes)).split("train") if item.tags]
    clock.slow(monkeypatch, Inference, "refine")
    line = planned(table, scenes, tmp_path)
    assert line["label_hours"] * 3600 == pytest.approx(TIME * len(items)) and line["scoring_hours"] == 0


def test_weights_that_a_stage_lacks_cost_nothing(table: str, scenes: Path, tmp_path: Path) -> None:
    lacking = "{classifier: {}, masks: {}, segmenter: {encoder: {weights: /none/such.pth}}}"
    sizes = []
    for stages in (lacking, lacking.replace("/none/such.pth", "none")):
        Path(table).write_text(staged_table(stages), encoding="utf-8")
        sizes.append(planned(table, scenes, tmp_path)["bytes"])
    assert sizes[0] == sizes[1] > 0


def _config(table: str, scenes: Path, *settings: str) -> RunConfig:
    parsed = read_table(table)
    return configure(parsed, parsed.rows[0], 0, scenes, scenes.parent, list(settings))
