"""The threshold between background and foreground, found from the CAM values themselves."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagmask import comm
from tagmask.errors import TagmaskError

BINS = 1024
MIN_VARIANCE = 1e-6
"""Added to each variance, as usual in EM: a component that shrinks to one value would have infinite density."""

TINY = 1e-300
"""Stands for 0 where it would be divided by or have its logarithm taken."""


class Mixture(NamedTuple):
    """Two weighted normal distributions on a line, the one with the lower mean first. Each float64 (2,), on the CPU."""

    weights: Tensor
    means: Tensor
    stds: Tensor


def fit_two_components(values: Tensor, bins: int = BINS, iterations: int = 1000, tolerance: float = 1e-6) -> Mixture:
    """Maximum-likelihood mixture of two normal distributions, by expectation maximisation.

    (Co-training with Swapping Assignments, ECCV 2024, section 3.3, assumes it of CAM values.) Values are rounded to
    i/(bins−1), counted on their device, and the counts fitted in float64 on the CPU, so the cost of a step does not
    grow with the number of values. It starts from the split into two groups with the least variance within (the best
    that k-means can find), draws nothing at random, and stops when a step moves no mean, standard deviation or weight
    by more than ``tolerance``, after about ``iterations`` steps at the latest. Each variance is enlarged by 1e-6.
    Values that are all the same (to rounding) give both components that value as mean, and weights 1 and 0.

    values: floating point, any shape, in [0,1]. Raises TagmaskError for no values, and for NaN and others outside.
    """
    _check_settings(bins, iterations, tolerance)
    if values.numel() == 0:
        raise TagmaskError("Fit of two components: there are no values; give at least one.")
    counts, outside = torch.cat(_count(values, bins)).cpu().split([bins, 1])
    _check_range(outside)
    return _fit(counts, iterations, tolerance)


def crossing(mixture: Mixture) -> float | None:
    """The value between the two means where both weighted densities are equal; None where there is none.

    There is none where the means are the same, or where one component outweighs the other at both means. Between
    the means the ratio of the second to the first only rises, so there is never more than one.
    """
    (w0, w1), (m0, m1), (s0, s1) = (part.tolist() for part in mixture)
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


class DynamicThreshold(nn.Module):
    """Threshold ξ that follows the distribution of the CAMs of the last batches.

    (Co-training with Swapping Assignments, ECCV 2024, section 3.3, "Dynamic Threshold".) Each batch gives its CAM
    values, the maximum over the tagged classes at each position, to a queue of batches; ξ is the ``crossing`` of the
    two components fitted to the queue, and stays as it was where there is none. Equation 6 defines ξ by a sum of two
    products over all values, which no number format can hold; the crossing is the threshold that puts each value in
    the component that is the more probable for it.

    Values of exactly 0 are left out: ReLU has put them there, from anywhere below. A normal distribution would shrink
    on them, take all other values for foreground, and the threshold would be next to 0.

    queue: batches kept; the queue starts empty. initial: ξ until the first fit, in [0,1]. bins: a batch is kept as its
    counts on a grid of that many values, so the memory is queue·bins·8 bytes (0.8 MB), whatever the CAMs' size.
    iterations, tolerance: see ``fit_two_components``; each fit runs to convergence from its own start.

    Buffers: ``value`` (float32 scalar, ξ), ``counts`` and ``batches``, so saving the module saves its state. With
    several processes the counts of all are summed, and all get the same ξ.

    Example:
        >>> threshold = DynamicThreshold(initial=0.5)
        >>> xi = threshold.update(torch.rand(2, 3, 28, 28), torch.tensor([[1, 0, 1], [0, 1, 0]]))
    """

    value: Tensor
    counts: Tensor
    batches: Tensor

    def __init__(
        self, queue: int = 100, initial: float = 0.5, bins: int = BINS, iterations: int = 1000, tolerance: float = 1e-6
    ) -> None:
        super().__init__()
        _check_settings(bins, iterations, tolerance)
        if queue < 1:
            raise TagmaskError(f"Dynamic threshold: the queue holds at least 1 batch, got {queue}.")
        if not 0 <= initial <= 1:
            raise TagmaskError(f"Dynamic threshold: initial is a value of normalised CAMs, 0 to 1, got {initial}.")
        self.bins = bins
        self.iterations = iterations
        self.tolerance = tolerance
        self.register_buffer("value", torch.tensor(float(initial)))
        self.register_buffer("counts", torch.zeros(queue, bins, dtype=torch.int64))
        self.register_buffer("batches", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def update(self, cams: Tensor, tags: Tensor, valid: Tensor | None = None) -> Tensor:
        """Put a batch's CAM values in the queue, drop the oldest, fit again; returns ``value``.

        cams: (B,C,h,w) in [0,1], floating point. tags: (B,C) of 0/1; images without a tag give no values. valid: bool
        (B,h,w), positions that are photo and not padding; default: all. With several processes all must call it.
        Raises TagmaskError when shapes do not fit and for NaN and values outside of [0,1], in all processes alike.
        """
        if cams.dim() != 4 or tags.shape != cams.shape[:2]:
            raise TagmaskError(
                f"Dynamic threshold takes cams (B,C,h,w) and tags (B,C), "
                f"got {tuple(cams.shape)} and {tuple(tags.shape)}."
            )
        values = cams.masked_fill(tags[:, :, None, None] <= 0, 0).amax(1)
        if valid is not None:
            if valid.shape != values.shape:
                raise TagmaskError(
                    f"Dynamic threshold: valid is (B,h,w), {tuple(values.shape)} here, got {tuple(valid.shape)}."
                )
            values = values.masked_fill(~valid, 0)
        counts, outside = comm.all_sum(torch.cat(_count(values, self.bins))).split([self.bins, 1])
        counts[0] = 0
        place = self.batches % len(self.counts)
        queued = self.counts.sum(0) - self.counts[place][0] + counts
        queued, outside = torch.cat([queued, outside]).cpu().split([self.bins, 1])  # the only wait for the device
        _check_range(outside)
        self.counts[place] = counts
        self.batches += 1
        found = crossing(_fit(queued, self.iterations, self.tolerance)) if queued.any() else None
        if found is not None:
            self.value.fill_(found)
        return self.value


def _count(values: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """int64 (bins,), how many values round to each i/(bins−1), and int64 (1,), how many are NaN or not in [0,1]."""
    # Places 1 to bins; below, above and NaN go to the ends. In few passes: over all values this is most of the time.
    place = values.detach().flatten().float().mul(bins - 1).add_(1.5).clamp_(0, bins + 1).nan_to_num_(0).int()
    counts = torch.bincount(place, minlength=bins + 2)
    return counts[1:-1], counts[:1] + counts[-1:]


def _fit(counts: Tensor, iterations: int, tolerance: float) -> Mixture:
    """EM on counts (bins,) at i/(bins−1), on the CPU; at least one is not 0."""
    used = counts.nonzero()[:, 0]
    x = used.double() / (len(counts) - 1)
    if len(x) == 1:
        std = math.sqrt(MIN_VARIANCE)
        return Mixture(x.new_tensor([1.0, 0.0]), x.repeat(2), x.new_tensor([std, std]))
    share = counts[used] / counts.sum(dtype=torch.float64)
    powers = torch.stack([x.square(), x, torch.ones_like(x)])
    weighted = powers * share
    whole = weighted.sum(1).tolist()

    def step(fit: _Fit) -> tuple[_Fit, Tensor]:
        """One step of EM, and the log of the densities' ratio that it used."""
        # The posterior of the second component is a sigmoid of a quadratic; its moments are all that a step needs.
        log_ratio = x.new_tensor(_log_ratio(fit)) @ powers
        return _maximise((weighted @ log_ratio.sigmoid()).tolist(), whole), log_ratio

    def likelihood(fit: _Fit, log_ratio: Tensor) -> float:
        return _first_log_likelihood(fit, whole) + float(share @ F.softplus(log_ratio))

    fit = _maximise(weighted[:, _least_variance_split(x, share) :].sum(1).tolist(), whole)
    for _ in range(0, iterations, 3):
        once, ratio = step(fit)
        twice, _ = step(once)
        if _moved(once, twice) <= tolerance:
            fit = twice
            break
        # EM alone takes hundreds of steps where the components overlap. A leap that lowers the likelihood is undone.
        leap = _extrapolate(fit, once, twice)
        after, leap_ratio = step(leap)
        fit = after if likelihood(leap, leap_ratio) >= likelihood(fit, ratio) else twice
    weight, means, variances = fit
    order = [0, 1] if means[0] <= means[1] else [1, 0]
    parts = ([1 - weight, weight], means, [math.sqrt(v) for v in variances])
    return Mixture(*(x.new_tensor([part[i] for i in order]) for part in parts))


