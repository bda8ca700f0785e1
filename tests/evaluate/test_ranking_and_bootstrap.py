"""Average precision against scikit-learn and a loop; the bootstrap against resampling by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tagmask.errors import TagmaskError
from tagmask.evaluate import (
    ConfusionMatrix,
    Localization,
    ScoreStream,
    ThresholdCurve,
    average_precision,
    bootstrap_miou,
)
from tagmask.evaluate.bootstrap import resampled


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_equals_scikit_learn(ties):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(60, 6))
    if ties:
        scores = scores.round()
    tags = (rng.random((60, 6)) < 0.3).astype(np.float32)
    expected = [metrics.average_precision_score(tags[:, c], scores[:, c]) for c in range(6)]
    np.testing.assert_allclose(average_precision(torch.tensor(scores), torch.tensor(tags)), expected, rtol=1e-12)


def test_average_precision_by_hand_and_absent_classes():
    # hits at ranks 1 and 3: (1/1 + 2/3) / 2
    scores = np.array([[4.0, 0], [3, 0], [2, 0], [1, 0]])
    tags = np.array([[1, 0], [0, 0], [1, 0], [0, 0]])
    result = average_precision(scores, tags)
    assert result[0] == pytest.approx(5 / 6) and np.isnan(result[1])
    with pytest.raises(TagmaskError):
        average_precision(scores, tags[:2])
    with pytest.raises(TagmaskError, match="NaN"):
        average_precision(scores * np.nan, tags)


def matrices(n: int = 40, k: int = 4) -> np.ndarray:
    rng = np.random.default_rng(1)
    result = rng.integers(0, 20, (n, k, k)) + 60 * np.eye(k, dtype=np.int64) * rng.integers(0, 3, (n, 1, 1))
    result[:, 3] = 0
    result[:, :, 3] = 0  # class 3 is absent everywhere
    return result


@pytest.mark.parametrize("without", [(), (1,)])
def test_bootstrap_equals_resampling_by_hand(without, monkeypatch):
    counts = matrices()
    low, high, std = bootstrap_miou(counts, resamples=200, seed=7, without=without)
    rng = np.random.default_rng(7)
    values = []
    for drawn in rng.integers(len(counts), size=(200, len(counts))):
        cm = ConfusionMatrix(4)
        for i in drawn:
            cm.counts[:, :4] += counts[i]
        values.append(cm.miou(without=without))
    assert (low, high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    assert std == pytest.approx(np.std(values))
    # drawing in small portions changes nothing but the memory
    import tagmask.evaluate.bootstrap as module

    monkeypatch.setattr(module, "CELLS", 100)
    assert bootstrap_miou(counts, resamples=200, seed=7, without=without) == pytest.approx((low, high, std))


def test_bootstrap_covers_the_point_and_narrows_with_images():
    counts = matrices(400)
    cm = ConfusionMatrix(4)
    cm.counts[:, :4] = counts.sum(axis=0)
    low, high, _ = bootstrap_miou(counts, 300, seed=0)
    few_low, few_high, _ = bootstrap_miou(counts[:25], 300, seed=0)
    assert low < cm.miou() < high
    assert high - low < few_high - few_low
    assert bootstrap_miou(counts[:1], 50, seed=0)[2] == 0  # one image has no spread
    for wrong in (counts[0], counts[:0]):
        with pytest.raises(TagmaskError):
            bootstrap_miou(wrong, 10, seed=0)


def test_ways_to_label_the_same_images_are_redrawn_together():
    rng = np.random.default_rng(2)
    hit = rng.integers(0, 9, (10, 3, 4))
    true = (hit + rng.integers(0, 5, hit.shape)).sum(1, keepdims=True).repeat(3, 1)
    predicted = hit + rng.integers(0, 30, hit.shape)
    values = resampled((hit, true, predicted), 60, seed=3, of="recall")
    expected = [
        [np.mean([sum(hit[i, way, k] for i in draw) / sum(true[i, way, k] for i in draw) for k in range(4)])
         for way in range(3)]
        for draw in drawn(10, 60, 3)
    ]  # fmt: skip
    np.testing.assert_allclose(values, expected)


def drawn(n: int, resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(n, size=(resamples, n))


def test_the_peak_has_the_interval_of_its_threshold_over_redrawn_images():
    rng = np.random.default_rng(4)
    whole, alone = ThresholdCurve(4, 20, keep=True), []
    stream = ScoreStream(4)
    for i in range(12):
        target = rng.choice([0, 1, 2, 3, 255], (9, 9), p=[0.4, 0.2, 0.2, 0.1, 0.1])
        cams = np.clip(0.4 * (target == np.arange(1, 4)[:, None, None]) + 0.6 * rng.random((3, 9, 9)), 0, 1)
        tags = np.array([1, 1, i % 3 == 0], float)
        whole.update(cams, tags, target)
        alone.append(ThresholdCurve(4, 20).update(cams, tags, target))
        stream.update(str(i), np.zeros_like(target), target)
    threshold, miou = whole.peak()
    tables = np.stack([curve.matrices()[round(20 * threshold)] for curve in alone])
    hit, true, predicted = whole.image_sums(threshold)
    np.testing.assert_array_equal(hit, np.diagonal(tables, axis1=1, axis2=2))
    np.testing.assert_array_equal(true, tables.sum(2))
    np.testing.assert_array_equal(predicted, tables.sum(1))
    values = {(): [], (0, 3): [], "precision": [], "recall": []}
    for draw in drawn(12, 200, 5):
        summed = ConfusionMatrix(4)
        summed.counts[:, :4] = tables[draw].sum(0)
        for without in ((), (0, 3)):
            values[without].append(summed.miou(without=without))
        values["precision"].append(np.nanmean(summed.precision()))
        values["recall"].append(np.nanmean(summed.recall()))
    result = stream.result("cam", ["x", "y", "z"], {}, whole, 200, seed=5, only=["x", "y"])
    peak = result["curve"]["peak"]
    assert peak["miou"] == pytest.approx(miou) and peak["threshold"] == threshold
    keys = {"interval": (), "interval_c_miou": (0, 3)} | {f"interval_{k}": k for k in ("precision", "recall")}
    for key, found in keys.items():
        low, high = np.percentile(values[found], [2.5, 97.5])
        expected = {"low": low, "high": high, "std": np.std(values[found]), "resamples": 200}
        assert peak[key] == pytest.approx(expected)
    assert peak["interval"] != peak["interval_c_miou"]
    bare = stream.result("cam", ["x", "y", "z"], {}, alone[0], 200)
    assert "interval" not in bare["curve"]["peak"], "its images were not kept"


def test_boxes_have_intervals_over_redrawn_images():
    rng = np.random.default_rng(6)
    cams, boxes = rng.random((15, 3, 8, 8)) ** 6, np.tile([1, 1, 7, 7], (15, 1))
    scores, labels = rng.random((15, 3)), rng.integers(0, 3, 15)
    thresholds = [0.0, 0.05, 0.3, 0.6]
    result = Localization(0.6, 0.1, thresholds).update(cams, scores, labels, boxes).result(300, seed=2)
    alone = [
        Localization(0.6, 0.1, thresholds).update(*(part[i : i + 1] for part in (cams, scores, labels, boxes))).result()
        for i in range(15)
    ]
    best = thresholds.index(result["best_threshold"])
    hits = {key: [one[key] for one in alone] for key in ("top1", "top5", "gt_known", "top1_class", "top5_class")}
    hits["max_box_acc"] = [one["curve"]["box_acc"][best] for one in alone]
    assert result["intervals"].keys() == hits.keys() and 0 < result["max_box_acc"] < 1
    for key, found in hits.items():
        means = np.array(found)[drawn(15, 300, 2)].mean(1)
        low, high = np.percentile(means, [2.5, 97.5])
        expected = {"low": low, "high": high, "std": means.std(), "resamples": 300}
        assert result["intervals"][key] == pytest.approx(expected)
        assert result[key] == pytest.approx(np.mean(found))
    assert "intervals" not in alone[0]
