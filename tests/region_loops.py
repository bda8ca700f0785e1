"""Region maps of ECA in plain loops and float64, written from equations 2 to 10; for tests of operators and method."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-5


def seed_loops(
    cams: Tensor, tags: Tensor, top: float, background: float | None, most: int | None, valid: Tensor
) -> Tensor:
    result = torch.zeros(len(cams), cams.shape[1] + 1, cams[0, 0].numel(), dtype=torch.bool)
    for b in range(len(cams)):
        values = cams[b].double().flatten(1).tolist()
        maps = [[v if tags[b, c] > 0 else 0.0 for v in row] for c, row in enumerate(values)]
        positions = range(len(maps[0]))
        rest = [1 - max(row[i] for row in maps) for i in positions]
        everything = [rest, *maps]
        mine: list[list[tuple[float, int]]] = [[] for _ in everything]
        for i in positions:
            rivals = [rest[i] if background is None else background, *(row[i] for row in maps)]
            c = rivals.index(max(rivals))
            if valid[b].flatten()[i] and everything[c][i] > 0:
                mine[c].append((-everything[c][i], i))
        for c, found in enumerate(mine):
            count = max(1, round(top * len(found)))
            for _, i in sorted(found)[: count if most is None else min(count, most)]:
                result[b, c, i] = True
    return result.view(len(cams), -1, *cams.shape[-2:])


def min_max_loops(values: list[float], valid: list[bool]) -> list[float]:
    inside = [v for v, ok in zip(values, valid, strict=True) if ok]
    low = min(inside)
    return [(v - low) / (max(inside) - low + EPS) if ok else 0.0 for v, ok in zip(values, valid, strict=True)]


def cosine_loops(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def map_loops(
    keys: Tensor, query: Tensor | None, seeds: Tensor, gamma: float, cue: str, cut: float, valid: Tensor
) -> Tensor:
    result = torch.zeros(seeds.shape, dtype=torch.float64)
    for b in range(len(keys)):
        k = keys[b].double().flatten(1).T.tolist()
        ok = valid[b].flatten().tolist()
        factor = [1.0] * len(k)
        if query is not None:
            factor = [cosine_loops(query[b].double().tolist(), x) for x in k]
            factor = [float(f > cut) for f in factor] if cue == "binary" else min_max_loops(factor, ok)
        for c in range(seeds.shape[1]):
            degree = [0.0] * len(k)
            for i in seeds[b, c].flatten().nonzero().flatten().tolist():
                for j in range(len(k)):
                    degree[j] += float(cosine_loops(k[i], k[j]) > gamma)
            if c > 0:
                degree = [d * f for d, f in zip(degree, factor, strict=True)]
            result[b, c] = torch.tensor(min_max_loops(degree, ok), dtype=torch.float64).view(seeds.shape[-2:])
    return result


def calibration_loops(
    maps: Tensor,
    tokens: Tensor,
    prototypes: list[list[float] | None],
    tags: Tensor,
    valid: Tensor,
    exponent: float,
    rescale: bool,
    least: int,
) -> Tensor:
    result = maps.double().clone()
    for b in range(len(maps)):
        ok = valid[b].flatten().tolist()
        for c, prototype in enumerate(prototypes):
            if prototype is None or tags[b].sum() < least:
                continue
            s = [cosine_loops(prototype, t) for t in tokens[b].double().flatten(1).T.tolist()]
            s = min_max_loops(s, ok) if rescale else [max(v, 0.0) for v in s]
            raw = [m * v**exponent for m, v in zip(maps[b, c].double().flatten().tolist(), s, strict=True)]
            result[b, c] = torch.tensor(min_max_loops(raw, ok), dtype=torch.float64).view(maps.shape[-2:])
    return result


def mean_tokens(tokens: Tensor, seeds: Tensor) -> list[list[float] | None]:
    """Of each class: the mean token of its seeds in an image, averaged over the images that have some."""
    found: list[list[float] | None] = []
    for c in range(seeds.shape[1]):
        means = []
        for b in range(len(seeds)):
            chosen = [tokens[b, :, y, x].double() for y, x in seeds[b, c].nonzero().tolist()]
            if chosen:
                means.append(sum(chosen) / len(chosen))
        found.append((sum(means) / len(means)).tolist() if means else None)  # type: ignore[union-attr]
    return found
