"""Scores as saved and printed: complete, JSON without NaN, and stamped with their protocol."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from tagmask.errors import ConfigError, TagmaskError
from tagmask.evaluate import (
    BoundaryIoU,
    ConfusionMatrix,
    Protocol,
    ScoreStream,
    ThresholdCurve,
    bootstrap_miou,
    print_classes,
    print_scores,
    score,
)

CLASSES = ["cat", "dog", "boat"]


def protocol(**changes) -> Protocol:
    values = {
        "split": "test",
        "split_hash": "3f2ab1c9",
        "images": 6,
        "truth": "SegmentationClass",
        "tags_at_test": False,
        "seed": 0,
        "weights": "none",
        "method": "baseline",
        "encoder": "resnet18",
        "version": "0.1.0",
    }
    return Protocol(**(values | changes))


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
    result = one.result("segmenter", CLASSES, protocol(), curve, bootstrap=50, without=["dog"], seed=3)
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
    assert Protocol(**result["protocol"]) == protocol()


def test_c_miou_is_the_mean_over_the_classes_that_are_named():
    one, matrices = stream()
    result = one.result("segmenter", CLASSES, protocol(), bootstrap=50, without=["cat"], seed=3, only=["dog", "cat"])
    ious = [result["per_class"][name]["iou"] for name in ("cat", "dog")]
    assert result["c_miou"] == pytest.approx(sum(ious) / 2) and result["only"] == ["dog", "cat"]
    low, high, std = bootstrap_miou(np.stack(matrices), 50, 3, without=[0, 3])
    assert result["interval_c_miou"] == pytest.approx({"low": low, "high": high, "std": std, "resamples": 50})
    assert result["miou_without"] == pytest.approx(one.confusion.miou(without=[1])), "the other mean is untouched"
    absent = one.result("segmenter", CLASSES, protocol(), bootstrap=10, only=["boat"])
    assert absent["c_miou"] is None and absent["interval_c_miou"]["low"] is None, "no pixel, no mean"
    whole = one.result("x", CLASSES, protocol(), bootstrap=0, only=["background", *CLASSES])
    assert whole["c_miou"] == pytest.approx(whole["miou"])
    with pytest.raises(ConfigError, match="evaluate.only.*'boot'.*boat"):
        one.result("x", CLASSES, protocol(), only=["boot"])
    cams = np.random.default_rng(1).random((3, 12, 12))
    curve = ThresholdCurve(4, 10).update(cams, np.ones(3), np.arange(144).reshape(12, 12) % 4)
    peak = one.result("cam", CLASSES, protocol(), curve, bootstrap=0, only=["dog", "cat"])["curve"]["peak"]
    there = curve.iou()[round(10 * peak["threshold"])]
    assert peak["c_miou"] == pytest.approx((there[1] + there[2]) / 2) and peak["c_miou"] != pytest.approx(peak["miou"])
    console = Console(file=io.StringIO(), width=300)
    print_scores([result], console)
    text = console.file.getvalue()
    assert "without cat" in text and "C-mIoU of dog, cat" in text and f"{100 * result['c_miou']:.1f}" in text


def test_rims_are_counted_when_asked_for():
    one = ScoreStream(4, boundary=0.1)
    target = np.zeros((12, 12), int)
    target[3:9, 3:9] = 1
    pred = np.roll(target, 1, axis=1)
    one.update("a", pred, target)
    result = one.result("segmenter", CLASSES, protocol(), bootstrap=0)
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
    result = one.result("masks", CLASSES, protocol(), bootstrap=0)
    assert result["miou"] == 1.0 and result["miou_strict"] == pytest.approx(2 / 3)
    assert result["coverage"] == pytest.approx(4 / 6)
    console = Console(file=io.StringIO(), width=300)
    print_classes(result, console)
    rows = {line.split()[0]: line.split()[1:] for line in console.file.getvalue().splitlines() if line.strip()}
    assert rows["cat"][:2] == ["all", "unsure"]
    assert rows["boat"][0] == "–", "a class of neither map"
    # predicted elsewhere, the class is wrong there, and counts
    one.update("b", np.array([[1, 0]]), np.array([[0, 0]]))
    assert one.result("masks", CLASSES, protocol(), bootstrap=0)["per_class"]["cat"]["iou"] == 0


def test_a_stamp_says_what_differs():
    mine, theirs = protocol(crop=224, scales=[1.0, 0.5]), protocol(seed=1)
    assert mine.differs(theirs) == ["scales: [1.0, 0.5] / [1.0]", "seed: 0 / 1"], "no crop was recorded of theirs"
    assert mine.differs(theirs, but=["seed", "scales"]) == []
    assert mine.differs(protocol(crop=512, seed=1), ["seed", "scales"]) == ["crop: 224 / 512"]
    assert "crops of 224" in mine.describe() and "crops" not in theirs.describe()


def test_what_was_not_asked_for_is_none():
    cm = ConfusionMatrix(4).update(np.zeros(4, int), np.zeros(4, int))
    result = score("masks", cm, ["background", *CLASSES], protocol(), bootstrap=0)
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
        one.result("x", CLASSES, protocol(), without=["boot"])
    with pytest.raises(TagmaskError, match="2 class names"):
        one.result("x", CLASSES[:2], protocol())


def test_per_image_matrices_come_back_as_they_were():
    one, matrices = stream()
    assert list(one.per_image) == [f"photo{i}" for i in range(6)]
    for i, matrix in enumerate(matrices):
        np.testing.assert_array_equal(one.per_image[f"photo{i}"], matrix)


def test_protocol_says_what_matters_and_what_differs():
    plain = protocol()
    line = plain.describe()
    assert line.startswith("test (6 images, 3f2a) · no tags · ") and "threshold" not in line
    tagged = protocol(
        tags_at_test=True,
        threshold=0.45,
        threshold_source="best on this split (oracle)",
        scales=[1, 0.5],
        flip=True,
        refine="par",
        crf="afa",
        tile=512,
    )
    line = tagged.describe()
    for part in (
        "tags at test",
        "threshold 0.45 (best on this split (oracle))",
        "scales 1, 0.5 + flip",
        "refined by par",
    ):
        assert part in line
    assert "CRF afa" in line and "tiles of 512" in line
    assert plain.differs(plain) == []
    assert "tags_at_test: False / True" in plain.differs(tagged) and len(plain.differs(tagged)) == 8
    assert Protocol(**json.loads(json.dumps(tagged.model_dump()))) == tagged
    with pytest.raises(ValueError):
        protocol(threshold_source="guessed")


@pytest.mark.parametrize(
    "field,one,other",
    [
        ("crop", 64, 96),
        ("grid", "photos' own size, at most 2048", "short side 224, at most 2048"),
        ("precision", "fp32", "bf16"),
        ("rim", 0.02, 0.0),
        ("masks", "baseline on resnet50, CAMs", "crt on resnet50, CAMs"),
        ("bins", 100, 20),
        ("without", ["cat"], []),
        ("only", ["cat", "dog"], ["dog"]),
    ],
)
def test_what_earlier_versions_did_not_record_is_no_difference(field: str, one: object, other: object) -> None:
    searched = {"threshold": 0.2, "threshold_source": "best on val"} if field == "bins" else {}
    old, new = protocol(**searched), protocol(**searched, **{field: one})
    assert old.differs(new) == [] == new.differs(old)
    assert new.differs(protocol(**searched, **{field: other})) == [f"{field}: {one} / {other}"]
    assert (", ".join(one) if isinstance(one, list) else str(one)) in new.describe()


def test_folders_of_masks_are_not_told() -> None:
    """Earlier versions stamped where the masks lay."""
    seeds = [protocol(supervision=f"masks of /home/me/row/seed{seed}/masks") for seed in (0, 1)]
    assert seeds[0].differs(seeds[1]) == [] and "/home/me" not in seeds[0].describe()
    assert seeds[0].differs(protocol(supervision="masks", masks="CAMs")) == []
    assert seeds[0].differs(protocol(supervision="true masks")) == ["supervision: masks / true masks"]


def test_columns_of_means_are_named_by_their_own_classes():
    one, _ = stream()
    results = [one.result(n, CLASSES, protocol(), bootstrap=0, without=[n], only=["cat"]) for n in ("dog", "cat")]
    console = Console(file=io.StringIO(), width=300)
    print_scores(results, console)
    head, *rows = (re.split(r"  +", line.strip()) for line in console.file.getvalue().splitlines()[:3])
    assert head[-3:] == ["without dog", "without cat", "C-mIoU of cat"]
    for row, result, title, other in zip(rows, results, ("without dog", "without cat"), ("without cat", "without dog")):
        cells = dict(zip(head, row))
        assert cells[title] == f"{100 * result['miou_without']:.1f}" and cells[other] == "–"
        assert cells["C-mIoU of cat"] == f"{100 * result['c_miou']:.1f}"


def test_printed_scores_show_both_means_and_every_protocol():
    one, _ = stream()
    results = [
        one.result("cams [a]", CLASSES, protocol(tags_at_test=True), bootstrap=20, without=["dog"]),
        one.result("segmenter", CLASSES, protocol(), bootstrap=0),
    ]
    console = Console(file=io.StringIO(), width=300)
    print_scores(results, console)
    text = console.file.getvalue()
    assert f"{100 * results[0]['miou']:.1f}" in text and f"{100 * results[0]['miou_strict']:.1f}" in text
    assert "without dog" in text and "98.4" in text
    assert text.count("cams [a]") == 2
    assert "cams [a]: test (6 images, 3f2a) · tags at test" in text
    assert "segmenter: test (6 images, 3f2a) · no tags" in text
