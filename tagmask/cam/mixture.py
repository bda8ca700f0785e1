"""A mixture of two normal distributions fitted to values in [0,1], and the value that parts the two."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask.errors import TagmaskError

BINS = 1024
ROUNDS = 60
MIN_VARIANCE = 1e-6
"""Least variance: a component that shrinks to one value would have infinite density."""

EM_ROUNDS = 2
"""Rounds of EM before the first of Newton, so that the start decides which maximum is found."""

LONGEST = 0.1
"""Largest move of a mean, standard deviation or weight by a step of Newton."""

ROUNDING = 1e-12
"""What a likelihood may fall by and still count as the same."""

TINY = 1e-300
"""Stands for 0 where it would be divided by or have its logarithm taken."""


class Mixture(NamedTuple):
    """Two weighted normal distributions on a line, the one with the lower mean first. Each float64 (2,), on the CPU.

    converged: whether the fit is a maximum of the likelihood, or where the search was broken off.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor
    converged: bool = True


def fit_two_components(values: Tensor, bins: int = BINS, iterations: int = ROUNDS, tolerance: float = 1e-6) -> Mixture:
    """Maximum-likelihood mixture of two normal distributions, by expectation maximisation (EM) and Newton's method.

    (Co-training with Swapping Assignments, ECCV 2024, section 3.3, assumes it of CAM values.) Values are rounded to
    i/(bins−1), counted on their device, and the counts fitted in float64 on the CPU, so the cost of a step does not
    grow with the number of values. It starts from the split into two groups with the least variance within (the best
    that k-means can find) and draws nothing at random. Variances are at least 1e-6. Values that are all the same (to
    rounding) give both components that value as mean, and weights 1 and 0.

    It has converged when the fixed point of EM lies, to first order, within ``tolerance`` in each mean, standard
    deviation and weight. That is not the length of a step of EM, which is small far from the maximum, too, where the
    components overlap. ``iterations``: rounds, of one step of Newton or four passes of EM; queues of CAM values take
    some ten, those with one mode up to a hundred. What is not there after all of them has ``converged`` False.

    values: floating point, any shape, in [0,1]. Raises TagmaskError for no values, and for NaN and others outside.
    """
    check_settings(bins, iterations, tolerance)
    if values.numel() == 0:
        raise TagmaskError("Fit of two components: there are no values; give at least one.")
    counts, outside = torch.cat(count_values(values, bins)).cpu().split([bins, 1])
    check_range(outside)
    return fit_counts(counts, iterations, tolerance)


def crossing(mixture: Mixture) -> float | None:
    """The value between the two means where both weighted densities are equal; None where there is none.

    There is none where the means are the same, or where one component outweighs the other at both means. Between
    the means the ratio of the second to the first only rises, so there is never more than one.
    """
    (w0, w1), (m0, m1), (s0, s1) = (part.tolist() for part in mixture[:3])
    if w0 <= 0 or w1 <= 0 or not m0 < m1:
        return None
    # log of the ratio of the second density to the first is a x² + b x + c
    a, b, c = _log_ratio(_Fit(w1, (m0, m1), (s0 * s0, s1 * s1)))
    if a * m0 * m0 + b * m0 + c > 0 or a * m1 * m1 + b * m1 + c < 0:
        return None
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    # Between the means the ratio rises through 0, so of the two roots it is the one with slope 2 a x + b = +root.
    # Of its two forms, the one without cancellation; it also holds for a = 0.
    return -2 * c / (b + root) if b >= 0 else (root - b) / (2 * a)


