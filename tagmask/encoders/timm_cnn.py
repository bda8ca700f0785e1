"""Convolutional networks of timm as encoders, at output stride 8, 16 or 32; ResNets in both layouts."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.config import EncoderConfig
from tagmask.encoders.base import IMAGENET_STD, Encoder, output_stride, refuse
from tagmask.encoders.resnet_layout import V1_MEAN, has_layouts, set_layout, undilate
from tagmask.encoders.weights import State, load_pretrained
from tagmask.errors import ConfigError
from tagmask.types import Features

PADDED = ("convnext", "densenet", "dla", "hrnet", "inception_next", "vgg")
"""Families whose maps would miss a part of the image, or not fit together, if a stride does not divide its size."""


class TimmCNN(Encoder):
    """All stages of a timm network that describes its stages (``feature_info``), finest first.

    Map i is (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])). Below output stride 32 the late stages keep
    their resolution and dilate; with ``dilate: false`` a ResNet's do not dilate. For the families in ``PADDED``, images
    are zero-padded (after normalisation) at the bottom and right, and maps are cropped to the size above.
    ``layout: v1`` is the ResNet of He et al., 2016 (arXiv 1512.03385): a bottleneck has its stride in the first 1x1
    convolution, where current ResNets have it in the 3x3; batch norm's eps is 1.001e-5. ``auto`` goes by the content of
    the weights. The buffer ``v1`` keeps the layout with them, of networks that have two.
    """

    v1: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        refuse(config, "blocks")
        body = self.create(config)
        if config.layout == "v1" and not has_layouts(body):
            raise ConfigError(
                f"encoder.layout=v1 is for ResNets with plain bottlenecks (resnet50), not for '{config.name}'."
            )
        weights = load_pretrained(body, config, lambda state: self.renamed(state, body), config.name)
        v1 = "v1" in (config.layout, weights.layout)
        mean, std = (V1_MEAN, IMAGENET_STD) if v1 else (body.default_cfg["mean"], body.default_cfg["std"])
        super().__init__("cnn", weights.mean or mean, weights.std or std)
        self.body = body
        if has_layouts(body):
            self.register_buffer("v1", torch.tensor(v1))
            self.register_load_state_dict_post_hook(_follow_mark)
            set_layout(body, v1)
        self.channels, self.strides = self.describe(body)
        self.weights_origin = weights.origin
        self.norm_eval = config.norm_eval
        self.pads = padded(config.name)
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

    @staticmethod
    def create(config: EncoderConfig) -> Any:
        """The network, with random weights. Raises ConfigError for settings that it does not support."""
        body = create(config, features_only=True)
        found = max(body.feature_info.reduction())
        if config.output_stride not in (None, found):
            raise ConfigError(
                f"Encoder '{config.name}' has output stride {found}; "
                "set encoder.output_stride to that, or to null for the network's own."
            )
        return body

    @staticmethod
    def renamed(state: State, body: nn.Module) -> State:
        """Weights under the names of ``body``: where timm flattens stages it makes 'stages_0' of 'stages.0'."""
        result = {}
        stages = dict(body.named_children())
        for name, value in state.items():
            first, _, rest = name.partition(".")
            second, dot, last = rest.partition(".")
            flat = f"{first}_{second}"
            result[f"{flat}.{last}" if dot and flat in stages else name] = value
        return result

    @staticmethod
    def describe(body: Any) -> tuple[list[int], list[int]]:
        """Channels and strides of the maps."""
        return list(body.feature_info.channels()), list(body.feature_info.reduction())

    def extract(self, x: Tensor, attention: set[int], queries: set[int], keys: set[int]) -> Features:
        height, width = x.shape[-2:]
        if self.pads:
            stride = max(self.strides)
            x = F.pad(x, (0, -width % stride, 0, -height % stride))
        maps = self.body(x)
        if self.pads:
            maps = [m[..., : -(-height // s), : -(-width // s)] for m, s in zip(maps, self.strides)]
        return Features(maps=list(maps))


def _follow_mark(encoder: TimmCNN, *others: Any) -> None:
    set_layout(encoder.body, bool(encoder.v1))


def padded(name: str) -> bool:
    """Whether a timm network is of a family in ``PADDED``."""
    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2] in PADDED


def create(config: EncoderConfig, **wanted: Any) -> Any:
    """A timm network at the configured output stride. wanted: of it, such as its stages. Raises ConfigError."""
    options: dict[str, Any] = {}
    stride = output_stride(config, 32)
    if stride < 32:
        options["output_stride"] = stride
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    try:
        body: Any = timm.create_model(config.name, pretrained=False, **wanted, **options)
    except (TypeError, AssertionError, NotImplementedError) as error:
        given = ", ".join(f"{k}={v}" for k, v in options.items())
        raise ConfigError(
            f"Encoder '{config.name}' cannot be built with {given or 'these settings'}: it does not support that. "
            "Set encoder.output_stride=32 and encoder.drop_path=0, or pick another encoder such as resnet50."
        ) from error
    if not config.dilate and not undilate(body):
        raise ConfigError(f"encoder.dilate=false is for ResNets, not for '{config.name}'; leave it at true.")
    return body
