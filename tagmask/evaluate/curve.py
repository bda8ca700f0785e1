"""Scores of class activation maps at every background threshold, from one pass over the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tagmask.errors import ConfigError
from tagmask.evaluate.confusion import LabelError, intersection_over_union, mean_over_classes, ratio, sums


class ThresholdCurve:
    """mIoU of CAM label maps over the threshold that separates foreground from background.

    The label of a pixel at threshold t is the tagged class with the largest activation where that is > t, else 0.
    An image needs one histogram over (true class, largest class, activation), whose cumulative sums are the
    confusion matrices at all thresholds.

    num_classes: classes with the background (C+1). bins: thresholds 0, 1/bins, … (bins−1)/bins. Activations are
    compared with the thresholds in float32, as labelling does, so that a value *at* a threshold is background.
    keep: keep each image's histogram, too, as the cells that are not 0 (some kilobytes), for ``image_sums``.
    """

    def __init__(self, num_classes: int, bins: int = 100, ignore: int = 255, keep: bool = False) -> None:
        if num_classes < 2 or bins < 1 or ignore < num_classes:
            raise LabelError(
                f"A threshold curve needs a foreground class, a bin and an ignored label above the classes "
                f"(num_classes {num_classes}, bins {bins}, ignore {ignore})."
            )
        self.num_classes = num_classes
        self.bins = bins
        self.ignore = ignore
        self.thresholds = np.arange(bins) / bins
        self._edges = torch.from_numpy(self.thresholds.astype(np.float32))
        # (true class, largest tagged class, number of thresholds below the activation)
        self.histogram = np.zeros((num_classes, num_classes, bins + 1), dtype=np.int64)
        self.images: list[tuple[np.ndarray, np.ndarray]] | None = [] if keep else None

    def update(self, cams: Any, tags: Any, target: Any) -> ThresholdCurve:
        """Add one image; returns itself.

        cams: (C,H,W) activations in [0,1]. tags: (C,) of 0/1. target: (H,W) labels 0..C, or ``ignore``.
        Torch or numpy. Raises LabelError (a ValueError) for shapes, activations or labels that do not fit.
        """
        cams, tags, target = (_tensor(value) for value in (cams, tags, target))
        c = self.num_classes - 1
        if cams.ndim != 3 or cams.shape[0] != c or tags.shape != (c,) or cams.shape[1:] != target.shape:
            raise LabelError(
                f"CAMs {tuple(cams.shape)}, tags {tuple(tags.shape)} and truth {tuple(target.shape)} do not fit: "
                f"expected ({c},H,W), ({c},) and (H,W); resize the CAMs to the truth's size."
            )
        target = target.to(cams.device).long().flatten()
        valid = target != self.ignore
        target = target[valid]
        if target.numel() and not 0 <= int(target.min()) <= int(target.max()) <= c:
            wrong = int(target.max() if target.max() > c else target.min())
            raise LabelError(f"The truth holds label {wrong}, which is neither a class (0 to {c}) nor {self.ignore}.")
        present = tags.to(cams.device).flatten().nonzero().flatten()
        if present.numel():
            value, best = cams.detach()[present].float().flatten(1)[:, valid].max(dim=0)
            if value.numel() and not (value.isfinite().all() and value.min() >= 0 and value.max() <= 1 + 1e-4):
                raise LabelError(
                    f"CAMs reach from {float(value.min()):.4g} to {float(value.max()):.4g}; the curve needs [0,1]: "
                    "normalise them first."
                )
            label = present[best] + 1
            # right=False counts the edges that are strictly below the value
            below = torch.bucketize(value, self._edges.to(cams.device))
        else:
            label = below = torch.zeros_like(target)
        shape = self.histogram.shape
        cell = (target * shape[1] + label) * shape[2] + below
        counted = torch.bincount(cell, minlength=self.histogram.size)
        own = counted.cpu().numpy()
        self.histogram += own.reshape(shape)
        if self.images is not None:
            cells = np.flatnonzero(own)
            self.images.append((cells.astype(np.uint32), own[cells].astype(np.int32)))
        return self

    def image_sums(self, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hits, true and predicted pixels by class of each image at a threshold of the grid, int64 (N,K) each.

        Of the images that were kept. Raises ConfigError for a threshold between two grid points.
        """
        index, k = self._index(threshold), self.num_classes
        tables = np.zeros((3, len(self.images or ()), k), dtype=np.int64)
        for image, (cells, counts) in enumerate(self.images or ()):
            true, label, below = np.unravel_index(cells, self.histogram.shape)
            predicted = np.where(below > index, label, 0)
            for table, classes, counted in zip(tables, (true, true, predicted), (true == predicted, None, None)):
                table[image] = np.bincount(classes, counts if counted is None else counts * counted, minlength=k)
        return tables[0], tables[1], tables[2]

    def merge(self, other: ThresholdCurve) -> ThresholdCurve:
        """Add another curve's images to this one; returns itself. Raises LabelError where the grids differ."""
        if other.histogram.shape != self.histogram.shape or other.ignore != self.ignore:
            raise LabelError("Cannot merge threshold curves of different classes, bins or ignored label.")
        self.histogram += other.histogram
        # Images that only one has kept would be a part of what is merged.
        kept = self.images is not None and other.images is not None
        self.images = [*(self.images or ()), *(other.images or ())] if kept else None
        return self

    def matrices(self) -> np.ndarray:
        """int64 (bins,K,K): the confusion matrix at each threshold; rows are the truth."""
        # above[i] counts activations that exceed threshold i, which are those with more than i edges below them
        above = self.histogram[:, :, ::-1].cumsum(axis=2)[:, :, ::-1][:, :, 1:].transpose(2, 0, 1).copy()
        above[:, :, 0] = self.histogram.sum(axis=(1, 2)) - above[:, :, 1:].sum(axis=2)
        return above

    def iou(self) -> np.ndarray:
        """float64 (bins,K): IoU per class at each threshold; NaN where a class is in neither map."""
        matrices = self.matrices()
        hit = np.diagonal(matrices, axis1=1, axis2=2)
        return intersection_over_union(hit, matrices.sum(axis=2), matrices.sum(axis=1))

    def miou(self) -> np.ndarray:
        """float64 (bins,): mean IoU at each threshold; NaN before the first image."""
        return mean_over_classes(self.iou())

    def at(self, threshold: float, without: Sequence[int] = ()) -> float:
        """mIoU at a threshold of the grid, over all classes but those of ``without``.

        Raises ConfigError for one between two grid points.
        """
        return float(mean_over_classes(self.iou()[self._index(threshold)], without))

    def precision_recall_at(self, threshold: float) -> tuple[float, float]:
        """Means over classes of precision and recall at a threshold of the grid, each without its NaN classes.

        Precision is NaN for a class that is not predicted, recall for one that is not in the truth. Raises
        ConfigError for a threshold between two grid points.
        """
        hit, true, predicted = sums(self.matrices()[self._index(threshold)])
        return mean_over_classes(ratio(hit, predicted)), mean_over_classes(ratio(hit, true))

    def _index(self, threshold: float) -> int:
        index = round(threshold * self.bins)
        if not 0 <= index < self.bins or abs(self.thresholds[index] - threshold) > 1e-9:
            raise ConfigError(
                f"Threshold {threshold} is not among the curve's multiples of 1/{self.bins} in [0,1); "
                "choose one of those, or another number for evaluate.bins."
            )
        return index

    def peak(self) -> tuple[float, float]:
        """The threshold with the largest mIoU (the lowest of equals) and that mIoU; (NaN, NaN) without images."""
        miou = self.miou()
        if np.isnan(miou).all():
            return float("nan"), float("nan")
        index = int(np.nanargmax(miou))
        return float(self.thresholds[index]), float(miou[index])


def _tensor(values: Any) -> Tensor:
    """A tensor of ``values``; arrays that may not be written (as Pillow's) are copied, which torch asks for."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()
    return torch.as_tensor(values)
