"""A mixture of two normal distributions fitted to values in [0,1], and the value that parts the two."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from tagmask.errors import TagmaskError

BINS = 1024
STEPS = 2000
TOLERANCE = 1e-6
MIN_VARIANCE = 1e-6
"""Least variance: a component that shrinks to one value would have infinite density."""
MIN_WEIGHT = 1e-12
"""Least weight, which is divided by."""
LEAST_SHARE = 1e-3
"""A component with less of the values is a few outliers, and no mode."""
VALLEY = 0.9
"""The density between two modes, as a share of the lower one's: at most this."""

Component = tuple[float, float, float]  # weight, mean, standard deviation


class Mixture(NamedTuple):
    """Two weighted normal distributions on a line, the one with the lower mean first. Each float64 (2,), on the CPU.

    converged: whether the fit stands still, or was broken off.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor
    converged: bool = True


def fit_two_components(values: Tensor) -> Mixture:
    """Maximum-likelihood mixture of two normal distributions, by expectation maximisation (EM).

    (Co-training with Swapping Assignments, ECCV 2024, section 3.3, assumes it of CAM values.) Values are rounded to
    i/1023, counted on their device, and the counts fitted in float64 on the CPU, so the cost of a step does not
    grow with the number of values. It starts from the split into two groups with the least variance within (the best
    that k-means can find) and draws nothing at random. Variances are at least 1e-6. Values that are all the same (to
    rounding) give both components that value as mean, and weights 1 and 0.

    It has converged when a step changes each mean, standard deviation and weight by 1e-6 or less. Queues of CAM values
    take some 150 steps, values with one mode thousands; it is broken off after 2000.

    values: floating point, any shape, in [0,1]. Raises TagmaskError for no values and for NaN and others outside.
    """
    if values.numel() == 0:
        raise TagmaskError("Fit of two components: there are no values; give at least one.")
    counts, outside = count_values(values)
    check_range(outside)
    return fit_counts(counts.cpu())


def crossing(mixture: Mixture) -> float | None:
    """The value between the two means where both weighted densities are equal; None where there is none.

    There is none where the means are the same, or where one component outweighs the other at both means. Between
    the means the ratio of the second to the first only rises, so there is never more than one.
    """
    lower, upper = zip(*(part.tolist() for part in mixture[:3]))
    (w0, m0, _), (w1, m1, _) = lower, upper
    if w0 <= 0 or w1 <= 0 or not m0 < m1:
        return None
    c, b, a = _log_ratio(lower, upper)
    if a * m0 * m0 + b * m0 + c > 0 or a * m1 * m1 + b * m1 + c < 0:
        return None
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    # Between the means the ratio rises through 0, so of the two roots it is the one with slope 2 a x + b = +root.
    # Of its two forms, the one without cancellation; it also holds for a = 0.
    return -2 * c / (b + root) if b >= 0 else (root - b) / (2 * a)


def two_modes(counts: Tensor, mixture: Mixture) -> bool:
    """Whether counts (1024,) at i/1023 have two modes: those of ``mixture``, which was fitted to them.

    It has converged, and both components have a thousandth of the values. Two components explain the values better
    than one by the Bayesian information criterion (BIC): the log-likelihood gains more than half of ln(number of
    values) for each of the three parameters more. And the fitted density falls, between the means, to 0.9 of what it
    is at either or less: with thousands of values the BIC finds two components in every skewed mode.
    """
    if not mixture.converged or mixture.weights.min() < LEAST_SHARE:
        return False
    used = counts.nonzero()[:, 0].numpy()
    number, grid = counts.numpy()[used], np.linspace(0, 1, len(counts))
    x, total = grid[used], int(number.sum())
    lower, upper = zip(*(part.tolist() for part in mixture[:3]))
    two = np.logaddexp(_log_density(lower, grid), _log_density(upper, grid))
    one = _log_density(_component(np.stack([np.ones_like(x), x, x * x]) @ number / total), x)
    gain = float(number @ (two[used] - one))
    first, last = (mixture.means * (len(counts) - 1)).round().int().tolist()
    valley = float(two[first : last + 1].min() - min(two[first], two[last]))
    return gain > 1.5 * math.log(total) and valley <= math.log(VALLEY)


def count_values(values: Tensor) -> tuple[Tensor, Tensor]:
    """int64 (1024,), how many values round to each i/1023, and int64 (1,), 1 if some is NaN or not in [0,1]."""
    flat = values.detach().flatten().float()
    # The extremes are NaN if any value is; comparing every value was half of the cost.
    low, high = flat.aminmax() if len(flat) else (flat.new_zeros(()),) * 2
    outside = torch.logical_not((low >= 0) & (high <= 1)).long()[None]
    # What is outside of [0,1] is counted somewhere, and refused.
    place = flat.clamp(0, 1).mul_(BINS - 1).add_(0.5).nan_to_num_(0).int()
    return torch.bincount(place, minlength=BINS), outside


def check_range(outside: Tensor) -> None:
    """Raise TagmaskError where ``count_values`` found values outside."""
    if outside > 0:
        raise TagmaskError(
            "Threshold of CAMs: some values are NaN or outside of [0,1]; normalise the CAMs first "
            "(tagmask.cam.normalize)."
        )


def fit_counts(counts: Tensor) -> Mixture:
    """``fit_two_components`` of counts (1024,) at i/1023, on the CPU; at least one is not 0."""
    used = counts.nonzero()[:, 0].numpy()
    x, share = used / (len(counts) - 1), counts.numpy()[used] / int(counts.sum())
    if len(x) == 1:
        stds = torch.full((2,), math.sqrt(MIN_VARIANCE), dtype=torch.float64)
        return Mixture(stds.new_tensor([1, 0]), torch.from_numpy(x.repeat(2)), stds)
    powers = np.stack([np.ones_like(x), x, x * x])
    weighted = powers * share
    whole, second = weighted.sum(1), weighted[:, _least_variance_split(x, share) :].sum(1)
    parts, converged = [_component(whole - second), _component(second)], False
    for _ in range(STEPS):
        # E step: each value's probability of being the second component's. M step: the moments of both parts.
        second = weighted @ expit(_log_ratio(*parts) @ powers)
        before, parts = parts, [_component(whole - second), _component(second)]
        converged = bool(np.abs(np.subtract(parts, before)).max() <= TOLERANCE)
        if converged:
            break
    ordered = zip(*sorted(parts, key=lambda part: part[1]))
    weights, means, stds = (torch.tensor(numbers, dtype=torch.float64) for numbers in ordered)
    return Mixture(weights, means, stds, converged)


def _component(moments: np.ndarray) -> Component:
    """moments: sums of 1, x and x² over the values, each times its share and its probability of being the part's."""
    mass, first, square = moments.tolist()
    mass = max(mass, MIN_WEIGHT)
    mean = first / mass
    return mass, mean, math.sqrt(max(square / mass - mean * mean, MIN_VARIANCE))


