"""Swin transformers of timm as encoders."""

from __future__ import annotations

from typing import Any

import timm
from timm.models.swin_transformer import checkpoint_filter_fn
from torch import Tensor
from torch.nn import functional as F

from tagmask.config import EncoderConfig
from tagmask.encoders.base import Encoder, refuse
from tagmask.encoders.weights import load_pretrained
from tagmask.types import Features


class TimmSwin(Encoder):
    """The four stages of a Swin transformer (Liu et al., 2021, arXiv 2103.14030), the last after the final norm.

    Map i is (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])), finest first. Images are zero-padded (after
    normalisation) at the bottom and right to whole patches. Attention is within windows and is not recorded.
    """

    def __init__(self, config: EncoderConfig) -> None:
        refuse(config, "blocks", "dilate")
        model: Any = timm.create_model(
            config.name, pretrained=False, num_classes=0, drop_path_rate=config.drop_path, strict_img_size=False
        )
        weights = load_pretrained(model, config, lambda state: checkpoint_filter_fn(state, model), config.name)
        default = model.pretrained_cfg
        super().__init__("swin", weights.mean or default["mean"], weights.std or default["std"])
        self.model = model
        self.patch = int(model.patch_embed.patch_size[0])
        self.depth = sum(len(stage.blocks) for stage in model.layers)
        self.channels = [info["num_chs"] for info in model.feature_info]
        self.strides = [info["reduction"] for info in model.feature_info]
        self.weights_origin = weights.origin
        model.set_grad_checkpointing(config.checkpointing)

    def extract(self, x: Tensor, attention: set[int], queries: set[int], keys: set[int]) -> Features:
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        return Features(maps=self.model.forward_intermediates(x, norm=True, intermediates_only=True))
