"""Streaming confusion matrix of label maps, and the scores that are read off it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tagmask.errors import DataError
from tagmask.types import IGNORE

LABELS = 256


class LabelError(DataError, ValueError):
    """Label maps, maps of scores or class names that do not fit one another."""


class ConfusionMatrix:
    """Counts of (true class, predicted class) over all pixels seen, in int64.

    num_classes: classes with the background, 1..255. Pixels whose *truth* is 255 are left out. Pixels that are
    *predicted* 255 are counted apart: ``iou``, ``miou``, ``precision`` and ``recall`` leave them out, ``coverage`` says
    how many were predicted, ``miou_strict`` counts them as missed. So a class whose true pixels are all predicted 255,
    and that is predicted nowhere else, has no IoU and is in no mean but the strict one, where it counts as 0.

    counts: int64 (K,K+1), rows are the truth, the last column holds the pixels that were predicted 255.
    """

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes < LABELS:
            raise LabelError(f"num_classes is {num_classes}; label maps are 8-bit, so 1 to {LABELS - 1} classes fit.")
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes + 1), dtype=np.int64)

    def update(self, pred: Any, target: Any) -> ConfusionMatrix:
        """Add the pixels of one image or of a batch; returns itself.

        pred, target: integer torch tensors or numpy arrays of one common shape, any number of dimensions.
        Raises LabelError (a ValueError) for a shape that differs, a type that is not an integer, and a label that
        is neither a class nor 255.
        """
        pred, target = to_numpy(pred), to_numpy(target)
        if pred.shape != target.shape:
            raise LabelError(
                f"The prediction has shape {pred.shape}, the truth {target.shape}; resize the prediction to the "
                "truth's size (nearest neighbour) first."
            )
        pairs = _joint_histogram(pred, target)
        labels = [*range(self.num_classes), IGNORE]
        known = pairs[np.ix_(labels, labels)]
        if known.sum() < pred.size:
            for name, used in (("prediction", pairs.sum(axis=0)), ("truth", pairs.sum(axis=1))):
                if unknown := set(np.flatnonzero(used)) - set(labels):
                    raise LabelError(
                        f"The {name} holds label {min(unknown)}, which is neither a class "
                        f"(0 to {self.num_classes - 1}) nor the ignored {IGNORE}; check the list of classes."
                    )
        self.counts += known[:-1]
        return self

    @property
    def matrix(self) -> np.ndarray:
        """int64 (K,K): rows are the truth, columns the prediction; pixels predicted 255 are not in it."""
        return self.counts[:, :-1].copy()

    def iou(self) -> np.ndarray:
        """float64 (K,): intersection over union per class, in [0,1].

        NaN where a class is in neither truth nor prediction, 0 where it is in one of them only.
        """
        return intersection_over_union(*sums(self.matrix))

    def miou(self, without: Sequence[int] = ()) -> float:
        """Mean of ``iou`` over the classes that are not NaN, save the indices in ``without``; NaN if none is left."""
        return mean_over_classes(self.iou(), without)

    def miou_strict(self, without: Sequence[int] = ()) -> float:
        """As ``miou``, with pixels predicted 255 counted as missed (they enlarge the union)."""
        hit, _, predicted = sums(self.matrix)
        return mean_over_classes(intersection_over_union(hit, self.counts.sum(axis=1), predicted), without)

    def precision(self) -> np.ndarray:
        """float64 (K,): share of the pixels predicted as a class that are of it; NaN where it was not predicted."""
        hit, _, predicted = sums(self.matrix)
        return ratio(hit, predicted)

    def recall(self) -> np.ndarray:
        """float64 (K,): share of a class's pixels that were predicted as it; NaN where it is not in the truth."""
        hit, true, _ = sums(self.matrix)
        return ratio(hit, true)

    def accuracy(self) -> float:
        """Share of the covered pixels that were predicted right; NaN without pixels."""
        return float(ratio(np.trace(self.matrix), self.matrix.sum()))

    def coverage(self) -> float:
        """Share of the pixels with a truth that were not predicted 255; NaN without pixels."""
        return float(ratio(self.matrix.sum(), self.counts.sum()))


def sums(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, true pixels and predicted pixels per class, each (...,K), of confusion matrices (...,K,K)."""
    return np.diagonal(matrices, axis1=-2, axis2=-1), matrices.sum(axis=-1), matrices.sum(axis=-2)


def intersection_over_union(hit: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """hit / (true + predicted − hit) per class, (...,K); NaN where all three are 0."""
    return ratio(hit, true + predicted - hit)


def mean_over_classes(values: np.ndarray, without: Sequence[int] = ()) -> Any:
    """Mean over the last axis of the values that are not NaN, save the indices in ``without``; NaN if none is left.

    values: float64 (...,K) → a float for one dimension, else (...). Raises LabelError for an index out of range.
    """
    keep = np.ones(values.shape[-1], dtype=bool)
    for index in without:
        if not 0 <= index < len(keep):
            raise LabelError(f"Class {index} cannot be left out: the classes are 0 to {len(keep) - 1}.")
        keep[index] = False
    kept = values[..., keep]
    known = ~np.isnan(kept)
    mean = ratio(np.where(known, kept, 0.0).sum(axis=-1), known.sum(axis=-1))
    return float(mean) if values.ndim == 1 else mean


def to_numpy(values: Any) -> np.ndarray:
    """A torch tensor (any device) or array-like as a numpy array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def ratio(part: Any, whole: Any) -> np.ndarray:
    """part / whole in float64; NaN where the whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)


def _joint_histogram(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """int64 (256,256) counts of (target, pred).

    One histogram over all 16-bit pairs: it counts and shows labels that are out of range in the same pass.
    """
    _check("prediction", pred)
    _check("truth", target)
    joint = target.ravel().astype(np.int32)
    joint *= LABELS
    np.add(joint, pred.ravel(), out=joint, casting="unsafe")
    # torch counts 32-bit numbers as they are; numpy would make 64-bit ones of them first.
    return torch.bincount(torch.from_numpy(joint), minlength=LABELS**2).numpy().reshape(LABELS, LABELS)


def _check(name: str, labels: np.ndarray) -> None:
    """Raise LabelError for anything but integers that fit 8 bits."""
    if labels.dtype.kind not in "iub":
        raise LabelError(f"The {name} has type {labels.dtype}; label maps are integers (take the argmax first).")
    if labels.dtype.itemsize > 1 or labels.dtype.kind == "i":
        low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
        if low < 0 or high >= LABELS:
            raise LabelError(f"The {name} holds label {low if low < 0 else high}; labels are 0 to {LABELS - 1}.")
