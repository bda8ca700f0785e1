"""The compact head: few channels and group norm on the last map, joined with a finer map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagmask.errors import ConfigError
from tagmask.heads.upernet import layer
from tagmask.registry import HEADS
from tagmask.tensors import resize
from tagmask.types import Features


@HEADS.register("compact")
class Compact(nn.Module):
    """A 1x1 convolution and a dilated 3x3 on the last map; with ``skip``, a 3x3 on both this and a finer map.

    The second part is the decoder of DeepLab-v3+ (Chen et al., 2018, arXiv 1802.02611) with one convolution instead of
    two: the finer map is projected to few channels, so that it does not outweigh the coarse one. Each convolution has
    group norm and ReLU. Maps (B,channels[i],h_i,w_i) become logits (B,num_outputs,h,w) on the finer map's grid.

    Options: hidden channels; dilation of the 3x3 on the last map; dropout before the prediction; skip, the stride of
    the finer map; skip_channels, what it is projected to. Initial weights: He et al.'s in the hidden
    layers, normal with standard deviation 0.01 in the last; its bias 0. Raises ConfigError where the encoder has no map
    of the stride ``skip``.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_outputs: int,
        hidden: int = 256,
        dilation: int = 2,
        dropout: float = 0.1,
        skip: int | None = None,
        skip_channels: int = 32,
    ) -> None:
        super().__init__()
        if skip and skip not in strides:
            known = sorted(set(strides))
            raise ConfigError(f"Head 'compact': the encoder has no map of stride skip={skip}; it has {known}.")
        self.reduce = layer(channels[-1], hidden, 1)
        self.context = layer(hidden, hidden, 3, dilation)
        self.finer = len(strides) - 1 - strides[::-1].index(skip) if skip else None
        if self.finer is not None:
            self.project = layer(channels[self.finer], skip_channels, 1)
            self.join = layer(hidden + skip_channels, hidden, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.out = nn.Conv2d(hidden, num_outputs, 1)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, features: Features) -> Tensor:
        """Logits (B,num_outputs,h,w) on the grid of the last map, or of the map that ``skip`` names."""
        x = self.context(self.reduce(features.maps[-1]))
        if self.finer is not None:
            finer = self.project(features.maps[self.finer])
            x = self.join(torch.cat([resize(x, finer.shape[-2:]), finer], dim=1))
        return self.out(self.dropout(x))
