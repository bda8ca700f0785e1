"""Plain vision transformers of timm (ViT, DeiT, DINO, DINOv2, ...) as encoders that can record their attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tagmask.config import EncoderConfig
from tagmask.encoders.base import ENCODERS, IMAGENET_MEAN, IMAGENET_STD, Encoder
from tagmask.encoders.weights import find_weights, load_weights
from tagmask.errors import ConfigError
from tagmask.types import Features


class Variant(NamedTuple):
    """A network of timm with other options and another normalisation of images."""

    name: str
    options: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]


VARIANTS = {
    # Twice the heads of timm's ViT-S: weights would load there, but give wrong features.
    "mocov3_vit_small": Variant("vit_small_patch16_224", {"num_heads": 12}, IMAGENET_MEAN, IMAGENET_STD),
    "mocov3_vit_base": Variant("vit_base_patch16_224", {}, IMAGENET_MEAN, IMAGENET_STD),
}
"""Encoders of MoCo v3 (Chen et al., ICCV 2021)."""


class TimmViT(Encoder):
    """Patch tokens of chosen blocks as maps, after the final norm (Dosovitskiy et al., 2021, arXiv 2010.11929).

    Maps are (B, D, ceil(H / patch), ceil(W / patch)), one for each of ``config.blocks`` in ascending order; default:
    the last block. Images are zero-padded (after normalisation) at the bottom and right to whole patches, and position
    embeddings are resized to the grid. ``class_token`` is that of the last block after the final norm, or None for
    networks without one. Recorded queries and keys are (B, heads, N, d), after query and key norms if the network has
    them; attention logits are their products before the 1/sqrt(d) scale. Gradients flow through all of them.
    """

    def __init__(self, config: EncoderConfig, image_size: int | None = None) -> None:
        model = _create(config)
        weights = find_weights(config)
        if weights.state is not None:
            weights.state = checkpoint_filter_fn(weights.state, model)
        variant = VARIANTS.get(config.name)
        load_weights(model, weights, lambda: timm.create_model(variant.name if variant else config.name).state_dict())
        mean, std = variant[2:] if variant else (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
        super().__init__("vit", config.mean or weights.mean or mean, config.std or weights.std or std)
        self.model = model
        self.depth = len(model.blocks)
        self.has_attention = all(_recordable(block) for block in model.blocks)
        self.heads = [block.attn.num_heads for block in model.blocks] if self.has_attention else []
        self.patch = int(model.patch_embed.patch_size[0])
        self.loops, self.add_last = 0, True
        self.has_class_token = model.cls_token is not None
        self.default_blocks = config.blocks is None
        self.return_blocks(config.blocks)
        self.weights_origin = weights.origin
        self.checkpointing = config.checkpointing

    def return_blocks(self, blocks: list[int] | None) -> None:
        """From now on return the maps of these blocks; ``blocks`` as in ``config.blocks``. Raises ConfigError."""
        self.blocks = self._chosen(blocks)
        self.channels = [self.model.embed_dim] * len(self.blocks)
        self.strides = [self.patch] * len(self.blocks)

    def set_loops(self, loops: int, add_last: bool = True) -> None:
        """From now on pass the tokens through all blocks ``loops`` times, each pass with a residual connection.

        Huo et al., Dual Progressive Transformations for Weakly Supervised Semantic Segmentation, equation 3; the final
        norm comes once, at the end. 0: one plain pass. add_last: whether the last pass has the residual connection.
        ``depth`` becomes that of the unrolled network, blocks are numbered through all passes, and returned blocks are
        those of the last pass. ``queries_keys`` does not support loops.
        """
        single, heads = len(self.model.blocks), self.heads[: len(self.model.blocks)]
        passes = max(1, loops)
        self.blocks = [block % single + (passes - 1) * single for block in self.blocks]
        self.depth, self.heads = passes * single, passes * heads
        self.loops, self.add_last = loops, add_last

    def queries_keys(self, images: Tensor, block: int = -1) -> tuple[Tensor, Tensor]:
        """Queries and keys of one block as ``forward`` records them, (B,heads,N,d) each, without what follows.

        images: as in ``forward``. Neither the block's own attention nor any later block is computed.
        Raises ConfigError when the encoder has no such block.
        """
        (index,) = self._resolve([block])
        x = self._embed((images - self.mean) / self.std)[0]
        for earlier in self.model.blocks[:index]:
            x = earlier(x)
        return _project(self.model.blocks[index], x)

    def extract(self, x: Tensor, attention: set[int], queries: set[int], keys: set[int]) -> Features:
        model = self.model
        x, height, width = self._embed(x)
        batch = len(x)
        result = Features(maps=[], prefix=model.num_prefix_tokens)
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        begun, single = x, len(model.blocks)
        for index in range(self.depth):
            block = model.blocks[index % single]
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
            if self.loops and (index + 1) % single == 0 and (self.add_last or index + 1 < self.depth):
                x = begun = begun + x
            if index in self.blocks:
                patches = self._norm(x)[:, model.num_prefix_tokens :]
                result.maps.append(patches.transpose(1, 2).reshape(batch, -1, height, width))
        if model.cls_token is not None:
            result.class_token = self._norm(x[:, 0])
        return result

    def _embed(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Tokens (B,N,D) before the first block, and the grid of patches."""
        model = self.model
        x = model.patch_embed(x)  # (B, h, w, D)
        return model.norm_pre(model.patch_drop(model._pos_embed(x))), x.shape[1], x.shape[2]

    def _norm(self, tokens: Tensor) -> Tensor:
        """The final norm; average-pooled networks have it after their pooling (``fc_norm``)."""
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
    name, options, *_ = VARIANTS.get(config.name) or (config.name, {})
    model = timm.create_model(
        name,
        pretrained=False,
        num_classes=0,
        drop_path_rate=config.drop_path,
        dynamic_img_size=True,
        dynamic_img_pad=True,
        **options,
    )
    if not isinstance(model, VisionTransformer):
        raise ConfigError(f"Encoder '{config.name}' is a {type(model).__name__}, not a plain ViT.")
    model.reset_classifier(0, "")  # also removes attention pooling, which maps do not use
    return model


