"""CoSA's equations in plain loops and float64, for tests of operators and of the method."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from tagmask.types import IGNORE


def places(grid: Tensor) -> list[tuple[int, ...]]:
    """All indices of a tensor."""
    return list(itertools.product(*map(range, grid.shape)))


def bilinear_loops(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,K,h,w) on a grid of ``size``: corners not aligned, the border repeated."""

    def shares(new: int, old: int) -> list[tuple[int, int, float]]:
        found = []
        for i in range(new):
            at = min(max((i + 0.5) * old / new - 0.5, 0.0), old - 1.0)
            first = min(int(at), old - 2) if old > 1 else 0
            found.append((first, min(first + 1, old - 1), at - first))
        return found

    result = maps.new_zeros(*maps.shape[:2], *size)
    for y, (top, bottom, down) in enumerate(shares(size[0], maps.shape[-2])):
        for x, (left, right, along) in enumerate(shares(size[1], maps.shape[-1])):
            upper = (1 - along) * maps[..., top, left] + along * maps[..., top, right]
            lower = (1 - along) * maps[..., bottom, left] + along * maps[..., bottom, right]
            result[..., y, x] = (1 - down) * upper + down * lower
    return result


def photo_loops(boxes: Tensor, image: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """bool (B,h,w): positions whose centre lies on a pixel of the box."""
    result = torch.zeros(len(boxes), *grid, dtype=torch.bool)
    for b, y, x in places(result):
        x0, y0, x1, y1 = boxes[b].tolist()
        row, column = int((y + 0.5) * image[0] / grid[0]), int((x + 0.5) * image[1] / grid[1])
        result[b, y, x] = x0 <= column < x1 and y0 <= row < y1
    return result


def assignment_loops(cams: Tensor, trusted: Tensor, xi: float, low: float | None = None) -> tuple[Tensor, Tensor]:
    """Equation 3 on the CAMs' own grid, with ``low`` 255 in between: labels and ν."""
    labels, confidence = torch.zeros_like(cams[:, 0], dtype=torch.long), torch.zeros_like(cams[:, 0])
    values, counts = cams.movedim(1, -1).tolist(), trusted.tolist()
    for b, y, x in places(labels):
        column = [value if counts[b][c] else 0.0 for c, value in enumerate(values[b][y][x])]
        nu = max(column)
        unsure = low is not None and nu >= low
        labels[b, y, x] = column.index(nu) + 1 if nu >= xi else IGNORE if unsure else 0
        confidence[b, y, x] = nu
    return labels, confidence


def perplexity_loops(confidence: Tensor, xi: float, alpha: float, beta: float) -> Tensor:
    """Equation 4; 0 where its logarithm would be negative."""
    result = []
    for nu in confidence.flatten().tolist():
        d = (nu - xi) / (1 - xi) if nu >= xi else (xi - nu) / xi
        result.append(math.inf if d == 0 else max(-math.log(alpha * d), 0.0) ** beta)
    return torch.tensor(result, dtype=confidence.dtype).view_as(confidence)


def cam_to_seg_loops(logits: Tensor, labels: Tensor, doubt: Tensor | None) -> float:
    """Equation 5 with reliability as the reciprocal of perplexity, and the mean over the batch's pixels R."""
    known, unsure = labels.flatten().tolist(), torch.ones_like(labels) if doubt is None else doubt
    pixels = [i for i, label in enumerate(known) if label != IGNORE]
    reliability = [1 / p for p in unsure.flatten().tolist()]
    everything = sum(reliability[i] for i in pixels)
    scores = logits.movedim(1, -1).flatten(0, 2).tolist()
    total = 0.0
    for i in pixels:
        log_probability = scores[i][known[i]] - math.log(sum(math.exp(s) for s in scores[i]))
        weight = len(pixels) * reliability[i] / everything
        total -= weight * log_probability
    return total / len(pixels)


def segmentation_label_loops(seg: Tensor, tags: Tensor, temperature: float) -> Tensor:
    """Equation 7."""
    result = torch.zeros_like(seg)
    for b, y, x in places(seg[:, 0]):
        scores = seg[b, :, y, x].tolist()
        kept = [k == 0 or bool(tags[b, k - 1] != 0) for k in range(len(scores))]
        top = max(s for s, keep in zip(scores, kept) if keep)
        exponentials = [math.exp((s - top) / temperature) if keep else 0.0 for s, keep in zip(scores, kept)]
        result[b, :, y, x] = torch.tensor([e / sum(exponentials) for e in exponentials], dtype=seg.dtype)
    return result


def seg_to_cam_loops(cams: Tensor, target: Tensor, valid: Tensor | None, rectify: bool = False) -> float:
    """Equation 8 for labels (B,C+1,h,w) of equation 7 on the CAMs' grid."""
    positions = [p for p in places(cams[:, 0]) if valid is None or valid[p]]
    total = 0.0
    for b, y, x in positions:
        for c in range(cams.shape[1]):
            m, t = float(cams[b, c, y, x]), float(target[b, c + 1, y, x])
            p = 1 / (1 + math.exp(-max(m, 0.0) if rectify else -m))
            total -= t * math.log(p) + (1 - t) * math.log(1 - p)
    return total / (cams.shape[1] * len(positions))


def separation_loops(cams: Tensor, labels: Tensor, doubt: Tensor, epsilon: float, temperature: float) -> float:
    """Equations 9 and 10, image by image, anchors without a positive left out."""
    images = []
    for m, y, p in zip(cams, labels, doubt):
        omega = [q for q in places(y) if p[q] <= epsilon and y[q] != IGNORE]
        vector = {q: m[:, q[0], q[1]].tolist() for q in omega}

        def likeness(a: tuple[int, ...], b: tuple[int, ...], vector: dict = vector) -> float:
            return math.exp(cosine(vector[a], vector[b]) / temperature)

        anchors = []
        for a in omega:
            positive = [q for q in omega if y[q] == y[a] and q != a]
            negative = [q for q in omega if y[q] != y[a]]
            if positive:
                k = sum(likeness(a, n) for n in negative)
                anchors.append(-sum(math.log(likeness(a, q) / (likeness(a, q) + k)) for q in positive) / len(positive))
        if anchors:
            images.append(sum(anchors) / len(anchors))
    return sum(images) / len(images)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b)) / (math.hypot(*a) * math.hypot(*b))


