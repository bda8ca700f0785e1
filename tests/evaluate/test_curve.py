"""The threshold curve against label maps made one threshold at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tagmask.errors import TagmaskError
from tagmask.evaluate import ConfusionMatrix, ThresholdCurve


def image(seed: int, c: int = 3, shape: tuple[int, int] = (9, 11), bins: int = 20):
    rng = np.random.default_rng(seed)
    cams = rng.random((c, *shape)).astype(np.float32)
    # Many values exactly on the grid, where a wrong rounding shows.
    on_grid = rng.random(cams.shape) < 0.5
    cams[on_grid] = (rng.integers(0, bins + 1, on_grid.sum()) / bins).astype(np.float32)
    tags = (rng.random(c) < 0.6).astype(np.float32)
    target = rng.integers(0, c + 1, shape).astype(np.uint8)
    target[rng.random(shape) < 0.1] = 255
    return cams, tags, target


def naive(cams, tags, target, threshold: float) -> np.ndarray:
    """Labels at one threshold, pixel by pixel; both sides in float32, as labelling compares."""
    labels = np.zeros(target.shape, dtype=np.uint8)
    for y in range(target.shape[0]):
        for x in range(target.shape[1]):
            best, value = 0, np.float32(threshold)
            for c in range(len(tags)):
                if tags[c] and cams[c, y, x] > value:
                    best, value = c + 1, cams[c, y, x]
            labels[y, x] = best
    return labels


@pytest.mark.parametrize("bins", [20, 7])
def test_every_threshold_equals_its_own_pass(bins):
    images = [image(seed, bins=bins) for seed in range(4)]
    images.append((images[0][0], np.zeros(3), images[0][2]))  # no tag at all
    curve = ThresholdCurve(4, bins)
    for one in images:
        curve.update(*one)
    assert curve.thresholds.shape == curve.miou().shape == (bins,)
    assert curve.iou().shape == (bins, 4)
    for i, threshold in enumerate(curve.thresholds):
        cm = ConfusionMatrix(4)
        for cams, tags, target in images:
            cm.update(naive(cams, tags, target, threshold), target)
        np.testing.assert_array_equal(curve.matrices()[i], cm.matrix)
        np.testing.assert_allclose(curve.iou()[i], cm.iou())
        np.testing.assert_array_equal(curve.at(threshold).counts, cm.counts)
    threshold, best = curve.peak()
    assert best == pytest.approx(np.nanmax(curve.miou())) and curve.at(threshold).miou() == best


def test_torch_agrees_with_labels_cut_in_float32():
    bins = 100
    values = torch.tensor([i / bins for i in range(bins)])  # exactly the thresholds, in float32
    cams, target = values.view(1, 1, -1), torch.ones(1, bins, dtype=torch.long)
    curve = ThresholdCurve(2, bins).update(cams, torch.ones(1), target)
    for i, threshold in enumerate(curve.thresholds):
        assert curve.matrices()[i][1, 1] == int((values > threshold).sum()) == bins - 1 - i


def test_what_does_not_fit_is_refused():
    cams, tags, target = image(3)
    tags[:] = 1
    curve = ThresholdCurve(4, 20)
    with pytest.raises(ValueError, match=r"\[0,1\]"):
        curve.update(cams * 3, tags, target)
    with pytest.raises(ValueError, match=r"\[0,1\]"):
        curve.update(np.full_like(cams, np.nan), tags, target)
    with pytest.raises(ValueError, match="label 9"):
        curve.update(cams, tags, np.full_like(target, 9))
    with pytest.raises(ValueError, match="do not fit"):
        curve.update(cams, tags, target[:-1])
    with pytest.raises(TagmaskError, match="evaluate.bins"):
        curve.update(cams, tags, target).at(0.333)
    assert all(np.isnan(value) for value in ThresholdCurve(4, 20).peak())
