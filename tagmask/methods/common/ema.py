"""Teachers: exponential moving averages of networks, which label what the trained networks learn from.

``train.ema`` is another average: of the whole method, used for scores and for the saved model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Teacher(nn.ModuleDict):
    """Averages of networks, by name: copies that stay in evaluation mode and take no gradient."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__(copy.deepcopy(dict(networks)))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Teacher:
        """Evaluation mode, whatever the mode of the method."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, networks: Mapping[str, nn.Module], momentum: float) -> None:
        """average ← momentum · average + (1 − momentum) · network, over parameters and buffers, in place.

        Buffers of whole numbers, such as counts of batches, are copied. networks: those that it was made of. momentum:
        0 to 1.
        """
        source = nn.ModuleDict(networks)
        mine = [*self.parameters(), *self.buffers()]
        theirs = [*source.parameters(), *source.buffers()]
        pairs = list(zip(mine, theirs, strict=True))
        blended = [(a, b) for a, b in pairs if a.is_floating_point()]
        get_ema_multi_avg_fn(momentum)([a for a, _ in blended], [b for _, b in blended], None)
        for a, b in pairs:
            if not a.is_floating_point():
                a.copy_(b)
