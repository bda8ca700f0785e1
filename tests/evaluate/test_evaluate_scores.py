"""Scores as saved and printed: complete, JSON without NaN, and stamped with how they were made."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tagmask.errors import ConfigError, TagmaskError
from tagmask.evaluate import (
    BoundaryIoU,
    ConfusionMatrix,
    ScoreStream,
    ThresholdCurve,
    bootstrap_miou,
    difference,
    print_classes,
    print_scores,
)
from tagmask.evaluate.scores import score_line
from tagmask.evaluate.stamp import describe, headline

CLASSES = ["cat", "dog", "boat"]


def stamp(**changes: Any) -> dict[str, Any]:
    """A stamp as ``tagmask.evaluate.stamp`` describes it."""
    run = {
        "method": "baseline", "encoder": "resnet18", "weights": "none", "digest": "0123", "supervision": "tags",
        "masks": None, "seed": 0, "settings": {"views.crop": 64},
    }  # fmt: skip
    values = {
        "split": "test", "ids": "3f2ab1c9", "images": 6, "left_out": 0, "truth": "SegmentationClass", "tags": False,
        "threshold": None, "threshold_from": None, "settings": {"label.scales": [1.0]}, "run": run, "version": "0.1.0",
    }  # fmt: skip
    return values | changes


def stream() -> tuple[ScoreStream, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    result, matrices = ScoreStream(4), []
    for i in range(6):
        target = rng.integers(0, 3, (8, 8))  # class 3, boat, is never there
        pred = np.where(rng.random((8, 8)) < 0.7, target, rng.integers(0, 3, (8, 8)))
        pred[0, 0] = 255
        result.update(f"photo{i}", pred, target)
        matrices.append(ConfusionMatrix(4).update(pred, target).matrix)
    return result, matrices


def test_the_score_is_complete_and_json_without_nan():
    one, matrices = stream()
    curve = ThresholdCurve(4, 10).update(np.full((3, 2, 2), 0.5), np.ones(3), np.ones((2, 2), dtype=int))
    result = one.result("segmenter", CLASSES, stamp(), curve, bootstrap=50, without=["dog"], seed=3)
    assert result == json.loads(json.dumps(result, allow_nan=False))
    whole = sum(matrices)
    cm = ConfusionMatrix(4)
    cm.counts[:, :4] = whole
    assert result["miou"] == pytest.approx(cm.miou())
    assert result["miou_strict"] < result["miou"] and result["coverage"] == pytest.approx(63 / 64)
    assert result["miou_without"] == pytest.approx(cm.miou(without=[2]))
    assert result["confusion"] == whole.tolist()
    assert list(result["per_class"]) == ["background", *CLASSES]
    nothing = {"iou": None, "precision": None, "recall": None, "boundary_iou": None, "pixels": 0}
    assert result["per_class"]["boat"] == nothing
    assert result["precision"] == pytest.approx(np.nanmean(cm.precision()))
    assert result["recall"] == pytest.approx(np.nanmean(cm.recall())) and result["boundary_iou"] is None
    assert result["per_class"]["cat"]["iou"] == pytest.approx(cm.iou()[1])
    assert sum(row["pixels"] for row in result["per_class"].values()) == 6 * 64
    assert result["images"]["photo2"]["miou"] == pytest.approx(
        np.nanmean(
            [matrices[2][c, c] / (matrices[2][c].sum() + matrices[2][:, c].sum() - matrices[2][c, c]) for c in range(3)]
        )
    )
    assert result["images"]["photo2"]["accuracy"] == pytest.approx(np.trace(matrices[2]) / matrices[2].sum())
    low, high, std = bootstrap_miou(np.stack(matrices), 50, seed=3)
    assert result["interval"] == pytest.approx({"low": low, "high": high, "std": std, "resamples": 50})
    for key in ("precision", "recall"):
        assert result[f"interval_{key}"]["low"] < result[key] < result[f"interval_{key}"]["high"]
    assert result["interval_without"]["low"] == pytest.approx(bootstrap_miou(np.stack(matrices), 50, 3, [2])[0])
    peak = {"threshold": 0.0, "miou": 1.0, "precision": 1.0, "recall": 1.0}
    assert result["curve"]["peak"] == peak and len(result["curve"]["miou"]) == 10
    assert result["stamp"] == stamp()


def test_c_miou_is_the_mean_over_the_classes_that_are_named():
    one, matrices = stream()
    result = one.result("segmenter", CLASSES, stamp(), bootstrap=50, without=["cat"], seed=3, only=["dog", "cat"])
    ious = [result["per_class"][name]["iou"] for name in ("cat", "dog")]
    assert result["c_miou"] == pytest.approx(sum(ious) / 2) and result["only"] == ["dog", "cat"]
    low, high, std = bootstrap_miou(np.stack(matrices), 50, 3, without=[0, 3])
    assert result["interval_c_miou"] == pytest.approx({"low": low, "high": high, "std": std, "resamples": 50})
    assert result["miou_without"] == pytest.approx(one.confusion.miou(without=[1])), "the other mean is untouched"
    absent = one.result("segmenter", CLASSES, stamp(), bootstrap=10, only=["boat"])
    assert absent["c_miou"] is None and absent["interval_c_miou"]["low"] is None, "no pixel, no mean"
    whole = one.result("x", CLASSES, stamp(), bootstrap=0, only=["background", *CLASSES])
    assert whole["c_miou"] == pytest.approx(whole["miou"])
    with pytest.raises(ConfigError, match=r"evaluate\.only.*'boot'.*boat"):
        one.result("x", CLASSES, stamp(), only=["boot"])
    cams = np.random.default_rng(1).random((3, 12, 12))
    curve = ThresholdCurve(4, 10).update(cams, np.ones(3), np.arange(144).reshape(12, 12) % 4)
    peak = one.result("cam", CLASSES, stamp(), curve, bootstrap=0, only=["dog", "cat"])["curve"]["peak"]
    there = curve.iou()[round(10 * peak["threshold"])]
    assert peak["c_miou"] == pytest.approx((there[1] + there[2]) / 2) and peak["c_miou"] != pytest.approx(peak["miou"])
    line = score_line(result)
    assert f"{100 * result['miou_without']:.1f} without cat" in line
    assert f"{100 * result['c_miou']:.1f} over dog, cat" in line


def test_rims_are_counted_when_asked_for():
    one = ScoreStream(4, boundary=0.1)
    target = np.zeros((12, 12), int)
    target[3:9, 3:9] = 1
    pred = np.roll(target, 1, axis=1)
    one.update("a", pred, target)
    result = one.result("segmenter", CLASSES, stamp(), bootstrap=0)
    by_class = BoundaryIoU(4, 0.1).update(pred, target).iou()
    assert result["per_class"]["cat"]["boundary_iou"] == pytest.approx(by_class[1])
    assert result["boundary_iou"] == pytest.approx(np.nanmean(by_class)) and result["boundary_iou"] < result["miou"]
    console = Console(file=io.StringIO(), width=300)
    print_classes(result, console)
    last = console.file.getvalue().splitlines()[-1].split()
    means = (result[key] for key in ("miou", "precision", "recall", "boundary_iou"))
    assert last == ["mean", *(f"{100 * mean:.1f}" for mean in means)]


def test_a_class_that_is_all_unsure_is_named_so():
    truth, pred = np.array([[0, 0, 0, 2, 1, 1]]), np.array([[0, 0, 0, 2, 255, 255]])
    one = ScoreStream(4)
    one.update("a", pred, truth)
    result = one.result("masks", CLASSES, stamp(), bootstrap=0)
    assert result["miou"] == 1.0 and result["miou_strict"] == pytest.approx(2 / 3)
    assert result["coverage"] == pytest.approx(4 / 6)
    console = Console(file=io.StringIO(), width=300)
    print_classes(result, console)
    rows = {line.split()[0]: line.split()[1:] for line in console.file.getvalue().splitlines() if line.strip()}
    assert rows["cat"][:2] == ["all", "unsure"]
    assert rows["boat"][0] == "–", "a class of neither map"
    # predicted elsewhere, the class is wrong there, and counts
    one.update("b", np.array([[1, 0]]), np.array([[0, 0]]))
    assert one.result("masks", CLASSES, stamp(), bootstrap=0)["per_class"]["cat"]["iou"] == 0


def test_stamps_differ_by_key():
    mine = stamp(settings={"label.scales": [1.0, 0.5], "method.inference": "online"})
    theirs = stamp(run=stamp()["run"] | {"seed": 1, "masks": {"folder": "drawn"}})
    assert difference(mine, mine) == {}
    assert difference(mine, theirs) == {
        "settings.label.scales": ([1.0, 0.5], [1.0]),
        "settings.method.inference": ("online", None),
        "run.seed": (0, 1),
        "run.masks.folder": (None, "drawn"),
    }
    assert difference(mine, theirs, but=["settings", "run"]) == {}


def test_what_was_not_asked_for_is_none():
    result = ScoreStream(4).result("masks", CLASSES, stamp(), bootstrap=0)
    for key in ("interval", "interval_without", "miou_without", "images", "curve", "without", "only", "c_miou"):
        assert result[key] is None
    assert result["classes"] == ["background", *CLASSES]


def test_errors_name_the_image_the_class_and_the_count():
    one, _ = stream()
    with pytest.raises(TagmaskError, match="photo9: .*label 7"):
        one.update("photo9", np.full((2, 2), 7), np.zeros((2, 2), int))
    with pytest.raises(TagmaskError, match="'photo0' was scored twice"):
        one.update("photo0", np.zeros((2, 2), int), np.zeros((2, 2), int))
    assert one.confusion.counts.sum() == 6 * 64  # neither was counted
    with pytest.raises(ConfigError, match="'boot'.*boat"):
        one.result("x", CLASSES, stamp(), without=["boot"])
    with pytest.raises(TagmaskError, match="2 class names"):
        one.result("x", CLASSES[:2], stamp())


def test_a_stamp_is_told_on_one_line():
    plain = stamp()
    assert headline("cam", plain) == "cam on test, no tags"
    assert "test (6 photos, 3f2a)" in describe(plain) and "threshold" not in describe(plain)
    tagged = stamp(tags=True, threshold=0.45, threshold_from="val", left_out=2, settings={"label.crf": "afa"})
    assert headline("cam", tagged) == "cam on test, tags given, threshold 0.45 (val)"
    for part in ("tags given", "2 more", "threshold 0.45 (val)", "label.crf=afa", "baseline on resnet18", "seed 0"):
        assert part in describe(tagged)
    assert "\n" not in describe(tagged) and json.loads(json.dumps(tagged)) == tagged


def test_printed_scores_are_one_line_each():
    one, _ = stream()
    results = [
        one.result("cams [a]", CLASSES, stamp(tags=True), bootstrap=20, without=["dog"]),
        one.result("segmenter", CLASSES, stamp(), bootstrap=0),
    ]
    console = Console(file=io.StringIO(), width=300)
    print_scores(results, console)
    first, second = console.file.getvalue().splitlines()
    assert first.startswith("cams [a] on test, tags given: ") and second.startswith("segmenter on test, no tags: ")
    for line, result in ((first, results[0]), (second, results[1])):
        assert f"{100 * result['miou']:.1f} mIoU" in line and f"{100 * result['miou_strict']:.1f} with" in line
        assert "98.4 % covered" in line
    low, high = (f"{100 * results[0]['interval'][end]:.1f}" for end in ("low", "high"))
    assert f"[{low}, {high}]" in first and "[" not in second
    assert "without dog" in first and "without" not in second