Part = tuple[float, float, float]  # share of all values, mean, standard deviation


def density(x: float, part: Part) -> float:
    share, mean, std = part
    return share * math.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def moments_loops(values: list[tuple[float, float]], total: float) -> Part:
    """Of pairs (value, how many): their share of ``total``, mean and standard deviation, at least 1e-3."""
    mass = sum(number for _, number in values)
    mean = sum(number * x for x, number in values) / mass
    variance = sum(number * (x - mean) ** 2 for x, number in values) / mass
    return mass / total, mean, max(math.sqrt(variance), 1e-3)


def three_components_loops(values: list[tuple[float, float]]) -> tuple[float, Part, Part, bool]:
    """EM for pairs (value, how many): the share at 0, whose place is fixed, two normal distributions, convergence.

    A value at 0 has a probability there under the first component, and only a density under the others: it is the
    first's. It starts from the two groups of the other values with the least variance within.
    """
    total = sum(number for _, number in values)
    others = sorted((x, number) for x, number in values if x > 0)
    within = []
    for i in range(1, len(others)):
        halves = [moments_loops(half, 1) for half in (others[:i], others[i:])]
        within.append(sum(mass * std**2 for mass, _, std in halves))
    cut = others[within.index(min(within)) + 1][0]
    belongs = [(float(x == 0), float(0 < x < cut), float(x >= cut)) for x, _ in values]
    parts: list[Part] = []
    for _ in range(2001):
        masses = [[(x, number * b[k]) for (x, number), b in zip(values, belongs)] for k in range(3)]
        zero, before = sum(mass for _, mass in masses[0]) / total, parts
        parts = [moments_loops(masses[k], total) for k in (1, 2)]
        belongs = []
        for x, _ in values:
            one, two = density(x, parts[0]), density(x, parts[1])
            belongs.append((1.0, 0.0, 0.0) if x == 0 else (0.0, one / (one + two), two / (one + two)))
        # Shares of the values above 0, as the package has them, are what has to stand still.
        changes = [abs(a - b) for old, new in zip(before, parts) for a, b in zip(old[1:], new[1:])]
        changes += [abs(old[0] - new[0]) / (1 - zero) for old, new in zip(before, parts)]
        if before and max(changes) <= 1e-6:
            break
    lower, upper = sorted(parts, key=lambda part: part[1])
    return zero, lower, upper, bool(before) and max(changes) <= 1e-6


def threshold_loops(values: list[float]) -> float | None:
    """CoSA's ξ of CAM values of the tags at positions of the photos: None where it stays as it was."""
    rounded = [int(nu * 1023 + 0.5) for nu in values]
    pairs = [(i / 1023, float(rounded.count(i))) for i in sorted(set(rounded))]
    zeros, number = rounded.count(0), len(rounded) - rounded.count(0)
    if number == 0:
        return None
    near = sum(0 < i / 1023 < 0.05 for i in rounded)
    if zeros >= (zeros + number) / 4 and near < 1.3 * 0.05 * min(zeros, number):
        return 0.05
    zero, lower, upper, converged = three_components_loops(pairs)
    lower, upper = ((share / (1 - zero), mean, std) for share, mean, std in (lower, upper))
    if not converged or min(lower[0], upper[0]) < 1e-3 or crossing_loops(lower, upper) is None:
        return None
    single = moments_loops([pair for pair in pairs if pair[0] > 0], number)
    bic_one, bic_two = 2 * math.log(number), 5 * math.log(number)
    for i in rounded:
        if i > 0:
            bic_one -= 2 * math.log(density(i / 1023, single))
            bic_two -= 2 * math.log(density(i / 1023, lower) + density(i / 1023, upper))
    curve = [density(i / 1023, lower) + density(i / 1023, upper) for i in range(1024)]
    first, last = round(lower[1] * 1023), round(upper[1] * 1023)
    found = crossing_loops(lower, upper)
    if bic_one <= bic_two or min(curve[first : last + 1]) > 0.9 * min(curve[first], curve[last]):
        return None
    return None if found is None or found > 0.8 else max(found, 0.05)


def crossing_loops(lower: Part, upper: Part) -> float | None:
    """Where the second weighted density overtakes the first between the means, by halving."""
    low, high = lower[1], upper[1]
    if density(low, upper) > density(low, lower) or density(high, upper) < density(high, lower):
        return None
    for _ in range(60):
        middle = (low + high) / 2
        below = density(middle, upper) < density(middle, lower)
        low, high = (middle, high) if below else (low, middle)
    return low