def count_values(values: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """int64 (bins,), how many values round to each i/(bins−1), and int64 (1,), 1 if some is NaN or not in [0,1]."""
    flat = values.detach().flatten().float()
    # The extremes are NaN if any value is; comparing every value was half of the cost.
    low, high = flat.aminmax() if len(flat) else (flat.new_zeros(()),) * 2
    outside = torch.logical_not((low >= 0) & (high <= 1)).long()[None]
    # What is outside of [0,1] is counted somewhere, and refused.
    place = flat.clamp(0, 1).mul_(bins - 1).add_(0.5).nan_to_num_(0).int()
    return torch.bincount(place, minlength=bins), outside


def fit_counts(counts: Tensor, iterations: int, tolerance: float) -> Mixture:
    """``fit_two_components`` of counts (bins,) at i/(bins−1), on the CPU; at least one is not 0."""
    used = counts.nonzero()[:, 0]
    x = used.double() / (len(counts) - 1)
    if len(x) == 1:
        std = math.sqrt(MIN_VARIANCE)
        return Mixture(x.new_tensor([1.0, 0.0]), x.repeat(2), x.new_tensor([std, std]))
    share = counts[used] / counts.sum(dtype=torch.float64)
    square = x.square()
    powers = torch.stack([square, x, torch.ones_like(x)])
    weighted = torch.cat([torch.stack([square * square, square * x]), powers]) * share
    whole = weighted[2:].sum(1).tolist()

    def visit(fit: _Fit) -> _Visit:
        # The posterior of the second component is a sigmoid of a quadratic; its moments are all that a step needs.
        log_ratio = x.new_tensor(_log_ratio(fit)) @ powers
        posterior = log_ratio.sigmoid()
        moments = weighted @ torch.stack([posterior, posterior * (1 - posterior)], 1)
        likelihood = _first_log_likelihood(fit, whole) + float(share @ F.softplus(log_ratio))
        return _Visit(fit, moments[2:, 0].tolist(), moments[:, 1].tolist(), likelihood)

    at = visit(_maximise(weighted[2:, _least_variance_split(x, share) :].sum(1).tolist(), whole))
    converged = False
    for index in range(iterations):
        newton = _newton(at)
        if newton is not None and newton.to_maximum:
            target = _after(at.fit, newton.step, whole)
            converged = target is not None and _moved(at.fit, target) <= tolerance
            if converged:
                break
        better = _climb(at, newton.step, whole, visit) if newton is not None and index >= EM_ROUNDS else None
        if better is None:
            # A leap that lowers the likelihood is undone.
            once = visit(_maximise(at.second, whole))
            twice = _maximise(once.second, whole)
            leap = visit(_extrapolate(at.fit, once.fit, twice))
            better = visit(_maximise(leap.second, whole) if leap.likelihood >= at.likelihood else twice)
        at = better
    weight, centres, variances = at.fit
    order = [0, 1] if centres[0] <= centres[1] else [1, 0]
    parts = ([1 - weight, weight], centres, [math.sqrt(v) for v in variances])
    weights, means, stds = (x.new_tensor([part[i] for i in order]) for part in parts)
    return Mixture(weights, means, stds, converged)


class _Fit(NamedTuple):
    weight: float
    """Of the second component."""
    means: tuple[float, float]
    variances: tuple[float, float]

    def free(self) -> list[float]:
        """The five parameters, each free to be any number."""
        logit = _log(self.weight) - _log(1 - self.weight)
        return [logit, *self.means, math.log(self.variances[0]), math.log(self.variances[1])]


class _Visit(NamedTuple):
    """What one pass over the values finds about a fit."""

    fit: _Fit
    second: list[float]
    """Moments (x², x, 1) of the second component's part: where the next step of EM begins."""
    doubt: list[float]
    """Moments (x⁴, x³, x², x, 1) of posterior · (1 − posterior)."""
    likelihood: float
    """Mean log-likelihood of a value, up to a constant."""


def _maximise(second: list[float], whole: list[float]) -> _Fit:
    """M step. second, whole: moments (x², x, 1) of the second component's part and of all."""
    means, variances = [], []
    for square, first, mass in ([w - s for w, s in zip(whole, second)], second):
        mass = max(mass, TINY)
        mean = first / mass
        means.append(mean)
        variances.append(max(square / mass - mean * mean, MIN_VARIANCE))
    return _Fit(min(max(second[2], 0.0), 1.0), (means[0], means[1]), (variances[0], variances[1]))


class _Newton(NamedTuple):
    step: list[float]
    """Of the second component's moments (x², x, 1)."""
    to_maximum: bool
    """Whether it leads to a maximum of the likelihood, and not away from another kind of point."""


def _newton(at: _Visit) -> _Newton | None:
    """A step towards the fixed point of EM, by Newton's method; None where it cannot be told.

    A fit is made from three numbers, the moments of the second component's part, and a step of EM is a map of these:
    moments → fit → coefficients of the log ratio → posteriors → moments. Its derivative J is known in full, and the
    fixed point lies (1 − J)⁻¹ · (step of EM) away. At a maximum J has eigenvalues from 0 to below 1. Along a direction
    with an eigenvalue above 1 Newton would go down the likelihood: there the step is turned round.
    """
    weight, (m0, m1), (v0, v1) = at.fit
    if not 0 < weight < 1:
        return None
    q4, q3, q2, q1, q0 = at.doubt
    slopes = np.add(_coefficient_slopes(weight, m1, v1), _coefficient_slopes(1 - weight, m0, v0))
    try:
        rates, directions = np.linalg.eig(np.array([[q4, q3, q2], [q3, q2, q1], [q2, q1, q0]]) @ slopes)
        along = np.linalg.solve(directions, np.subtract(at.second, _moments(at.fit)))
    except np.linalg.LinAlgError:  # infinite slopes, or directions that coincide, as where one component is all
        return None
    left = 1 - rates.real
    step = (directions @ (along / np.maximum(np.abs(left), 1e-9))).real
    return _Newton(step.tolist(), bool((left > 0).all()))


def _climb(at: _Visit, step: list[float], whole: list[float], visit: Callable[[_Fit], _Visit]) -> _Visit | None:
    """Where a step, or a part of it, leads to; None where it is too far or goes down the likelihood."""
    for part in (1, 1 / 4, 1 / 16):
        target = _after(at.fit, [part * change for change in step], whole)
        if target is not None and _moved(at.fit, target) <= LONGEST:
            there = visit(target)
            if there.likelihood >= at.likelihood - ROUNDING:
                return there
    return None


def _after(fit: _Fit, step: list[float], whole: list[float]) -> _Fit | None:
    """The fit with its second component's moments changed by ``step``; None where no values in [0,1] have such."""
    second = [old + change for old, change in zip(_moments(fit), step)]
    for square, first, mass in (second, [w - s for w, s in zip(whole, second)]):
        if mass <= 0 or not 0 <= first <= mass or square / mass - (first / mass) ** 2 < -MIN_VARIANCE:
            return None
    return _maximise(second, whole)


def _moments(fit: _Fit) -> list[float]:
    """(x², x, 1) of the second component's part: the inverse of ``_maximise``."""
    weight, (_, mean), (_, variance) = fit
    return [weight * (variance + mean * mean), weight * mean, weight]


def _coefficient_slopes(mass: float, mean: float, variance: float) -> list[list[float]]:
    """Derivatives of the coefficients of x², x, 1 in a component's log density, by its moments (x², x, 1)."""
    by_mean = [0.0, 1 / mass, -mean / mass]
    square = variance + mean * mean
    # Of the mean square, less that of the squared mean; a variance at its least does not follow.
    by_variance = (
        [0.0] * 3
        if variance <= MIN_VARIANCE
        else [s - 2 * mean * m for s, m in zip((1 / mass, 0.0, -square / mass), by_mean)]
    )
    return [
        [0.5 * v / variance**2 for v in by_variance],
        [(m - mean / variance * v) / variance for m, v in zip(by_mean, by_variance)],
        [
            of_mass - (mean * m + 0.5 * (1 - mean * mean / variance) * v) / variance
            for of_mass, m, v in zip((0.0, 0.0, 1 / mass), by_mean, by_variance)
        ],
    ]


def _extrapolate(fit: _Fit, once: _Fit, twice: _Fit) -> _Fit:
    """Where the steps of EM lead to if they go on shrinking as the last two did.

    (Varadhan and Roland, Simple and Globally Convergent Methods for Accelerating the Convergence of Any EM Algorithm,
    2008, the squared extrapolation with step length S3.)
    """
    start, one, two = fit.free(), once.free(), twice.free()
    first = [b - a for a, b in zip(start, one)]
    change = [c - b - r for b, c, r in zip(one, two, first)]
    bend = math.hypot(*change)
    if bend == 0:
        return twice
    length = max(math.hypot(*first) / bend, 1.0)  # 1 is EM itself
    logit, m0, m1, v0, v1 = (a + 2 * length * r + length**2 * v for a, r, v in zip(start, first, change))
    if not (0 <= m0 <= 1 and 0 <= m1 <= 1 and max(v0, v1) <= 0):
        return twice
    variances = (max(math.exp(v0), MIN_VARIANCE), max(math.exp(v1), MIN_VARIANCE))
    return _Fit(1 / (1 + math.exp(-min(max(logit, -40.0), 40.0))), (m0, m1), variances)


def _log_ratio(fit: _Fit) -> tuple[float, float, float]:
    """(a, b, c): log of the second weighted density over the first is a x² + b x + c."""
    weight, (m0, m1), (v0, v1) = fit
    prior = _log(weight) - _log(1 - weight)
    a = 0.5 / v0 - 0.5 / v1
    return a, m1 / v1 - m0 / v0, prior + 0.5 * (math.log(v0 / v1) + m0 * m0 / v0 - m1 * m1 / v1)


def _first_log_likelihood(fit: _Fit, whole: list[float]) -> float:
    """Mean log of the first weighted density, up to a constant. whole: moments (x², x, 1) of all values."""
    square, first, _ = whole
    mean, variance = fit.means[0], fit.variances[0]
    return _log(1 - fit.weight) - 0.5 * (math.log(variance) + (square - 2 * mean * first + mean * mean) / variance)


def _log(weight: float) -> float:
    return math.log(max(weight, TINY))


def _moved(before: _Fit, after: _Fit) -> float:
    steps = [before.weight - after.weight]
    steps += [x - y for x, y in zip(before.means, after.means)]
    steps += [math.sqrt(x) - math.sqrt(y) for x, y in zip(before.variances, after.variances)]
    return max(map(abs, steps))


def _least_variance_split(x: Tensor, share: Tensor) -> int:
    """Index of the first value of the upper group, for two groups with the largest variance between them.

    x ascending, at least two. (Otsu, A Threshold Selection Method from Gray-Level Histograms, 1979, equation 18.)
    """
    mass, first = share.cumsum(0), (share * x).cumsum(0)
    lower = mass[:-1]
    between = (first[-1] * lower - first[:-1]).square() / (lower * (1 - lower))
    return int(between.argmax()) + 1


def check_settings(bins: int, iterations: int, tolerance: float) -> None:
    if bins < 2 or iterations < 1 or not tolerance >= 0:
        raise TagmaskError(
            f"Fit of two components: bins is 2 or more, iterations 1 or more, tolerance not negative; got {bins}, "
            f"{iterations}, {tolerance}."
        )


def check_range(outside: Tensor) -> None:
    if outside > 0:
        raise TagmaskError(
            "Threshold of CAMs: some values are NaN or outside of [0,1]; normalise the CAMs first "
            "(tagmask.cam.normalize)."
        )