def _recordable(block: Any) -> bool:
    attention = getattr(block, "attn", None)
    return all(hasattr(attention, name) for name in ("qkv", "num_heads", "q_norm", "k_norm"))


def _run_recorded(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The block's own output and its queries and keys (B, heads, N, d).

    A hook reads the output of the joint projection. The block itself runs unchanged, fused attention included, so
    that recording cannot change its output.
    """
    caught: list[Tensor] = []
    handle = block.attn.qkv.register_forward_hook(lambda module, inputs, output: caught.append(output))
    try:
        x = block(x)
    finally:
        handle.remove()
    return x, *_split(block.attn, caught[0])


class _Enough(Exception):
    """Carries a block's joint projection out of its forward pass."""


def _project(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The block's queries and keys (B, heads, N, d); an exception ends its forward pass after their projection.

    Families differ in what comes before it (norm before or after attention), so the block's own code runs up to it.
    """

    def stop(module: Any, inputs: Any, output: Tensor) -> None:
        raise _Enough(output)

    handle = block.attn.qkv.register_forward_hook(stop)
    try:
        block(x)
    except _Enough as enough:
        return _split(block.attn, enough.args[0])
    finally:
        handle.remove()
    raise AssertionError("the block does not run its own projection")


def _split(attention: Any, projected: Tensor) -> tuple[Tensor, Tensor]:
    batch, tokens, _ = projected.shape
    query, key, _ = projected.reshape(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return attention.q_norm(query), attention.k_norm(key)


for _name in VARIANTS:
    ENCODERS.register(_name)(TimmViT)
