"""The classes that a network was pretrained on, as an encoder: their logits at each position of an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.config import EncoderConfig
from tagmask.encoders.timm_cnn import TimmCNN, create, padded
from tagmask.encoders.weights import CLASSIFIERS, LITE0, State
from tagmask.errors import ConfigError, WeightsError
from tagmask.types import Features


class PretrainedClasses(TimmCNN):
    """A whole timm classifier whose linear layer is applied at each position of its last map (Zhou et al., 2016, CAM).

    The one map is (B,S,h,w): logits of the network's own S classes, such as the 1,000 of ImageNet. Their mean over the
    positions is what the network says of the whole image. Raises ConfigError for a network of which that does not hold
    (ConvNeXt normalises in between), and WeightsError for weights without their classifier.
    """

    @staticmethod
    def create(config: EncoderConfig) -> Any:
        body = create(config).eval()
        linear, image = body.get_classifier(), torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64)
        with torch.no_grad():
            maps = body.forward_features(image)
            fits = isinstance(linear, nn.Linear) and maps.dim() == 4 and maps.shape[1] == linear.in_features
            mean = at_positions(linear, maps).mean((-2, -1)) if fits else None
            fits = mean is not None and torch.allclose(body.forward_head(maps), mean, atol=1e-4)
        if not fits or padded(config.name):
            raise ConfigError(
                f"Encoder '{config.name}' has no CAMs of its own classes: its logits are not the mean of a linear "
                f"layer over its last map. Set encoder.name to {LITE0}, or to a plain ResNet, RegNet or EfficientNet."
            )
        return body

    @staticmethod
    def renamed(state: State, body: nn.Module) -> State:
        if not any(name.startswith(CLASSIFIERS) for name in state):
            raise WeightsError(
                "The encoder's weights come without the classifier that they were trained with, and the method reads "
                f"its classes. Set encoder.weights to a file that has it, or encoder.name={LITE0}: its package has it."
            )
        return state

    @staticmethod
    def describe(body: Any) -> tuple[list[int], list[int]]:
        return [body.num_classes], [body.feature_info[-1]["reduction"]]

    def extract(self, x: Tensor, attention: set[int], queries: set[int], keys: set[int]) -> Features:
        body: Any = self.body
        return Features(maps=[at_positions(body.get_classifier(), body.forward_features(x))])


def at_positions(linear: nn.Linear, maps: Tensor) -> Tensor:
    """A linear layer applied at each position: maps (B,D,h,w) to (B,S,h,w)."""
    bias = None if linear.bias is None else linear.bias.to(maps.dtype)
    return F.conv2d(maps, linear.weight[:, :, None, None].to(maps.dtype), bias)
