"""Average precision against scikit-learn and a loop; the bootstrap against resampling by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tagmask.errors import TagmaskError
from tagmask.evaluate import ConfusionMatrix, average_precision, bootstrap_miou
from tagmask.evaluate.ranking import mean_average_precision


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
    assert mean_average_precision(scores, tags) == pytest.approx(5 / 6)
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
