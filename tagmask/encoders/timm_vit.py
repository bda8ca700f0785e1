"""Plain vision transformers of timm (ViT, DeiT, DINO, DINOv2, ...) as encoders that can record their attention."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tagmask.config import EncoderConfig
from tagmask.encoders.base import Encoder
from tagmask.encoders.weights import find_weights, load_weights
from tagmask.errors import ConfigError
from tagmask.types import Features


class TimmViT(Encoder):
    """Patch tokens of chosen blocks as maps, after the final norm (Dosovitskiy et al., 2021, arXiv 2010.11929).

    Maps are (B, D, ceil(H / patch), ceil(W / patch)), one for each of ``config.blocks`` in ascending order, by default
    the last block's only. Images are zero-padded (after normalisation) at the bottom and right to whole patches, and
    position embeddings are resized to the grid. ``class_token`` is the last block's, normed, or None for networks
    without one. Recorded queries and keys are (B, heads, N, d), after the network's own query and key norms if it has
    them; attention logits are their products before the 1/sqrt(d) scale. Gradients flow through all of them.
    """

    def __init__(self, config: EncoderConfig, image_size: int | None = None) -> None:
        model = _create(config)
        weights = find_weights(config)
        if weights.state is not None:
            weights.state = checkpoint_filter_fn(weights.state, model)
        load_weights(model, weights, lambda: timm.create_model(config.name).state_dict())
        default = model.pretrained_cfg
        super().__init__(
            "vit", config.mean or weights.mean or default["mean"], config.std or weights.std or default["std"]
        )
        self.model = model
        self.depth = len(model.blocks)
        self.has_attention = all(_recordable(block) for block in model.blocks)
        self.heads = [block.attn.num_heads for block in model.blocks] if self.has_attention else []
        self.blocks = self._chosen(config.blocks)
        self.patch = int(model.patch_embed.patch_size[0])
        self.channels = [model.embed_dim] * len(self.blocks)
        self.strides = [self.patch] * len(self.blocks)
        self.weights_origin = weights.origin
        self.checkpointing = config.checkpointing

    def extract(self, x: Tensor, attention: set[int], queries: set[int], keys: set[int]) -> Features:
        model = self.model
        x = model.patch_embed(x)  # (B, h, w, D)
        batch, height, width, _ = x.shape
        x = model.norm_pre(model.patch_drop(model._pos_embed(x)))
        result = Features(maps=[], prefix=model.num_prefix_tokens)
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        for index, block in enumerate(model.blocks):
            if index in attention | queries | keys:
                x, query, key = _run_recorded(block, x)
                if index in attention:
                    result.attention_logits[index] = query @ key.transpose(-2, -1)
                if index in queries:
                    result.queries[index] = query
                if index in keys:
                    result.keys[index] = key
            elif recompute:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if index in self.blocks:
                patches = self._norm(x)[:, model.num_prefix_tokens :]
                result.maps.append(patches.transpose(1, 2).reshape(batch, -1, height, width))
        if model.cls_token is not None:
            result.class_token = self._norm(x[:, 0])
        return result

    def _norm(self, tokens: Tensor) -> Tensor:
        """The final norm, which average-pooled networks keep behind their pooling."""
        return self.model.fc_norm(self.model.norm(tokens))

    def _chosen(self, blocks: list[int] | None) -> list[int]:
        if blocks is None:
            return [self.depth - 1]
        wrong = [b for b in blocks if not -self.depth <= b < self.depth]
        if wrong or not blocks:
            raise ConfigError(
                f"encoder.blocks={blocks}: give one or more of the {self.depth} blocks, 0 to {self.depth - 1}."
            )
        return sorted({b % self.depth for b in blocks})


def _create(config: EncoderConfig) -> Any:
    if config.layout != "default":
        raise ConfigError(f"encoder.layout={config.layout} is for ResNets; '{config.name}' is a ViT.")
    model = timm.create_model(
        config.name,
        pretrained=False,
        num_classes=0,
        drop_path_rate=config.drop_path,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )
    if not isinstance(model, VisionTransformer):
        raise ConfigError(f"Encoder '{config.name}' is a {type(model).__name__}, not a plain ViT.")
    model.reset_classifier(0, "")  # also drops attention pooling, which no map passes through
    return model


def _recordable(block: Any) -> bool:
    attention = getattr(block, "attn", None)
    return all(hasattr(attention, name) for name in ("qkv", "num_heads", "q_norm", "k_norm"))


def _run_recorded(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The block's own output and its queries and keys (B, heads, N, d).

    The block runs as ever, fused attention included, so that recording cannot change its output; only the output of
    its joint projection is picked up on the way.
    """
    caught: list[Tensor] = []
    attention = block.attn
    handle = attention.qkv.register_forward_hook(lambda module, inputs, output: caught.append(output))
    try:
        x = block(x)
    finally:
        handle.remove()
    batch, tokens, _ = caught[0].shape
    query, key, _ = caught[0].reshape(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return x, attention.q_norm(query), attention.k_norm(key)
