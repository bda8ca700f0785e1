"""The UPerNet head: pooled context on the coarsest map, a feature pyramid over all maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.errors import ConfigError
from tagmask.heads.segformer import MAPS
from tagmask.registry import HEADS
from tagmask.tensors import resize
from tagmask.types import Features


@HEADS.register("upernet")
class UPerNet(nn.Module):
    """Xiao et al., 2018 (arXiv 1807.10221): pyramid pooling on the last map, then a feature pyramid.

    Pyramid pooling: for each n in ``bins`` the last map is averaged over n x n cells, projected and resized back; all
    are fused with the map. Feature pyramid: each finer map is projected and the resized coarser level added. All
    levels are concatenated on the finest grid and fused. Maps the encoder's last four maps (all if there are fewer),
    each (B,channels[i],h_i,w_i), to logits (B,num_outputs,h,w) on the finest of their grids.

    Options: embed, the number of channels; bins; dropout before the prediction. Group norm replaces the paper's batch
    norm, as in ``SegFormer``. Initial weights: He et al.'s in the hidden layers, normal with standard deviation 0.01 in
    the last; its bias 0. Raises ConfigError without bins and for one below 1.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_outputs: int,
        embed: int = 256,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not bins or min(bins) < 1:
            raise ConfigError(f"Head 'upernet': bins are one or more numbers from 1 on, got {list(bins)}.")
        used = channels[-MAPS:]
        self.bins = list(bins)
        self.pooled = nn.ModuleList(layer(used[-1], embed, 1) for _ in self.bins)
        self.context = layer(used[-1] + embed * len(self.bins), embed, 3)
        self.lateral = nn.ModuleList(layer(c, embed, 1) for c in used[:-1])
        self.smooth = nn.ModuleList(layer(embed, embed, 3) for _ in used[:-1])
        self.fuse = layer(embed * len(used), embed, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.out = nn.Conv2d(embed, num_outputs, 1)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, features: Features) -> Tensor:
        """Logits (B,num_outputs,h,w) on the grid of the finest map used."""
        maps = features.maps[-MAPS:]
        coarse = maps[-1]
        parts = [
            resize(project(F.adaptive_avg_pool2d(coarse, n)), coarse.shape[-2:])
            for n, project in zip(self.bins, self.pooled)
        ]
        top = self.context(torch.cat([coarse, *parts], dim=1))
        levels = [top]
        for x, lateral, smooth in zip(maps[-2::-1], list(self.lateral)[::-1], list(self.smooth)[::-1]):
            top = lateral(x) + resize(top, x.shape[-2:])
            levels.append(smooth(top))
        joined = torch.cat([resize(level, maps[0].shape[-2:]) for level in reversed(levels)], dim=1)
        return self.out(self.dropout(self.fuse(joined)))


def layer(inputs: int, outputs: int, size: int, dilation: int = 1) -> nn.Sequential:
    """A ``size`` x ``size`` convolution that keeps the grid, group norm, ReLU."""
    groups = math.gcd(32, outputs, max(1, outputs // 8))  # at least 8 channels a group: a bin may be one position
    reach = size // 2 * dilation
    conv = nn.Conv2d(inputs, outputs, size, padding=reach, dilation=dilation, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(groups, outputs), nn.ReLU())
