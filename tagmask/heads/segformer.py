"""The all-MLP head of SegFormer: project all maps, concatenate them on the finest grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tagmask.errors import ConfigError
from tagmask.registry import HEADS
from tagmask.tensors import resize
from tagmask.types import Features

MAPS = 4


@HEADS.register("segformer")
class SegFormer(nn.Module):
    """Xie et al., 2021 (arXiv 2105.15203), Eq. 4: project, resize, concatenate, fuse, predict.

    Maps the encoder's last four maps (all if there are fewer), each (B,channels[i],h_i,w_i), to logits
    (B,num_outputs,h,w) on the finest of their grids. Options: embed, the number of channels; dropout before the
    prediction; norm of the fused maps: 'group', with which the result depends neither on the batch nor on the number
    of processes, or the paper's 'batch'. Initial weights: He et al.'s in the hidden layers, normal with standard
    deviation 0.01 in the last; biases 0. Raises ConfigError for another norm.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_outputs: int,
        embed: int = 256,
        dropout: float = 0.1,
        norm: str = "group",
    ) -> None:
        super().__init__()
        if norm not in ("group", "batch"):
            raise ConfigError(f"Head 'segformer': norm is group or batch, got {norm!r}.")
        used = channels[-MAPS:]
        self.project = nn.ModuleList(nn.Conv2d(c, embed, 1) for c in used)
        self.fuse = nn.Conv2d(embed * len(used), embed, 1, bias=False)
        self.norm = nn.BatchNorm2d(embed) if norm == "batch" else nn.GroupNorm(math.gcd(32, embed), embed)
        self.dropout = nn.Dropout2d(dropout)
        self.out = nn.Conv2d(embed, num_outputs, 1)
        for conv in [*self.project, self.fuse]:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu" if conv is self.fuse else "linear")
        for conv in [*self.project, self.out]:
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.out.weight, std=0.01)

    def forward(self, features: Features) -> Tensor:
        """Logits (B,num_outputs,h,w) on the grid of the finest map used."""
        maps = features.maps[-MAPS:]
        parts = [resize(project(x), maps[0].shape[-2:]) for project, x in zip(self.project, maps)]
        x = self.norm(self.fuse(torch.cat(parts, dim=1))).relu()
        return self.out(self.dropout(x))
