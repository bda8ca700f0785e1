"""The classes that a network was pretrained on, as an encoder: their logits at each position of an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.config import EncoderConfig
from tagmask.encoders.timm_cnn import TimmCNN, create
from tagmask.encoders.weights import CLASSIFIERS, LITE0, State
from tagmask.errors import ConfigError, WeightsError
from tagmask.types import Features


class PretrainedClasses(TimmCNN):
    """A whole timm classifier whose linear layer is applied at each position of its last map (Zhou et al., 2016, CAM).

    The one map is (B,S,h,w), logits of the network's own S classes, such as the 1,000 of ImageNet. Their mean over the
    positions are the network's logits of the image. Raises ConfigError for a network of which that does not hold
    (ConvNeXt normalises in between), and WeightsError for weights without their classifier.
    """

    @staticmethod
    def create(config: EncoderConfig) -> Any:
        body = create(config).eval()
        linear, image = body.get_classifier(), torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            maps = body.forward_features(image)
            fits = isinstance(linear, nn.Linear) and maps.dim() == 4 and maps.shape[1] == linear.in_features
            mean = at_positions(linear, maps).mean((-2, -1)) if fits else None
            fits = mean is not None and torch.allclose(body.forward_head(maps), mean, atol=1e-4)
        if not fits:
            raise ConfigError(
                f"Encoder '{config.name}': its logits are no mean over the positions of its last map, so its classes "
                f"have no CAMs. Set encoder.name to {LITE0}, or to a plain ResNet, RegNet or EfficientNet."
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
        with torch.no_grad():
            side = body.eval().forward_features(torch.zeros(1, 3, 64, 64)).shape[-1]
        return [body.num_classes], [64 // side]

    def extract(self, x: Tensor, attention: set[int], queries: set[int], keys: set[int]) -> Features:
        body: Any = self.body
        return Features(maps=[at_positions(body.get_classifier(), body.forward_features(x))])


def at_positions(linear: nn.Linear, maps: Tensor) -> Tensor:
    """A linear layer applied at each position: maps (B,D,h,w) to (B,S,h,w)."""
    bias = None if linear.bias is None else linear.bias.to(maps.dtype)
    return F.conv2d(maps, linear.weight[:, :, None, None].to(maps.dtype), bias)
