"""The all-MLP head of SegFormer: projects all maps, joins them on the finest grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.registry import HEADS
from tagmask.types import Features

MAPS = 4


@HEADS.register("segformer")
class SegFormer(nn.Module):
    """Xie et al., 2021 (arXiv 2105.15203), Eq. 4: project, resize, concatenate, fuse, predict.

    Takes the last four of the encoder's maps, or all where there are fewer, each (B,channels[i],h_i,w_i), to logits
    (B,num_outputs,h,w) on the finest of their grids (bilinear, corners not aligned). Options: embed, the width, and
    dropout before the prediction. The fused map is normalised in groups rather than over the batch: the same at batch
    size 1, on any number of processes, in training and test. Hidden weights start by He et al.'s rule, those of the
    last layer normal with standard deviation 0.01, biases 0.
    """

    def __init__(
        self, channels: list[int], strides: list[int], num_outputs: int, embed: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        used = channels[-MAPS:]
        self.project = nn.ModuleList(nn.Conv2d(c, embed, 1) for c in used)
        self.fuse = nn.Conv2d(embed * len(used), embed, 1, bias=False)
        self.norm = nn.GroupNorm(math.gcd(32, embed), embed)
        self.dropout = nn.Dropout2d(dropout)
        self.out = nn.Conv2d(embed, num_outputs, 1)
        for conv in [*self.project, self.fuse]:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="linear" if conv is not self.fuse else "relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, features: Features) -> Tensor:
        """Logits (B,num_outputs,h,w) on the grid of the finest map used."""
        maps = features.maps[-MAPS:]
        size = maps[0].shape[-2:]
        parts = []
        for project, x in zip(self.project, maps):
            x = project(x)
            if x.shape[-2:] != size:
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            parts.append(x)
        x = self.norm(self.fuse(torch.cat(parts, dim=1))).relu()
        return self.out(self.dropout(x))
