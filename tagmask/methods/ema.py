"""Running averages of networks, as teachers in training; not a method.

``train.ema`` is another thing: an average of the whole method that is only scored.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """A copy in evaluation mode whose parameters take no gradient, and so enter no optimiser."""
    return copy.deepcopy(module).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, source: nn.Module, momentum: float) -> None:
    """average ← momentum · average + (1 − momentum) · source, over parameters and buffers, in place.

    Buffers of whole numbers, such as counts of batches, are copied. Both modules have the same structure. momentum:
    0 to 1.
    """
    blend = get_ema_multi_avg_fn(momentum)
    mine = [*average.parameters(), *average.buffers()]
    theirs = [*source.parameters(), *source.buffers()]
    pairs = list(zip(mine, theirs, strict=True))
    blended = [(a, b) for a, b in pairs if a.is_floating_point()]
    if blended:
        blend([a for a, _ in blended], [b for _, b in blended], None)
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)
