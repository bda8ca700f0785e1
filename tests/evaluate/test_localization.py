"""Localisation on drawn activations whose boxes are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from tagmask.errors import TagmaskError
from tagmask.evaluate import Localization
from tagmask.evaluate.localization import cam_box


def localization(*images, **options):
    return Localization(**options).update(*images).result()


def flood_box(cam: np.ndarray, threshold: float):
    """Largest 8-connected region by flood fill, as a box."""
    on = cam > threshold * cam.max()
    seen, best = np.zeros_like(on), []
    for start in zip(*np.nonzero(on)):
        if seen[start]:
            continue
        stack, region = [start], []
        seen[start] = True
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            for v in range(max(0, y - 1), min(cam.shape[0], y + 2)):
                for u in range(max(0, x - 1), min(cam.shape[1], x + 2)):
                    if on[v, u] and not seen[v, u]:
                        seen[v, u] = True
                        stack.append((v, u))
        best = region if len(region) > len(best) else best
    ys, xs = zip(*best)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def test_box_of_the_largest_region_equals_flood_fill():
    rng = np.random.default_rng(0)
    for _ in range(20):
        cam = rng.random((12, 15))
        assert cam_box(cam, 0.6) == flood_box(cam, 0.6)
    assert cam_box(np.zeros((4, 4))) is None and cam_box(-np.ones((4, 4))) is None


def scene():
    """Four images of six classes; every true class's CAM is a rectangle."""
    cams = np.zeros((4, 6, 20, 20), dtype=np.float32)
    labels = np.array([0, 1, 2, 3])
    for i in range(3):
        cams[i, labels[i], 4:12, 2:10] = 0.5
        cams[i, labels[i], 18, 18] = 0.9  # brighter, but a smaller region
    scores = np.tile(np.arange(6, 0, -1.0), (4, 1))
    scores[0, 0] = 9  # best; image 1 has rank 2; image 2 comes last
    scores[2, 2] = -5
    boxes = np.tile([2.0, 4, 10, 12], (4, 1))
    return cams, scores, labels, boxes


def test_shares_by_hand():
    cams, scores, labels, boxes = scene()
    result = localization(torch.from_numpy(cams), torch.from_numpy(scores), torch.from_numpy(labels), boxes)
    # image 3 has no activation; its class is fourth by score
    assert result == {
        "top1": 0.25,
        "top5": 0.5,
        "gt_known": 0.75,
        "top1_class": 0.25,
        "top5_class": 0.75,
        "images": 4,
    }


def test_overlap_threshold_and_several_boxes():
    cams, scores, labels, boxes = scene()
    half = boxes.copy()
    half[:, 3] = 8  # half of the region: IoU exactly 0.5 counts
    assert localization(cams, scores, labels, half)["gt_known"] == 0.75
    assert localization(cams, scores, labels, half, iou=0.51)["gt_known"] == 0
    several = [np.array([[0, 0, 1, 1], box]) for box in boxes]
    assert localization(list(cams), scores, labels, several)["gt_known"] == 0.75
    # above 0.5 / 0.9 of the maximum only the single bright pixel is left
    assert localization(cams, scores, labels, boxes, threshold=0.6)["gt_known"] == 0
    with pytest.raises(TagmaskError):
        localization(cams, scores, labels[:2], boxes)
    with pytest.raises(TagmaskError):
        localization(cams, scores, np.array([0, 1, 2, 6]), boxes)


def test_max_box_acc_equals_counting_at_every_threshold():
    rng = np.random.default_rng(1)
    cams = np.zeros((12, 3, 20, 20))
    labels, boxes = rng.integers(0, 3, 12), np.zeros((12, 4))
    for i in range(12):
        x, y = rng.integers(1, 8, 2)
        cams[i, labels[i]] = rng.random((20, 20)) * 0.3
        cams[i, labels[i], y : y + 9, x : x + 9] += 0.3 + 0.1 * i / 12
        cams[i, labels[i], y + 2 : y + 5, x + 2 : x + 5] += 0.4
        boxes[i] = x, y, x + 9, y + 9
    thresholds = [0.6, 0.0, 0.2, 0.4]
    result = localization(cams, rng.random((12, 3)), labels, boxes, thresholds=thresholds)
    expected = []
    for threshold in sorted(thresholds):
        drawn = torch.tensor([flood_box(c[k], threshold) for c, k in zip(cams, labels)], dtype=torch.float64)
        expected.append((box_iou(drawn, torch.from_numpy(boxes)).diagonal() >= 0.5).double().mean().item())
    assert result["curve"] == {"thresholds": sorted(thresholds), "box_acc": pytest.approx(expected)}
    assert result["max_box_acc"] == max(expected) > min(expected)
    assert result["best_threshold"] == sorted(thresholds)[int(np.argmax(expected))]
    assert result["gt_known"] == expected[1], "at its own threshold, 0.2"
    with pytest.raises(TagmaskError, match="others as well"):
        localization(cams, rng.random((12, 3)), labels, boxes, thresholds=[1.0])
