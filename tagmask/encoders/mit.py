"""Mix Transformers B0 to B5, the encoders of SegFormer (Xie et al., NeurIPS 2021, arXiv 2105.15203)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tagmask.config import EncoderConfig
from tagmask.encoders.base import ENCODERS, IMAGENET_MEAN, IMAGENET_STD, Encoder, output_stride, refuse
from tagmask.encoders.weights import State, load_pretrained, renamed
from tagmask.types import Features

VARIANTS = {
    "mit_b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": ((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": ((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": ((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": ((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": ((64, 128, 320, 512), (3, 6, 40, 3)),
}
"""Channels and blocks of the four stages (Table 6 of the paper)."""
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
KERNELS = (7, 3, 3, 3)
EXPANSION = 4
STRIDES = {8: (4, 2, 1, 1), 16: (4, 2, 2, 1), 32: (4, 2, 2, 2)}
"""Strides of the stages by output stride; the paper's is 32, weakly supervised methods take 16 (AFA, TSCD)."""

BLOCK_EPS = 1e-6
"""eps of the norms in blocks and after stages in the published training; other norms have 1e-5."""
UNIFORM_EPS = 1e-5
"""eps of all norms in the transformers library, used for weights in its layout."""


class MiT(Encoder):
    """The four stages of a Mix Transformer, each after its LayerNorm, finest first.

    Map i is (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])). ``config.output_stride`` 8, 16 or 32 (or
    None, the paper's 32) sets the strides of the stages. Blocks are numbered over all stages; ``heads`` has one entry a
    block. Recorded queries are (B, heads, N, d) for the N = h*w positions of the block's stage in row order, keys
    (B, heads, M, d), and attention logits (B, heads, N, M), their products before the 1/sqrt(d) scale. The first three
    stages reduce keys by 8, 4 and 2 a side, so that only blocks of the last stage have M = N. Gradients flow through
    all of them; there is no class token and no prefix.
    Norms have the eps of the network that the weights come from: 1e-5 for weights in the layout of the transformers
    library, for all others 1e-6 in blocks and after stages. The buffer ``uniform_eps`` keeps this with the weights.
    A stage smaller than its reduction is zero-padded for its keys; the published networks fail there.
    """

    uniform_eps: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        refuse(config, "blocks", "dilate")
        super().__init__("mit", IMAGENET_MEAN, IMAGENET_STD)
        channels, depths = VARIANTS[config.name]
        strides = STRIDES[output_stride(config, 32)]
        self.model = MixTransformer(channels, depths, strides, config.drop_path)
        weights = load_pretrained(self.model, config, from_published)
        uniform = any("encoder.patch_embeddings." in name for name in weights.state or ())
        self.register_buffer("uniform_eps", torch.tensor(uniform))
        self.register_load_state_dict_post_hook(_follow_mark)
        _set_eps(self.model, uniform)
        self.channels = list(channels)
        self.strides = list(accumulate(strides, mul))
        self.depth = sum(depths)
        self.heads = [heads for heads, depth in zip(HEADS, depths) for _ in range(depth)]
        self.has_attention = True
        self.weights_origin = weights.origin
        self.checkpointing = config.checkpointing

    def extract(self, x: Tensor, attention: set[int], queries: set[int], keys: set[int]) -> Features:
        result = Features(maps=[])
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        index = 0
        stages: Any = self.model.stages
        for stage in stages:
            tokens, height, width = stage.embed(x)
            for block in stage.blocks:
                if recompute:
                    tokens, query, key = checkpoint(block, tokens, height, width, use_reentrant=False)
                else:
                    tokens, query, key = block(tokens, height, width)
                if index in attention:
                    result.attention_logits[index] = query @ key.transpose(-2, -1)
                if index in queries:
                    result.queries[index] = query
                if index in keys:
                    result.keys[index] = key
                index += 1
            x = to_map(stage.norm(tokens), height, width)
            result.maps.append(x)
        return result


for _name in VARIANTS:
    ENCODERS.register(_name)(MiT)


class MixTransformer(nn.Module):
    """Weights of the four stages; ``MiT`` runs them."""

    def __init__(
        self, channels: Sequence[int], depths: Sequence[int], strides: Sequence[int], drop_path: float
    ) -> None:
        super().__init__()
        total = sum(depths)
        rates = [drop_path * i / (total - 1) for i in range(total)]
        self.stages = nn.ModuleList()
        inputs = 3
        for i, (outputs, depth) in enumerate(zip(channels, depths)):
            own, rates = rates[:depth], rates[depth:]
            self.stages.append(Stage(inputs, outputs, KERNELS[i], strides[i], HEADS[i], REDUCTIONS[i], own))
            inputs = outputs
        self.apply(_initialise)


