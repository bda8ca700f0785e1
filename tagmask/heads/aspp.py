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
    """Sum of 3x3 convolutions of different dilations to the logits (Chen et al., 2017, arXiv 1606.00915).

    As in the paper's ResNet-101, no layer lies between features and logits. Maps the encoder's last map,
    (B,channels[-1],h,w), to logits (B,num_outputs,h,w). Options: dilations for a map of stride 8, halved at stride 16
    and so on, so that the field of view in pixels stays the same; dropout of the features, by channel. Initial weights
    are normal with standard deviation 0.01, biases 0. Raises ConfigError without dilations and for one below 1.
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
