"""Which pretrained classes a tag is made of, in loops."""

from __future__ import annotations

from torch import Tensor


def shares(probabilities: Tensor, tags: Tensor) -> list[list[float]]:
    """The association in loops. probabilities (N,S), tags (N,C)."""
    result = []
    for k in range(tags.shape[1]):
        row = []
        for s in range(probabilities.shape[1]):
            with_it = [float(p[s]) for p, t in zip(probabilities, tags) if t[k]]
            without = [float(p[s]) for p, t in zip(probabilities, tags) if not t[k]]
            mean = sum(with_it) / max(1, len(with_it)) - sum(without) / max(1, len(without))
            row.append(max(0.0, mean))
        result.append([value / max(sum(row), 1e-12) for value in row])
    return result
