"""The classifier whose weights give class activation maps."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn


class Classifier(nn.Module):
    """A 1x1 convolution without bias to one map of logits a class, pooled to scores.

    With 'avg' pooling a score is the mean of its map, and the map is the class activation map of Zhou et al., 2016
    (arXiv 1512.04150); with 'max' it is the maximum. Initial weights are normal with standard deviation 0.01, so that
    scores start near 0.

    >>> scores = Classifier(512, 20)(torch.rand(2, 512, 14, 14))  # (2, 20)
    """

    def __init__(self, channels: int, classes: int, pooling: Literal["max", "avg"] = "max") -> None:
        super().__init__()
        self.pooling = pooling
        self.conv = nn.Conv2d(channels, classes, 1, bias=False)
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Scores (logits) of a feature map: (B,D,h,w) to (B,C)."""
        return self.pool(self.cam(feature_map))

    def cam(self, feature_map: Tensor) -> Tensor:
        """Raw logits at each position: (B,D,h,w) to (B,C,h,w); neither rectified nor normalised."""
        return self.conv(feature_map)

    def pool(self, logits: Tensor) -> Tensor:
        """Scores of maps that ``cam`` gave: (B,C,h,w) to (B,C)."""
        return logits.amax(dim=(-2, -1)) if self.pooling == "max" else logits.mean(dim=(-2, -1))
