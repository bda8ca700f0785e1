"""Boundary IoU: the IoU of the rims of regions, which thick regions do not drown."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import ndimage

from tagmask.evaluate.confusion import (
    ConfusionMatrix,
    LabelError,
    intersection_over_union,
    mean_over_classes,
    to_numpy,
)
from tagmask.types import IGNORE


class BoundaryIoU:
    """Streaming Boundary IoU per class (Cheng et al., Boundary IoU, CVPR 2021, equation 1).

    For the regions G and P of a class in truth and prediction: |G_d ∩ P_d| / |G_d ∪ P_d|, where G_d are the pixels of
    G from which a pixel outside G is at most d away in both directions (d erosions by a 3×3 square); what lies beyond
    the image is outside. Pixels are summed over images, as the IoU's are.

    Pixels whose truth is 255 belong to no region of either, so that a perfect prediction has 1. Pixels predicted 255
    are in no predicted region: unlike in the mIoU they count as missed, since the rims are what is left unsure.

    share: d as a share of the image's diagonal, 0.02 in the paper; d is rounded to whole pixels, at least one.
    """

    def __init__(self, num_classes: int, share: float = 0.02) -> None:
        if not 0 < share <= 1:
            raise LabelError(f"The rim's share of the diagonal is {share}; it lies in (0,1], 0.02 as published.")
        self.num_classes = num_classes
        self.share = share
        # hits, true and predicted rim pixels by class
        self.counts = np.zeros((3, num_classes), dtype=np.int64)

    def update(self, pred: Any, target: Any) -> BoundaryIoU:
        """Add one image, label maps (H,W); returns itself. Raises LabelError as ``ConfusionMatrix.update`` does."""
        pred, target = to_numpy(pred), to_numpy(target)
        if pred.ndim != 2:
            raise LabelError(f"Label maps are (H,W), the prediction has shape {pred.shape}.")
        pixels = ConfusionMatrix(self.num_classes).update(pred, target).counts
        width = max(1, round(self.share * math.hypot(*pred.shape)))
        valid = target != IGNORE
        for label in np.flatnonzero(pixels.sum(axis=1) + pixels[:, :-1].sum(axis=0)):
            own, other = target == label, (pred == label) & valid
            true, predicted = rim(own, width), rim(other, width)
            self.counts[:, label] += [(true & predicted).sum(), true.sum(), predicted.sum()]
        return self

    def iou(self) -> np.ndarray:
        """float64 (K,) in [0,1]; NaN for a class in neither truth nor prediction."""
        return intersection_over_union(*self.counts)

    def miou(self) -> float:
        """Mean of ``iou`` over the classes that are not NaN; NaN if none is left."""
        return mean_over_classes(self.iou())


def rim(region: np.ndarray, width: int) -> np.ndarray:
    """bool (H,W): pixels of ``region`` (bool, (H,W)) whose chessboard distance to a pixel outside is ≤ ``width``."""
    result = np.zeros_like(region)
    found = ndimage.find_objects(region.astype(np.uint8))
    if not found:
        return result
    inside = region[found[0]]  # the region's own box: all around it is outside
    distance = ndimage.distance_transform_cdt(np.pad(inside, 1), "chessboard")[1:-1, 1:-1]
    result[found[0]] = inside & (distance <= width)
    return result
