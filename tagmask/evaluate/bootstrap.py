"""Interval of the mean IoU over the choice of images (percentile bootstrap; Efron 1979)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tagmask.evaluate.confusion import LabelError, intersection_over_union, mean_over_classes, sums

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
    return bootstrap_sums(*sums(matrices), resamples=resamples, seed=seed, without=without)


def bootstrap_sums(
    hit: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    without: Sequence[int] = (),
) -> tuple[float, float, float]:
    """As ``bootstrap_miou``, from each image's hits, true and predicted pixels, (N,K) each: all that the IoU needs."""
    n, k = hit.shape
    if n < 1 or resamples < 1:
        raise LabelError(f"A bootstrap needs images and resamples (got {n} and {resamples}).")
    table = np.concatenate([hit, true, predicted], axis=1).astype(np.float64)
    values = np.empty(resamples)
    done = 0
    for weights in _weights(n, resamples, seed):
        total = (weights @ table).reshape(-1, 3, k)
        iou = intersection_over_union(total[:, 0], total[:, 1], total[:, 2])
        values[done : done + len(total)] = mean_over_classes(iou, without)
        done += len(total)
    return _summary(values)


def bootstrap_means(values: np.ndarray, resamples: int = 1000, seed: int = 0) -> list[tuple[float, float, float]]:
    """(low, high, std) as in ``bootstrap_miou`` for the mean of each column of ``values``, (N,M)."""
    n = len(values)
    means = np.concatenate([weights @ values / n for weights in _weights(n, resamples, seed)])
    return [_summary(column) for column in means.T]


def _weights(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n images is drawn in n draws, (R,n), for all resamples, as many at a time as CELLS allow."""
    generator = np.random.default_rng(seed)
    chunk = max(1, CELLS // n)
    for start in range(0, resamples, chunk):
        r = min(chunk, resamples - start)
        # A multinomial, as a histogram of the draws.
        draws = generator.integers(n, size=(r, n)) + np.arange(r)[:, None] * n
        yield np.bincount(draws.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)


def _summary(values: np.ndarray) -> tuple[float, float, float]:
    """The 2.5th and 97.5th percentile and the deviation of the values that are not NaN."""
    if np.isnan(values).all():
        return float("nan"), float("nan"), float("nan")
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high), float(np.nanstd(values))
