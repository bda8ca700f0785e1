"""Streaming confusion matrix of label maps, and the scores that are read off it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tagmask.errors import DataError

LABELS = 256
Absent = Literal["drop", "truth", "zero"]


class LabelError(DataError, ValueError):
    """Label maps, maps of scores or class names that do not fit one another."""


class ConfusionMatrix:
    """Counts of (true class, predicted class) over all pixels seen, in int64.

    num_classes: classes with the background, 1..255. ignore: the label outside ``0..num_classes-1`` that takes
    part in no score. Pixels whose *truth* is ``ignore`` are left out. Pixels that are *predicted* ``ignore`` are
    counted apart: ``iou``, ``miou``, ``precision`` and ``recall`` leave them out, ``coverage`` says how many were
    predicted, ``miou_strict`` counts them as missed. So a class whose true pixels are all predicted ``ignore``, and
    that is predicted nowhere else, has no IoU and is in no mean but the strict one, where it counts as 0.

    counts: int64 (K,K+1), rows are the truth, the last column holds the pixels that were predicted ``ignore``.
    """

    def __init__(self, num_classes: int, ignore: int = 255) -> None:
        if not 1 <= num_classes < LABELS:
            raise LabelError(f"num_classes is {num_classes}; label maps are 8-bit, so 1 to {LABELS - 1} classes fit.")
        if not num_classes <= ignore < LABELS:
            raise LabelError(f"ignore is {ignore}; it must lie outside the classes, {num_classes} to {LABELS - 1}.")
        self.num_classes = num_classes
        self.ignore = ignore
        self.counts = np.zeros((num_classes, num_classes + 1), dtype=np.int64)

    def update(self, pred: Any, target: Any) -> ConfusionMatrix:
        """Add the pixels of one image or of a batch; returns itself.

        pred, target: integer torch tensors or numpy arrays of one common shape, any number of dimensions.
        Raises LabelError (a ValueError) for a shape that differs, a type that is not an integer, and a label that
        is neither a class nor ``ignore``.
        """
        self.counts += self._count(pred, target)
        return self

    def _count(self, pred: Any, target: Any) -> np.ndarray:
        """The (K,K+1) counts of these label maps alone."""
        if tuple(pred.shape) != tuple(target.shape):
            raise LabelError(
                f"The prediction has shape {tuple(pred.shape)}, the truth {tuple(target.shape)}; "
                "resize the prediction to the truth's size (nearest neighbour) first."
            )
        pairs = _joint_histogram(pred, target)
        labels = [*range(self.num_classes), self.ignore]
        known = pairs[np.ix_(labels, labels)]
        if known.sum() < math.prod(pred.shape):
            _refuse("prediction", pairs.sum(axis=0), self.num_classes, self.ignore)
            _refuse("truth", pairs.sum(axis=1), self.num_classes, self.ignore)
        return known[:-1]

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Add another matrix's pixels to this one; returns itself. Raises LabelError where the classes differ."""
        if (other.num_classes, other.ignore) != (self.num_classes, self.ignore):
            raise LabelError(
                f"Cannot merge a matrix of {other.num_classes} classes (ignore {other.ignore}) into one of "
                f"{self.num_classes} (ignore {self.ignore})."
            )
        self.counts += other.counts
        return self

    @property
    def matrix(self) -> np.ndarray:
        """int64 (K,K): rows are the truth, columns the prediction; pixels predicted ``ignore`` are not in it."""
        return self.counts[:, :-1].copy()

    def iou(self, absent: Absent = "drop") -> np.ndarray:
        """float64 (K,): intersection over union per class, in [0,1].

        absent names the convention for classes without pixels. ``drop``: NaN where a class is in neither truth nor
        prediction, 0 where it is only predicted. ``truth``: NaN where it is not in the truth. ``zero``: never NaN.
        """
        hit, true, predicted = sums(self.matrix)
        return intersection_over_union(hit, true, predicted, absent)

    def miou(self, without: Sequence[int] = (), absent: Absent = "drop") -> float:
        """Mean of ``iou`` over the classes that are not NaN, save the indices in ``without``; NaN if none is left."""
        return mean_over_classes(self.iou(absent), without)

    def miou_strict(self, without: Sequence[int] = (), absent: Absent = "drop") -> float:
        """As ``miou``, with pixels predicted ``ignore`` counted as missed (they enlarge the union)."""
        hit, _, predicted = sums(self.matrix)
        return mean_over_classes(intersection_over_union(hit, self.counts.sum(axis=1), predicted, absent), without)

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
        """Share of the pixels with a truth that were not predicted ``ignore``; NaN without pixels."""
        return float(ratio(self.matrix.sum(), self.counts.sum()))