def _log_density(part: Component, x: np.ndarray) -> np.ndarray:
    """Log of the weighted density at x, less the constant that all normal distributions have."""
    weight, mean, std = part
    return math.log(weight / std) - 0.5 * ((x - mean) / std) ** 2


def _log_ratio(first: Component, second: Component) -> np.ndarray:
    """(c, b, a): the log of the second weighted density over the first is c + b x + a x²."""
    (w0, m0, s0), (w1, m1, s1) = first, second
    v0, v1 = s0 * s0, s1 * s1
    constant = math.log(w1 * s0 / (w0 * s1)) + 0.5 * (m0 * m0 / v0 - m1 * m1 / v1)
    return np.array([constant, m1 / v1 - m0 / v0, 0.5 / v0 - 0.5 / v1])


def _least_variance_split(x: np.ndarray, share: np.ndarray) -> int:
    """Index of the first value of the upper group, for two groups with the largest variance between them.

    x ascending, at least two. (Otsu, A Threshold Selection Method from Gray-Level Histograms, 1979, equation 18.)
    """
    mass, first = share.cumsum(), (share * x).cumsum()
    lower = mass[:-1]
    between = (first[-1] * lower - first[:-1]) ** 2 / (lower * (1 - lower))
    return int(between.argmax()) + 1
