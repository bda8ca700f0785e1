"""Convolutional networks of timm as encoders, at output stride 8, 16 or 32; ResNets in both layouts."""

from __future__ import annotations

from typing import Any

import timm
from timm.models.resnet import Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.config import EncoderConfig
from tagmask.encoders.base import IMAGENET_STD, Encoder, output_stride, refuse
from tagmask.encoders.weights import State, load_pretrained
from tagmask.errors import ConfigError
from tagmask.types import Features

V1_MEAN = (0.485, 0.458, 0.408)
V1_EPS = 1.001e-5

PADDED = ("convnext", "densenet", "dla", "hrnet", "inception_next", "vgg")
"""Families whose maps would miss a part of the image, or not fit together, if a stride does not divide its size."""


class TimmCNN(Encoder):
    """All stages of a timm network that describes its stages (``feature_info``), finest first.

    Map i is (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])). Below output stride 32 the late stages keep
    their resolution and dilate. For the families in ``PADDED``, images are zero-padded (after normalisation) at the
    bottom and right, and maps are cropped to the size above.
    ``layout: v1`` is the ResNet of He et al., 2016 (arXiv 1512.03385): a bottleneck has its stride in the first 1x1
    convolution, where current ResNets have it in the 3x3; batch norm's eps is 1.001e-5.
    """

    def __init__(self, config: EncoderConfig) -> None:
        refuse(config, "blocks")
        body = _create(config)
        mean, std = body.default_cfg["mean"], body.default_cfg["std"]
        if config.layout == "v1":
            to_v1(body)
            mean, std = V1_MEAN, IMAGENET_STD
        weights = load_pretrained(body, config, lambda state: _flat(state, body), config.name)
        super().__init__("cnn", weights.mean or mean, weights.std or std)
        self.body = body
        self.channels = list(body.feature_info.channels())
        self.strides = list(body.feature_info.reduction())
        self.weights_origin = weights.origin
        self.norm_eval = config.norm_eval
        self.pads = timm.models.model_entrypoint(config.name).__module__.rpartition(".")[2] in PADDED
        if config.checkpointing:
            for child in body.children():
                if getattr(child, "inplace", False):
                    child.inplace = False  # it would overwrite the input of the recomputation
            try:
                body.set_grad_checkpointing(True)
            except (AttributeError, AssertionError) as error:
                raise ConfigError(
                    f"Encoder '{config.name}' cannot recompute activations; set encoder.checkpointing=false."
                ) from error

    def extract(self, x: Tensor, attention: set[int], queries: set[int], keys: set[int]) -> Features:
        height, width = x.shape[-2:]
        if self.pads:
            stride = max(self.strides)
            x = F.pad(x, (0, -width % stride, 0, -height % stride))
        maps = self.body(x)
        if self.pads:
            maps = [m[..., : -(-height // s), : -(-width // s)] for m, s in zip(maps, self.strides)]
        return Features(maps=list(maps))


def to_v1(network: nn.Module) -> None:
    """Move the stride of every bottleneck from its 3x3 to its first 1x1 convolution, in place.

    In a stage that dilates instead of striding, the first 3x3 comes after the stage's stride in v1, so it gets the
    dilation of its stage. Raises ConfigError when the network has no plain bottlenecks.
    """
    blocks = [m for m in network.modules() if isinstance(m, Bottleneck)]
    if not blocks or any(not isinstance(b.aa, nn.Identity) for b in blocks):
        raise ConfigError("encoder.layout=v1 is for ResNets with plain bottlenecks (resnet50, resnet101, resnet152).")
    for block in blocks:
        first, middle = block.conv1, block.conv2
        first.stride, middle.stride = middle.stride, (1, 1)
        middle.dilation = middle.padding = (block.dilation, block.dilation)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = V1_EPS


def _create(config: EncoderConfig) -> Any:
    options: dict[str, Any] = {}
    stride = output_stride(config, 32)
    if stride < 32:
        options["output_stride"] = stride
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    try:
        body: Any = timm.create_model(config.name, pretrained=False, features_only=True, **options)
    except (TypeError, AssertionError, NotImplementedError) as error:
        given = ", ".join(f"{k}={v}" for k, v in options.items())
        raise ConfigError(
            f"Encoder '{config.name}' cannot be built with {given or 'its stages returned'}: it does not support that. "
            "Set encoder.output_stride=32 and encoder.drop_path=0, or pick another encoder such as resnet50."
        ) from error
    found = max(body.feature_info.reduction())
    if config.output_stride not in (None, found):
        raise ConfigError(
            f"Encoder '{config.name}' has output stride {found}; "
            "set encoder.output_stride to that, or to null for the network's own."
        )
    return body


def _flat(state: State, body: nn.Module) -> State:
    """Weights under the names of timm's feature extractor, which makes 'stages_0' of 'stages.0' where it flattens."""
    result = {}
    stages = dict(body.named_children())
    for name, value in state.items():
        first, _, rest = name.partition(".")
        second, dot, last = rest.partition(".")
        flat = f"{first}_{second}"
        result[f"{flat}.{last}" if dot and flat in stages else name] = value
    return result
