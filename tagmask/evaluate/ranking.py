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
    return np.array([_one_class(scores[:, c], tags[None, :, c] > 0)[0] for c in range(scores.shape[1])])


def chance_precision(scores: Any, tags: Any, seed: int = 0) -> np.ndarray:
    """Mean average precision, over the classes that have one, of the same scores against tags of shuffled photos.

    scores, tags: (N,C) as in ``average_precision``. Returns float64 (R,) in [0,1] of R seeded shuffles, 200 or, for
    more than 2,000 photos, fewer; empty where no class has a positive.
    """
    scores, tags = to_numpy(scores).astype(np.float64), to_numpy(tags) > 0
    random = np.random.default_rng(seed)
    shuffles = max(10, min(200, 400_000 // max(len(tags), 1)))
    orders = np.stack([random.permutation(len(tags)) for _ in range(shuffles)])
    known = [c for c in range(tags.shape[1]) if tags[:, c].any()]
    found = [_one_class(scores[:, c], tags[:, c][orders]) for c in known]
    return np.mean(found, axis=0) if found else np.zeros(0)


def _one_class(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(R,) average precisions of scores (N,) against R ways (R,N) to say which are positive; NaN where none is."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[:, order], axis=1)
    last_of_equals = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision = hits[:, last_of_equals] / (last_of_equals + 1)
    with np.errstate(invalid="ignore"):
        recall = hits[:, last_of_equals] / hits[:, -1:]
    return np.sum(np.diff(recall, prepend=0.0, axis=1) * precision, axis=1)
