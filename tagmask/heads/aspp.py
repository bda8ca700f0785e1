"""The ASPP head of DeepLab-v2: parallel dilated convolutions on the last map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tagmask.errors import ConfigError
from tagmask.registry import HEADS
from tagmask.types import Features


@HEADS.register("aspp")
class ASPP(nn.Module):
    """Sum of 3x3 convolutions to the logits, each with a dilation of its own (Chen et al., 2017, arXiv 1606.00915).

    The form that its ResNet-101 has: no layer between the features and the logits. Takes the encoder's last map,
    (B,channels[-1],h,w), to logits (B,num_outputs,h,w). Options: dilations on a map of stride 8, which are halved at
    stride 16 and so on, so that the head sees the same pixels; dropout of the features, by channel. Weights start
    normal with standard deviation 0.01, biases 0. Raises ConfigError without a dilation.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_outputs: int,
        dilations: Sequence[int] = (6, 12, 18, 24),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise ConfigError(f"Head 'aspp': dilations are one or more numbers from 1 on, got {list(dilations)}.")
        scaled = [max(1, round(dilation * 8 / strides[-1])) for dilation in dilations]
        self.dropout = nn.Dropout2d(dropout)
        self.branches = nn.ModuleList(
            nn.Conv2d(channels[-1], num_outputs, 3, padding=dilation, dilation=dilation) for dilation in scaled
        )
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(branch.bias)  # type: ignore[arg-type]

    def forward(self, features: Features) -> Tensor:
        """Logits (B,num_outputs,h,w) on the grid of the last map."""
        x = self.dropout(features.maps[-1])
        return torch.stack([branch(x) for branch in self.branches]).sum(0)
