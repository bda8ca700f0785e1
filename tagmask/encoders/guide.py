"""A frozen network that says which places of an image are alike; it is never trained, saved or used to predict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tagmask.config import EncoderConfig, Strict
from tagmask.encoders import build_encoder
from tagmask.encoders.base import Encoder
from tagmask.encoders.timm_vit import TimmViT
from tagmask.errors import ConfigError
from tagmask.types import inside

DINO = "vit_small_patch8_224.dino"


class GuideConfig(Strict):
    """Which network guides, and what of it is looked at."""

    encoder: EncoderConfig = EncoderConfig(name=DINO)
    block: int = Field(-1, description="ViT: block whose queries and keys are taken; -1 is the last")
    scales: list[float] = Field([1.0], min_length=1, description="of the images; keys and queries are summed over them")
    cue: Literal["minmax", "binary", "none"] = Field(
        "minmax", description="foreground cue; none where the guide has no class token"
    )
    cut: float = Field(-0.5, description="of the binary cue")
    graph: Literal["features", "random"] = Field(
        "features", description="random: noise instead of what the guide sees (an ablation)"
    )
    precision: Literal["train", "fp32", "half"] = Field(
        "train", description="train: as the training step; half: float16 on GPUs, bfloat16 on CPUs"
    )


class Guidance(NamedTuple):
    """keys: float32 (B,D,h,w), heads concatenated. query: (B,D) of the class token, None without cue. valid: bool
    (B,h,w), positions whose centre is photo and not padding."""

    keys: Tensor
    query: Tensor | None
    valid: Tensor


class Guide:
    """A frozen encoder's keys, and its class token's query, of batches of images.

    For a ViT these are the keys of one block, heads concatenated, and nothing behind that block's projection is
    computed. For other encoders (ours; the source has ViTs only) the last map stands in for the keys: each channel
    less its mean over the photo, over its standard deviation there, so that cosines are spread around 0 as those of
    keys are; they have no cue.

    It is no ``nn.Module``: a method that holds one has no further parameters, and saves none. It is built at its first
    use and never where a model is only used, and a copy of it (that of a method whose weights are averaged) is
    unbuilt. Its random weights (``encoder.weights: none``) are always the same, so a resumed run has the same guide.
    """

    def __init__(self, config: GuideConfig) -> None:
        if min(config.scales) <= 0:
            raise ConfigError(f"method.guide.scales={config.scales}: scales are numbers above 0.")
        self.config = config
        self._encoder: Encoder | None = None

    def __deepcopy__(self, memo: object) -> Guide:
        return Guide(self.config)

    def build(self, device: torch.device) -> Encoder:
        """The frozen encoder on ``device``. Raises ConfigError, WeightsError as ``build_encoder``, and ConfigError
        where the encoder lacks what ``config`` takes from it."""
        if self._encoder is None:
            # Training draws from the global generator: what it draws must not depend on when the guide is built.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                encoder = build_encoder(self.config.encoder, image_size=self.config.encoder.image_size)
            encoder.freeze()
            self._check(encoder)
            self._encoder = encoder
        if self._encoder.mean.device != device:
            self._encoder.to(device)
        return self._encoder

    @torch.no_grad()
    def __call__(self, images: Tensor, boxes: Tensor, generator: torch.Generator) -> Guidance:
        """What the guide sees in images (B,3,H,W), RGB in [0,1], whose photos lie in boxes (B,4).

        On the grid of the first scale; keys of further scales are resized to it (bilinear) and added. generator: for
        ``graph: random``.
        """
        cfg = self.config
        encoder = self.build(images.device)
        height, width = images.shape[-2:]
        keys: Tensor | None = None
        query: Tensor | None = None
        for scale in cfg.scales:
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            scaled = images if size == (height, width) else F.interpolate(images, size=size, mode="bilinear")
            with self._precision(images.device):
                more_keys, more_query = self._look(encoder, scaled, boxes, (height, width))
            if keys is None:
                keys, query = more_keys, more_query
            else:
                keys = keys + F.interpolate(more_keys, size=keys.shape[-2:], mode="bilinear")
                query = None if query is None or more_query is None else query + more_query
        assert keys is not None
        if cfg.graph == "random":
            keys, query = (None if x is None else _noise(x, generator) for x in (keys, query))
            assert keys is not None
        return Guidance(keys, query if cfg.cue != "none" else None, _photo(boxes, (height, width), keys))

    def _look(
        self, encoder: Encoder, images: Tensor, boxes: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Keys (B,D,h,w) and the class token's query (B,D) at one scale, float32; boxes in pixels of ``size``."""
        if not isinstance(encoder, TimmViT):
            maps = encoder(images).maps[-1].float()
            return _standardize(maps, _photo(boxes, size, maps)), None
        queries, keys = (
            x.float().transpose(2, 3).flatten(1, 2) for x in encoder.queries_keys(images, self.config.block)
        )
        patches = keys[:, :, encoder.model.num_prefix_tokens :]
        height = -(-images.shape[-2] // encoder.patch)
        return patches.unflatten(2, (height, -1)), queries[:, :, 0]

    def _check(self, encoder: Encoder) -> None:
        cfg = self.config
        if cfg.cue != "none" and (not isinstance(encoder, TimmViT) or encoder.model.cls_token is None):
            raise ConfigError(
                f"method.guide.cue={cfg.cue} compares with a class token, and guide '{cfg.encoder.name}' has none; set "
                f"method.guide.cue=none, or let method.guide.encoder.name be a ViT such as {DINO}."
            )
        if isinstance(encoder, TimmViT):
            if not encoder.has_attention:
                raise ConfigError(
                    f"Guide '{cfg.encoder.name}' is a ViT whose blocks keep no keys that could be read; let "
                    f"method.guide.encoder.name be a plain one such as {DINO}."
                )
            if not -encoder.depth <= cfg.block < encoder.depth:
                raise ConfigError(f"method.guide.block={cfg.block}: the guide has blocks 0 to {encoder.depth - 1}.")

    @contextmanager
    def _precision(self, device: torch.device) -> Iterator[None]:
        wanted = self.config.precision
        if wanted == "train":
            yield
            return
        dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
        with torch.autocast(device.type, dtype=dtype, enabled=wanted == "half"):
            yield


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def _photo(boxes: Tensor, size: tuple[int, int], like: Tensor) -> Tensor:
    """bool (B,h,w) on the grid of ``like``: where the centre lies in the photo; boxes in pixels of ``size``."""
    photo = inside(boxes, size)[:, None].float()
    return F.interpolate(photo, size=like.shape[-2:], mode="nearest-exact")[:, 0] > 0


def _standardize(maps: Tensor, valid: Tensor) -> Tensor:
    """Maps (B,D,h,w) with mean 0 and variance 1 over each channel's valid positions (B,h,w)."""
    weights = valid[:, None] / valid.sum((1, 2)).clamp(min=1)[:, None, None, None]
    centred = maps - (maps * weights).sum((2, 3), keepdim=True)
    return centred / ((centred.square() * weights).sum((2, 3), keepdim=True) + 1e-5).sqrt()
