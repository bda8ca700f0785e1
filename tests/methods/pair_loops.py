"""Pairs of positions and the cost of their affinities, in loops from the equations."""

from __future__ import annotations

import math

import torch

from tagmask.types import IGNORE


def loop_pairs(labels: torch.Tensor, radius: float) -> dict[frozenset[int], int]:
    """Every pair of an (h,w) map closer than the radius, by the definition of the three sets."""
    height, width = labels.shape
    found = {}
    for y in range(height):
        for x in range(width):
            for v in range(height):
                for u in range(width):
                    if (y, x) == (v, u) or math.dist((y, x), (v, u)) >= radius:
                        continue
                    a, b = int(labels[y, x]), int(labels[v, u])
                    kind = IGNORE if IGNORE in (a, b) else 0 if a != b else 1 if a == 0 else 2
                    found[frozenset((y * width + x, v * width + u))] = kind
    return found


def loop_loss(affinity: torch.Tensor, kinds: torch.Tensor) -> dict[str, float]:
    sums = {"fg": [0.0, 0], "bg": [0.0, 0], "neg": [0.0, 0]}
    for a, kind in zip(affinity.flatten().tolist(), kinds.flatten().tolist()):
        if kind == IGNORE:
            continue
        name = {2: "fg", 1: "bg", 0: "neg"}[kind]
        sums[name][0] -= math.log((1 - a if kind == 0 else a) + 1e-5)
        sums[name][1] += 1
    return {name: total / max(1, count) for name, (total, count) in sums.items()}
