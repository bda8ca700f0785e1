"""Intervals of means over classes over the choice of images (percentile bootstrap; Efron 1979)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from tagmask.evaluate.confusion import LabelError, intersection_over_union, mean_over_classes, ratio, sums

CELLS = 2_000_000
"""Weights drawn at a time, which bounds the memory."""


def bootstrap_miou(
    matrices: np.ndarray, resamples: int = 1000, seed: int = 0, without: Sequence[int] = ()
) -> tuple[float, float, float]:
    """95 % percentile interval and standard deviation of the mIoU when images are redrawn with replacement.

    matrices: int (N,K,K), the confusion matrix of each image. without: class indices left out of the mean.
    Returns (low, high, std), each in [0,1]. Raises LabelError for no image, no resample, or another shape.
    """
    matrices = np.asarray(matrices)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
        raise LabelError(f"Per-image confusion matrices have shape {matrices.shape}; expected (images, K, K).")
    found = interval_of(resampled(sums(matrices), resamples, seed, without))
    return found["low"], found["high"], found["std"]


def resampled(
    tables: Sequence[np.ndarray],
    resamples: int = 1000,
    seed: int = 0,
    without: Sequence[int] = (),
    of: Literal["iou", "precision", "recall"] = "iou",
) -> np.ndarray:
    """Mean over classes of IoU, precision or recall in each resample, (R,) or (R,S), in [0,1].

    tables: hits, true and predicted pixels by class of each image, (N,K), or (N,S,K) of S ways to label the same
    images, which are then redrawn together. Other arguments and errors as in ``bootstrap_miou``.
    """
    n, *ways, k = tables[0].shape
    if n < 1 or resamples < 1:
        raise LabelError(f"A bootstrap needs images and resamples (got {n} and {resamples}).")
    table = np.stack(tables, axis=1).reshape(n, -1).astype(np.float64)
    parts = []
    for weights in _weights(n, resamples, seed):
        hits, trues, predictions = (weights @ table).reshape(-1, 3, *ways, k).swapaxes(0, 1)
        if of == "iou":
            shares = intersection_over_union(hits, trues, predictions)
        else:
            shares = ratio(hits, {"precision": predictions, "recall": trues}[of])
        parts.append(mean_over_classes(shares, without))
    return np.concatenate(parts)


def resampled_means(values: np.ndarray, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Mean of each column of ``values``, (N,M) of N images, in each resample, (R,M)."""
    return np.concatenate([weights @ values / len(values) for weights in _weights(len(values), resamples, seed)])


def interval_of(values: np.ndarray) -> dict[str, Any]:
    """{low, high, std, resamples} of a value in each resample, (R,): percentiles 2.5 and 97.5, and the deviation.

    NaN are left out; where all are NaN, so is the interval.
    """
    low = high = std = math.nan
    if not np.isnan(values).all():
        low, high = np.nanpercentile(values, [2.5, 97.5]).tolist()
        std = float(np.nanstd(values))
    return {"low": low, "high": high, "std": std, "resamples": len(values)}


def _weights(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n images is drawn in n draws, (R,n), for all resamples, as many at a time as CELLS allow."""
    generator = np.random.default_rng(seed)
    chunk = max(1, CELLS // n)
    for start in range(0, resamples, chunk):
        r = min(chunk, resamples - start)
        # A multinomial, as a histogram of the draws.
        draws = generator.integers(n, size=(r, n)) + np.arange(r)[:, None] * n
        yield np.bincount(draws.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)
