"""Scores of class activation maps at every background threshold, from one pass over the images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tagmask.errors import ConfigError
from tagmask.evaluate.confusion import ConfusionMatrix, LabelError, intersection_over_union, mean_over_classes, sums
from tagmask.types import IGNORE


class ThresholdCurve:
    """mIoU of CAM label maps over the threshold that separates foreground from background.

    The label of a pixel at threshold t is the tagged class with the largest activation where that is > t, else 0.
    An image needs one histogram over (true class, largest class, activation), whose cumulative sums are the
    confusion matrices at all thresholds.

    num_classes: classes with the background (C+1). bins: thresholds 0, 1/bins, … (bins−1)/bins. Activations are
    compared with the thresholds in float32, as labelling does, so that a value *at* a threshold is background.
    Pixels whose truth is 255 are left out. keep: keep each image's histogram, too (some kilobytes), for ``image_sums``.
    """

    def __init__(self, num_classes: int, bins: int = 100, keep: bool = False) -> None:
        if not 2 <= num_classes <= IGNORE or bins < 1:
            raise LabelError(f"A threshold curve needs 2 to {IGNORE} classes and a bin, got {num_classes} and {bins}.")
        self.num_classes = num_classes
        self.bins = bins
        self.keep = keep
        self.thresholds = np.arange(bins) / bins
        self._edges = torch.from_numpy(self.thresholds.astype(np.float32))
        # (true class, largest tagged class, number of thresholds below the activation)
        self.histogram = np.zeros((num_classes, num_classes, bins + 1), dtype=np.int64)
        # Of each image that is kept: the cells of its histogram that are not 0, and their counts.
        self.images: list[tuple[np.ndarray, np.ndarray]] = []

    def update(self, cams: Any, tags: Any, target: Any) -> ThresholdCurve:
        """Add one image; returns itself.

        cams: (C,H,W) activations in [0,1]. tags: (C,) of 0/1. target: (H,W) labels 0..C, or 255.
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
        valid = target != IGNORE
        target = target[valid]
        wrong = target[(target < 0) | (target > c)]
        if wrong.numel():
            raise LabelError(f"The truth holds label {int(wrong[0])}, neither a class (0 to {c}) nor {IGNORE}.")
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
        own = torch.bincount(cell, minlength=self.histogram.size).cpu().numpy()
        self.histogram += own.reshape(shape)
        if self.keep:
            cells = np.flatnonzero(own)
            self.images.append((cells.astype(np.uint32), own[cells].astype(np.int32)))
        return self

    def state(self) -> dict[str, Any]:
        """All that was counted, for ``merge``; of dictionaries, lists and arrays."""
        return {"histogram": self.histogram, "images": self.images}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add what another curve counted of other images."""
        self.histogram += np.asarray(state["histogram"])
        self.images += [(np.asarray(cells), np.asarray(counts)) for cells, counts in state["images"]]

    def image_sums(self, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hits, true and predicted pixels by class of each image that was kept, int64 (N,K) each.

        Raises ConfigError for a threshold between two grid points.
        """
        index, k = self._index(threshold), self.num_classes
        tables = np.zeros((3, len(self.images), k), dtype=np.int64)
        for image, (cells, counts) in enumerate(self.images):
            true, label, below = np.unravel_index(cells, self.histogram.shape)
            predicted = np.where(below > index, label, 0)
            matrix = np.bincount(true * k + predicted, counts, minlength=k * k).reshape(k, k)
            tables[:, image] = sums(matrix)
        return tables[0], tables[1], tables[2]

    def matrices(self) -> np.ndarray:
        """int64 (bins,K,K): the confusion matrix at each threshold; rows are the truth."""
        # above[i] counts activations that exceed threshold i, which are those with more than i edges below them
        above = self.histogram[:, :, ::-1].cumsum(axis=2)[:, :, ::-1][:, :, 1:].transpose(2, 0, 1).copy()
        above[:, :, 0] = self.histogram.sum(axis=(1, 2)) - above[:, :, 1:].sum(axis=2)
        return above

    def iou(self) -> np.ndarray:
        """float64 (bins,K): IoU per class at each threshold; NaN where a class is in neither map."""
        return intersection_over_union(*sums(self.matrices()))

    def miou(self) -> np.ndarray:
        """float64 (bins,): mean IoU at each threshold; NaN before the first image."""
        return mean_over_classes(self.iou())

    def at(self, threshold: float) -> ConfusionMatrix:
        """The confusion matrix at a threshold of the grid. Raises ConfigError for one between two grid points."""
        result = ConfusionMatrix(self.num_classes)
        result.counts[:, :-1] = self.matrices()[self._index(threshold)]
        return result

    def _index(self, threshold: float) -> int:
        index = round(threshold * self.bins)
        if not 0 <= index < self.bins or abs(self.thresholds[index] - threshold) > 1e-9:
            raise ConfigError(
                f"Threshold {threshold} is no multiple of 1/{self.bins} in [0,1); choose one, or set evaluate.bins."
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
