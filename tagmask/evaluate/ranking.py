"""Image-level ranking: average precision per class."""

from __future__ import annotations

from typing import Any

import numpy as np

from tagmask.evaluate.confusion import LabelError, to_numpy


def average_precision(scores: Any, tags: Any) -> np.ndarray:
    """Average precision per class: Σₙ (Rₙ − Rₙ₋₁) Pₙ over the distinct scores, from the highest down.

    P and R are precision and recall of all images that score at least as high; equal scores enter together and no
    interpolation is made. scores: (N,C), any real range. tags: (N,C) of 0/1. Torch or numpy.
    Returns float64 (C,) in [0,1], NaN for a class without positives. Raises LabelError for shapes that differ and
    for scores that are NaN.
    """
    scores, tags = to_numpy(scores).astype(np.float64), to_numpy(tags)
    if scores.ndim != 2 or scores.shape != tags.shape:
        raise LabelError(f"Scores {scores.shape} and tags {tags.shape} must both be (images, classes).")
    if np.isnan(scores).any():
        raise LabelError("Class scores hold NaN; the model that gave them is broken or diverged in training.")
    return np.array([_one_class(scores[:, c], tags[:, c] > 0) for c in range(scores.shape[1])])


def _one_class(scores: np.ndarray, positive: np.ndarray) -> float:
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last_of_equals = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision = hits[last_of_equals] / (last_of_equals + 1)
    recall = hits[last_of_equals] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))