class _Fit(NamedTuple):
    weight: float
    """Of the second component."""
    means: tuple[float, float]
    variances: tuple[float, float]

    def free(self) -> list[float]:
        """The five parameters, each free to be any number."""
        logit = _log(self.weight) - _log(1 - self.weight)
        return [logit, *self.means, math.log(self.variances[0]), math.log(self.variances[1])]


def _maximise(second: list[float], whole: list[float]) -> _Fit:
    """M step. second, whole: moments (x², x, 1) of the second component's part and of all."""
    means, variances = [], []
    for square, first, mass in ([w - s for w, s in zip(whole, second)], second):
        mass = max(mass, TINY)
        mean = first / mass
        means.append(mean)
        variances.append(max(square / mass - mean * mean, 0.0) + MIN_VARIANCE)
    return _Fit(min(max(second[2], 0.0), 1.0), (means[0], means[1]), (variances[0], variances[1]))


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


def _check_settings(bins: int, iterations: int, tolerance: float) -> None:
    if bins < 2 or iterations < 1 or not tolerance >= 0:
        raise TagmaskError(
            f"Fit of two components: bins is 2 or more, iterations 1 or more, tolerance not negative; got {bins}, "
            f"{iterations}, {tolerance}."
        )


def _check_range(outside: Tensor) -> None:
    if outside > 0:
        raise TagmaskError(
            f"Threshold of CAMs: {int(outside)} values are NaN or outside of [0,1]; normalise the CAMs first "
            "(tagmask.cam.normalize)."
        )
