"""Learning-rate schedule: linear warm-up, then polynomial decay (the AFA family's, and DeepLab's before it)."""

from __future__ import annotations


def rate(step: int, steps: int, warmup: int, warmup_ratio: float, power: float) -> float:
    """Factor on the base learning rate at ``step`` of ``steps``, in (0, 1].

    Up to ``warmup`` it rises linearly from ``warmup_ratio`` to 1; then it is (1 − step/steps)^power.
    """
    if step < warmup:
        return warmup_ratio + (1 - warmup_ratio) * step / warmup
    return (1 - step / steps) ** power
