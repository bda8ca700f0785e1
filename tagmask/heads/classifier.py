"""The classifier whose weights give class activation maps."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn


class Classifier(nn.Module):
    """A 1x1 convolution without bias from features to one map of logits a class, or from pooled features to scores.

    The maps are the class activation maps of Zhou et al., 2016 (arXiv 1512.04150). With 'avg' pooling a score is the
    mean of its map; with 'max' each feature's maximum over the positions goes to the convolution, and a score is not
    its map's maximum: no position has all of these features. Initial weights are normal with standard deviation 0.01,
    so that scores start near 0.

    >>> scores = Classifier(512, 20)(torch.rand(2, 512, 14, 14))  # (2, 20)
    """

    def __init__(self, channels: int, classes: int, pooling: Literal["max", "avg"] = "max") -> None:
        super().__init__()
        self.pooling = pooling
        self.conv = nn.Conv2d(channels, classes, 1, bias=False)
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, feature_map: Tensor, maps: Tensor | None = None) -> Tensor:
        """Scores (logits) of a feature map: (B,D,h,w) to (B,C). maps: what ``cam`` makes of it, if it is there."""
        if self.pooling == "max":
            return self.conv(feature_map.amax((-2, -1), keepdim=True)).flatten(1)
        return (self.cam(feature_map) if maps is None else maps).mean((-2, -1))

    def cam(self, feature_map: Tensor) -> Tensor:
        """Raw logits at each position: (B,D,h,w) to (B,C,h,w); neither rectified nor normalised."""
        return self.conv(feature_map)
