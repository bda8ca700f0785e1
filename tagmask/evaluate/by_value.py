"""Accuracy of labels by a value that each of them has, such as a confidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tagmask.evaluate.confusion import intersection_over_union, mean_over_classes, ratio, sums
from tagmask.types import IGNORE


class AccuracyByValue:
    """Counts of (true class, label) in bins of a value, over all pixels seen, in int64.

    num_classes: with the background. edges: n+1 ascending numbers; a bin holds its lower edge and not its upper one,
    the first and the last bin what lies outside, too. Values are compared with edges in float32. Pixels whose truth or
    label is 255 are left out.

    counts: int64 (K,K,n), rows are the truth.
    """

    def __init__(self, num_classes: int, edges: Sequence[float]) -> None:
        self.edges = list(edges)
        self._inner = torch.tensor(self.edges[1:-1], dtype=torch.float32)
        self.counts = np.zeros((num_classes, num_classes, len(self.edges) - 1), dtype=np.int64)

    def update(self, labels: Tensor, values: Tensor, target: Tensor) -> None:
        """Add the pixels of one image: integer labels, values and integer truth, each (H,W)."""
        labels, values, target = (x.cpu().flatten() for x in (labels, values, target))
        valid = (labels != IGNORE) & (target != IGNORE)
        bins = torch.bucketize(values[valid].float(), self._inner, right=True)
        shape = self.counts.shape
        cells = (target[valid].long() * shape[1] + labels[valid].long()) * shape[2] + bins
        self.counts += torch.bincount(cells, minlength=self.counts.size).numpy().reshape(shape)

    def pixels(self) -> np.ndarray:
        """int64 (n,): pixels of each bin."""
        return self.counts.sum(axis=(0, 1))

    def accuracy(self) -> np.ndarray:
        """float64 (n,): share of a bin's pixels whose label is right; NaN without pixels."""
        return ratio(np.trace(self.counts), self.pixels())

    def miou_up_to(self) -> np.ndarray:
        """float64 (n,): mIoU of all pixels whose value lies below each bin's upper edge; NaN without pixels."""
        below = self.counts.cumsum(axis=2).transpose(2, 0, 1)
        return np.asarray(mean_over_classes(intersection_over_union(*sums(below))))
