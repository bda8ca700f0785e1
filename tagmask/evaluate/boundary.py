"""Boundary IoU: the IoU of the rims of regions, which thick regions do not drown."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import ndimage

from tagmask.evaluate.confusion import (
    LabelError,
    intersection_over_union,
    label_counts,
    mean_over_classes,
    to_numpy,
)


class BoundaryIoU:
    """Streaming Boundary IoU per class (Cheng et al., Boundary IoU, CVPR 2021, equation 1).

    For the regions G and P of a class in truth and prediction: |G_d ∩ P_d| / |G_d ∪ P_d|, where G_d are the pixels of
    G from which a pixel outside G is at most d away in both directions (d erosions by a 3×3 square); what lies beyond
    the image is outside. Pixels are summed over images, as the IoU's are.

    Pixels whose truth is ``ignore`` belong to no region of either, so that a perfect prediction has 1. Pixels
    predicted ``ignore`` are in no predicted region: unlike in the mIoU they count as missed, since leaving the rims
    out is how a map is made unsure.

    share: d as a share of the image's diagonal, 0.02 in the paper; at least one pixel.
    """

    def __init__(self, num_classes: int, share: float = 0.02, ignore: int = 255) -> None:
        if not 0 < share <= 1:
            raise LabelError(f"The rim's share of the diagonal is {share}; it lies in (0,1], 0.02 as published.")
        self.num_classes = num_classes
        self.share = share
        self.ignore = ignore
        # hits, true and predicted rim pixels by class
        self.counts = np.zeros((3, num_classes), dtype=np.int64)

    def update(self, pred: Any, target: Any) -> BoundaryIoU:
        """Add one image, integer label maps (H,W); returns itself.

        Raises LabelError for other shapes, and for labels that are neither a class nor ``ignore``.
        """
        pred, target = to_numpy(pred), to_numpy(target)
        if pred.ndim != 2 or pred.shape != target.shape:
            raise LabelError(f"Label maps {pred.shape} and {target.shape} have to be two of one size (H,W).")
        width = rim_width(pred.shape, self.share)
        valid = target != self.ignore
        there = label_counts("prediction", pred, self.num_classes, self.ignore)
        there = there + label_counts("truth", target, self.num_classes, self.ignore)
        for label in np.flatnonzero(there[: self.num_classes]):
            own, other = target == label, (pred == label) & valid
            true, predicted = rim(own, width), rim(other, width)
            self.counts[:, label] += [(true & predicted).sum(), true.sum(), predicted.sum()]
        return self

    def merge(self, other: BoundaryIoU) -> BoundaryIoU:
        """Add another's images to this one; returns itself. Raises LabelError where classes or widths differ."""
        if (other.num_classes, other.share, other.ignore) != (self.num_classes, self.share, self.ignore):
            raise LabelError("Cannot merge Boundary IoUs of different classes, rims or ignored label.")
        self.counts += other.counts
        return self

    def iou(self) -> np.ndarray:
        """float64 (K,) in [0,1]; NaN for a class in neither truth nor prediction."""
        return intersection_over_union(*self.counts)

    def miou(self) -> float:
        """Mean of ``iou`` over the classes that are not NaN; NaN if none is left."""
        return mean_over_classes(self.iou())


def rim_width(size: tuple[int, ...], share: float) -> int:
    """d in pixels for an image (H,W): a share of its diagonal, rounded, at least 1."""
    return max(1, round(share * math.hypot(*size)))


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
