"""The UPerNet head: pooled context on the coarsest map, a feature pyramid over all maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.errors import ConfigError
from tagmask.registry import HEADS
from tagmask.types import Features

MAPS = 4


@HEADS.register("upernet")
class UPerNet(nn.Module):
    """Xiao et al., 2018 (arXiv 1807.10221): pyramid pooling on the last map, then a feature pyramid, joined.

    Pyramid pooling: the last map is averaged over ``bins`` x ``bins`` cells for each of ``bins``, projected, resized
    back and fused with it. Feature pyramid: each finer map, projected, plus the coarser one, resized. All levels are
    joined on the finest grid and fused. Takes the last four of the encoder's maps, or all where there are fewer, each
    (B,channels[i],h_i,w_i), to logits (B,num_outputs,h,w) on the finest of their grids (bilinear, corners not aligned).

    Options: embed, the width; bins; dropout before the prediction. Layers are normalised in groups, as in
    ``SegFormer``, where the paper does it over the batch. Hidden weights start by He et al.'s rule, those of the last
    layer normal with standard deviation 0.01, its bias 0. Raises ConfigError without a bin.
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
            resized(project(F.adaptive_avg_pool2d(coarse, n)), coarse) for n, project in zip(self.bins, self.pooled)
        ]
        top = self.context(torch.cat([coarse, *parts], dim=1))
        levels = [top]
        for x, lateral, smooth in zip(maps[-2::-1], list(self.lateral)[::-1], list(self.smooth)[::-1]):
            top = lateral(x) + resized(top, x)
            levels.append(smooth(top))
        finest = maps[0]
        joined = torch.cat([resized(level, finest) for level in reversed(levels)], dim=1)
        return self.out(self.dropout(self.fuse(joined)))


def layer(inputs: int, outputs: int, size: int) -> nn.Sequential:
    """A convolution of ``size`` that keeps the grid, normalisation in groups, ReLU."""
    groups = math.gcd(32, outputs, max(1, outputs // 8))  # of 8 channels at least: a bin may be a single position
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(groups, outputs), nn.ReLU())


def resized(x: Tensor, like: Tensor) -> Tensor:
    """``x`` on the grid of ``like``, bilinear."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