def sums(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, true pixels and predicted pixels per class, each (...,K), of confusion matrices (...,K,K)."""
    return np.diagonal(matrices, axis1=-2, axis2=-1), matrices.sum(axis=-1), matrices.sum(axis=-2)


def intersection_over_union(
    hit: np.ndarray, true: np.ndarray, predicted: np.ndarray, absent: Absent = "drop"
) -> np.ndarray:
    """hit / (true + predicted − hit) per class, (...,K); ``absent`` as in ``ConfusionMatrix.iou``."""
    iou = ratio(hit, true + predicted - hit)
    if absent == "truth":
        return np.where(true > 0, iou, np.nan)
    if absent == "zero":
        return np.nan_to_num(iou, nan=0.0)
    if absent != "drop":
        raise LabelError(f"absent is '{absent}'; the conventions are 'drop', 'truth' and 'zero'.")
    return iou


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


def label_counts(name: str, labels: Any, num_classes: int, ignore: int) -> np.ndarray:
    """Pixels by label, int64 (256,). name: of the label map, for the errors of ``ConfusionMatrix.update``."""
    _check(name, labels)
    counts = np.bincount(to_numpy(labels).ravel(), minlength=LABELS)
    _refuse(name, counts.copy(), num_classes, ignore)
    return counts


def _refuse(name: str, used: np.ndarray, num_classes: int, ignore: int) -> None:
    """Raise LabelError for the first label of ``used``, pixels by label (256,), that is out of range."""
    used[:num_classes] = used[ignore] = 0
    if used.any():
        raise LabelError(
            f"The {name} holds label {int(np.flatnonzero(used)[0])}, which is neither a class "
            f"(0 to {num_classes - 1}) nor the ignored {ignore}; check the list of classes."
        )


def _joint_histogram(pred: Any, target: Any) -> np.ndarray:
    """int64 (256,256) counts of (target, pred).

    One histogram over all 16-bit pairs: it counts and shows labels that are out of range in the same pass.
    """
    _check("prediction", pred)
    _check("truth", target)
    if isinstance(pred, Tensor) and isinstance(target, Tensor) and pred.device.type != "cpu":
        joint = target.to(pred.device).flatten().int() * LABELS + pred.flatten().int()
    else:
        wide = to_numpy(target).ravel().astype(np.int32)
        wide *= LABELS
        np.add(wide, to_numpy(pred).ravel(), out=wide, casting="unsafe")
        joint = torch.from_numpy(wide)
    # torch counts 32-bit numbers as they are; numpy would make 64-bit ones of them first.
    return torch.bincount(joint, minlength=LABELS**2).cpu().numpy().reshape(LABELS, LABELS)


def _check(name: str, labels: Any) -> None:
    """Refuse anything that is not an array of integers that fit 8 bits."""
    kind = str(labels.dtype).removeprefix("torch.")
    if not kind.startswith(("int", "uint", "bool")):
        raise LabelError(f"The {name} has type {labels.dtype}; label maps are integers (take the argmax first).")
    if kind in ("uint8", "bool") or 0 in labels.shape:
        return
    low, high = _extremes(labels)
    if low < 0 or high >= LABELS:
        raise LabelError(f"The {name} holds label {low if low < 0 else high}; labels are 0 to {LABELS - 1}.")


def _extremes(labels: Any) -> tuple[int, int]:
    if isinstance(labels, Tensor) and labels.device.type != "cpu":
        low, high = labels.aminmax()
        return int(low), int(high)
    values = to_numpy(labels)  # torch has no minimum of unsigned types
    return int(values.min()), int(values.max())