class Stage(nn.Module):
    """Overlapping patch embedding, blocks (one for each drop path rate), norm."""

    def __init__(
        self, inputs: int, channels: int, kernel: int, stride: int, heads: int, reduction: int, rates: Sequence[float]
    ) -> None:
        super().__init__()
        self.embed = Embedding(inputs, channels, kernel, stride)
        self.blocks = nn.ModuleList(Block(channels, heads, reduction, rate) for rate in rates)
        self.norm = nn.LayerNorm(channels, eps=BLOCK_EPS)


class Embedding(nn.Module):
    """Overlapped patch merging, a strided convolution: (B,D,H,W) → normed tokens (B,h*w,D'), h = ceil(H/stride), w."""

    def __init__(self, inputs: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, channels, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        height, width = x.shape[-2:]
        return self.norm(to_tokens(x)), height, width


class Block(nn.Module):
    """Attention and Mix-FFN, each with a norm before it and a residual connection; also returns queries and keys."""

    def __init__(self, channels: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=BLOCK_EPS)
        self.attn = Attention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=BLOCK_EPS)
        self.mlp = MixFFN(channels, channels * EXPANSION)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        mixed, query, key = self.attn(self.norm1(x), height, width)
        x = x + self.drop_path(mixed)
        x = x + self.drop_path(self.mlp(self.norm2(x), height, width))
        return x, query, key


class Attention(nn.Module):
    """Efficient self-attention (Eqs. 1 and 2): keys and values from a grid that is ``reduction`` times coarser.

    As in the published networks, the reduction is a strided convolution with a norm, and the cells that do not fill a
    whole window at the bottom and right give no key.
    """

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.reduction = reduction
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, channels = x.shape
        query = self.q(x).reshape(batch, tokens, self.heads, -1).transpose(1, 2)
        if self.reduction > 1:
            grid = to_map(x, height, width)
            if min(height, width) < self.reduction:
                grid = F.pad(grid, (0, max(0, self.reduction - width), 0, max(0, self.reduction - height)))
            coarse = self.norm(to_tokens(self.sr(grid)))
        else:
            coarse = x
        key, value = self.kv(coarse).reshape(batch, -1, 2, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, channels)), query, key


class MixFFN(nn.Module):
    """Two linear layers with a 3x3 depthwise convolution between them, whose zero padding encodes positions (Eq. 3)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = self.dwconv(to_map(self.fc1(x), height, width))
        return self.fc2(F.gelu(to_tokens(x)))


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B,h*w,D) → (B,D,h,w), a view in channels-last memory."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, height, width)


def to_tokens(x: Tensor) -> Tensor:
    """(B,D,h,w) → (B,h*w,D)."""
    return x.flatten(2).transpose(1, 2)


TRANSFORMERS = [
    (r"^(?:segformer\.)?encoder\.", ""),
    (r"^patch_embeddings\.(\d)\.", r"stages.\1.embed."),
    (r"^block\.(\d)\.", r"stages.\1.blocks."),
    (r"^layer_norm\.(\d)\.", r"stages.\1.norm."),
    (r"\.embed\.layer_norm\.", ".embed.norm."),
    (r"\.layer_norm_([12])\.", r".norm\1."),
    (r"\.attention\.self\.query\.", ".attn.q."),
    (r"\.attention\.self\.sr\.", ".attn.sr."),
    (r"\.attention\.self\.layer_norm\.", ".attn.norm."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
]
"""Names in files of the transformers library (SegformerModel, SegformerForImageClassification) to names here."""

ORIGINAL = [
    (rf"^{theirs}{stage + 1}\.", f"stages.{stage}.{own}.")
    for stage in range(4)
    for theirs, own in (("patch_embed", "embed"), ("block", "blocks"), ("norm", "norm"))
]
"""Names in the authors' files, which count stages from 1, to names here."""


def from_published(state: State) -> State:
    """Weights under this module's names, from files in the layout of the authors or of the transformers library.

    Names of neither layout stay as they are, so that loading refuses them.
    """
    result = renamed(state, ORIGINAL + TRANSFORMERS)
    for name in [n for n in result if ".attention.self.key." in n]:
        other = name.replace(".self.key.", ".self.value.")
        if other in result:  # else both names stay, and loading reports them
            joint = name.replace(".attention.self.key.", ".attn.kv.")
            result[joint] = torch.cat([result.pop(name), result.pop(other)])
    return result


def _follow_mark(encoder: MiT, *others: Any) -> None:
    _set_eps(encoder.model, bool(encoder.uniform_eps))


def _set_eps(model: Any, uniform: bool) -> None:
    """Give the norms in blocks and behind stages the eps that the weights, found or loaded, were trained with."""
    eps = UNIFORM_EPS if uniform else BLOCK_EPS
    for stage in model.stages:
        for norm in (stage.norm, *(n for block in stage.blocks for n in (block.norm1, block.norm2))):
            norm.eps = eps


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
