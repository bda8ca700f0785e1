"""Plain vision transformers of timm (ViT, DeiT, DINO, DINOv2, ...) as encoders that can record their attention."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tagmask.config import EncoderConfig
from tagmask.encoders.base import ENCODERS, IMAGENET_MEAN, IMAGENET_STD, Encoder, refuse
from tagmask.encoders.weights import load_pretrained
from tagmask.errors import ConfigError
from tagmask.types import Features

NORMALISED = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # Twice the heads of timm's ViT-S: weights would load there, but give wrong features.
    "mocov3_vit_small": ("vit_small_patch16_224", {"num_heads": 12, "pretrained_cfg_overlay": NORMALISED}),
    "mocov3_vit_base": ("vit_base_patch16_224", {"pretrained_cfg_overlay": NORMALISED}),
}
"""Encoders of MoCo v3 (Chen et al., ICCV 2021): a network of timm and what differs from it."""


class TimmViT(Encoder):
    """Patch tokens of chosen blocks as maps, after the final norm (Dosovitskiy et al., 2021, arXiv 2010.11929).

    Maps are (B, D, ceil(H / patch), ceil(W / patch)), one for each of ``config.blocks`` in ascending order; default:
    the last block. Images are zero-padded (after normalisation) at the bottom and right to whole patches, and position
    embeddings are resized to the grid. ``class_token`` is that of the last block after the final norm, or None for
    networks without one. Recorded queries and keys are (B, heads, N, d), after query and key norms if the network has
    them; attention logits are their products before the 1/sqrt(d) scale. Gradients flow through all of them.
    """

    def __init__(self, config: EncoderConfig) -> None:
        refuse(config, "dilate")
        name, options = VARIANTS.get(config.name, (config.name, {}))
        model: Any = timm.create_model(
            name,
            pretrained=False,
            num_classes=0,
            drop_path_rate=config.drop_path,
            dynamic_img_size=True,
            dynamic_img_pad=True,
            **options,
        )
        model.reset_classifier(0, "")  # also removes attention pooling, which maps do not use
        weights = load_pretrained(model, config, lambda state: checkpoint_filter_fn(state, model), name)
        default = model.pretrained_cfg
        super().__init__("vit", weights.mean or default["mean"], weights.std or default["std"])
        self.model = model
        self.depth = len(model.blocks)
        self.has_attention = all(
            hasattr(getattr(block, "attn", None), name)
            for block in model.blocks
            for name in ("qkv", "num_heads", "q_norm", "k_norm")
        )
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
        if blocks is None:
            blocks = [-1]
        if not blocks or any(not -self.depth <= b < self.depth for b in blocks):
            raise ConfigError(
                f"encoder.blocks={blocks}: give one or more of the {self.depth} blocks, 0 to {self.depth - 1}."
            )
        self.blocks = sorted({b % self.depth for b in blocks})
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
        (index,) = self.resolve([block])
        x = self._embed((images - self.mean) / self.std)[0]
        for earlier in self.model.blocks[:index]:
            x = earlier(x)
        return _recorded(self.model.blocks[index], x, stop=True)[1:]

    def extract(self, x: Tensor, attention: set[int], queries: set[int], keys: set[int]) -> Features:
        model = self.model
        x, height, width = self._embed(x)
        batch = x.shape[0]  # not len: torch.export takes that for a constant
        result = Features(maps=[], prefix=model.num_prefix_tokens)
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        begun, single = x, len(model.blocks)
        for index in range(self.depth):
            block = model.blocks[index % single]
            if index in attention | queries | keys:
                x, query, key = _recorded(block, x)
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


class _Enough(Exception):
    """Ends a block's forward pass."""


def _recorded(block: Any, x: Tensor, stop: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The block's output for tokens ``x``, its queries and its keys (B, heads, N, d). stop: ``x`` for the output.

    A hook reads the joint projection of queries, keys and values. The block itself runs unchanged, fused attention
    included, so that recording cannot change its output. With ``stop`` it runs up to the projection only: families
    differ in what comes before it (norm before or after attention).
    """
    caught: list[Tensor] = []

    def catch(module: Any, inputs: Any, output: Tensor) -> None:
        caught.append(output)
        if stop:
            raise _Enough

    attention = block.attn
    handle = attention.qkv.register_forward_hook(catch)
    try:
        x = block(x)
    except _Enough:
        pass
    finally:
        handle.remove()
    batch, tokens, _ = caught[0].shape
    query, key, _ = caught[0].reshape(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return x, attention.q_norm(query), attention.k_norm(key)


for _name in VARIANTS:
    ENCODERS.register(_name)(TimmViT)
