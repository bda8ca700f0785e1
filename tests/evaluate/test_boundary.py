"""Boundary IoU against a loop over pixels, hand-made regions, and its rules for ignored pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tagmask.evaluate import BoundaryIoU, LabelError, ScoreStream
from tagmask.evaluate.boundary import rim


def rim_loop(region: np.ndarray, width: int) -> np.ndarray:
    """Pixels of the region that see a pixel outside, or the image's outside, within ``width`` rows and columns."""
    h, w = region.shape
    result = np.zeros_like(region)
    for y in range(h):
        for x in range(w):
            near = [(v, u) for v in range(y - width, y + width + 1) for u in range(x - width, x + width + 1)]
            outside = any(not (0 <= v < h and 0 <= u < w) or not region[v, u] for v, u in near)
            result[y, x] = region[y, x] and outside
    return result


def loop(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int, share: float) -> list[float]:
    counts = np.zeros((classes, 2))
    for pred, target in pairs:
        width = max(1, round(share * math.sqrt(pred.shape[0] ** 2 + pred.shape[1] ** 2)))
        for c in range(classes):
            true = rim_loop(target == c, width)
            predicted = rim_loop((pred == c) & (target != 255), width)
            counts[c] += [(true & predicted).sum(), (true | predicted).sum()]
    return [hit / union if union else math.nan for hit, union in counts]


@pytest.mark.parametrize("share", [0.02, 0.08, 0.3])
def test_equals_the_loop(share: float) -> None:
    rng = np.random.default_rng(3)
    pairs = []
    for size in ((23, 31), (40, 18), (12, 12)):
        blocks = rng.choice([0, 1, 2, 255], (2, -(-size[0] // 6), -(-size[1] // 6)), p=[0.4, 0.3, 0.2, 0.1])
        pred, target = (np.kron(b, np.ones((6, 6), int))[: size[0], : size[1]] for b in blocks)
        pairs.append((np.where(rng.random(size) < 0.05, 1, pred), target))
    streaming = BoundaryIoU(4, share)
    for pred, target in pairs:
        streaming.update(pred, torch.from_numpy(target))
    expected = loop(pairs, 4, share)
    assert math.isnan(expected[3])
    np.testing.assert_allclose(streaming.iou(), expected, atol=1e-15)
    assert streaming.miou() == pytest.approx(np.nanmean(expected))


def test_by_hand() -> None:
    """A square of 10 in truth, one of 8 inside it, in an image whose rims are 2 wide: no rim pixel of the large
    square's outer ring is in the small one."""
    target, pred = np.zeros((60, 80), int), np.zeros((60, 80), int)
    target[20:30, 20:30] = 1
    pred[21:29, 21:29] = 1
    rims = rim(target == 1, 2), rim(pred == 1, 2)
    assert [r.sum() for r in rims] == [100 - 36, 64 - 16]
    both = 64 - 36  # the ring of width 1 that both have
    assert BoundaryIoU(2).update(pred, target).iou()[1] == pytest.approx(both / (64 + 48 - both))
    inside = ScoreStream(2, boundary=0.02)
    inside.update("a", pred, target)
    assert inside.boundary is not None and inside.confusion.iou()[1] == pytest.approx(64 / 100)


def test_ignored_pixels() -> None:
    target = np.zeros((30, 40), int)
    target[5:20, 5:20] = 1
    target[4:21, 4:6] = 255
    assert BoundaryIoU(2, 0.05).update(np.where(target == 255, 1, target), target).miou() == 1, "void is nobody's"
    unsure = np.where(rim(target == 1, 2), 255, target)
    assert BoundaryIoU(2, 0.05).update(unsure, target).iou()[1] == 0, "a rim left out is missed"
    assert math.isnan(BoundaryIoU(2).miou())


def test_refuses() -> None:
    with pytest.raises(LabelError, match="lies in"):
        BoundaryIoU(2, 0)
    for shape, other in (((4, 3), (3, 4)), ((12,), (12,))):
        with pytest.raises(LabelError, match="shape"):
            BoundaryIoU(2).update(np.zeros(shape, int), np.zeros(other, int))
    known, unknown = np.array([[0, 1], [255, 0]]), np.array([[0, 1], [2, 0]])
    for pair, message in (((unknown, known), "prediction holds label 2"), ((known, unknown), "truth holds label 2")):
        with pytest.raises(LabelError, match=message):
            BoundaryIoU(2).update(*pair)
    with pytest.raises(LabelError, match="holds label -1"):
        BoundaryIoU(2).update(known - 1, known)
