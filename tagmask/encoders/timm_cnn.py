"""Convolutional networks of timm as encoders, at output stride 8, 16 or 32; ResNets in both layouts."""

from __future__ import annotations

from typing import Any

import timm
from timm.models.resnet import Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.config import EncoderConfig
from tagmask.encoders.base import IMAGENET_STD, Encoder
from tagmask.encoders.weights import Weights, find_weights, load_weights
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
    Raises ConfigError if the network does not support the output stride, drop path, layout or checkpointing, and
    WeightsError if pretrained weights are not found.
    """

    def __init__(self, config: EncoderConfig, image_size: int | None = None) -> None:
        body = _create(config)
        if config.layout == "v1":
            to_v1(body)
        weights = find_weights(config)
        if weights.state is not None:
            weights.state = {_flat_key(k, body): v for k, v in weights.state.items()}
        load_weights(body, weights, lambda: [_flat_key(k, body) for k in timm.create_model(config.name).state_dict()])
        mean, std = _normalisation(config, weights, body.default_cfg)
        super().__init__("cnn", mean, std)
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
    if config.output_stride not in (None, 8, 16, 32):
        raise ConfigError(f"encoder.output_stride is {config.output_stride}; use 8, 16 or 32.")
    if config.output_stride not in (None, 32):
        options["output_stride"] = config.output_stride
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    if config.blocks is not None:
        raise ConfigError(f"encoder.blocks is for ViTs; '{config.name}' returns all its stages. Leave it out.")
    try:
        body: Any = timm.create_model(config.name, pretrained=False, features_only=True, **options)
    except (TypeError, AssertionError, NotImplementedError) as error:
        given = ", ".join(f"{k}={v}" for k, v in options.items())
        raise ConfigError(
            f"Encoder '{config.name}' cannot be built with {given or 'its stages returned'}: it does not support that. "
            "Set encoder.output_stride=32 and encoder.drop_path=0, or pick another encoder such as resnet50."
        ) from error
    if config.output_stride is not None and max(body.feature_info.reduction()) != config.output_stride:
        raise ConfigError(
            f"Encoder '{config.name}' has output stride {max(body.feature_info.reduction())}; "
            "set encoder.output_stride to that, or to none for the network's own."
        )
    return body


def _flat_key(key: str, body: nn.Module) -> str:
    """'stages.0.x' as 'stages_0.x' if timm's feature extractor has flattened the stages so."""
    parts = key.split(".", 2)
    flat = "_".join(parts[:2])
    return ".".join([flat, *parts[2:]]) if len(parts) > 2 and flat in dict(body.named_children()) else key


def _normalisation(config: EncoderConfig, weights: Weights, default: dict) -> tuple:
    v1 = (V1_MEAN, IMAGENET_STD) if config.layout == "v1" else (None, None)
    return (
        config.mean or weights.mean or v1[0] or default["mean"],
        config.std or weights.std or v1[1] or default["std"],
    )
