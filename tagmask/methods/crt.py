"""``crt``: a CNN refines a transformer (Huo et al., Dual Progressive Transformations for Weakly Supervised Semantic
Segmentation).

Two classifiers of unlike kinds learn from tags, and their class maps are drawn to each other: a transformer's reach
too far, a CNN's not far enough. The transformer sees overlapping tiles and goes through its blocks several times; its
attention refines the class maps that are used. There is no segmenter: its CAMs become masks for ``supervised``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.cam import cut_and_merge
from tagmask.cam.maps import resize
from tagmask.config import EncoderConfig
from tagmask.encoders import Encoder, build_encoder
from tagmask.encoders.timm_vit import TimmViT
from tagmask.errors import ConfigError
from tagmask.heads import Classifier
from tagmask.methods.base import CAM_SCALES, Analysis, ClassifierConfig, ClassifierMethod
from tagmask.methods.common.pseudo_label_assignment import photo_positions
from tagmask.registry import METHODS
from tagmask.strict import Factor, Few, Natural, Pixels, Positive, Scales
from tagmask.tensors import full
from tagmask.types import Batch, Features, Losses


class CRTConfig(ClassifierConfig):
    """Settings of ``crt``; the defaults are the paper's on VOC. The transformer is the run's ``encoder``.

    ``variant`` changes some, unless they are set.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "release": {"kernel": 3, "cnn_detach": True, "l1_size": "image", "flip_merge": "sum"},
    }

    name: Literal["crt"] = "crt"
    variant: Literal["paper", "release"] = Field(
        "paper", description="release: its kernel, cnn_detach, l1_size, flip_merge"
    )
    cnn: EncoderConfig = Field(
        EncoderConfig(name="resnet152.tv_in1k", output_stride=16, dilate=False),
        description="the other branch, any encoder; encoder.weights=none holds for both",
    )
    cnn_detach: bool = Field(False, description="no gradient into the CNN's layers up to stride 8, its second stage")
    tile: Pixels | None = Field(224, description="side of the transformer's tiles, pixels; null: whole images")
    stride: int = Field(112, ge=1, le=2**16, description="from tile to tile, pixels")
    tiles_at_once: Few = Field(16, description="in one pass when it is used; training takes all at once")
    upsample: int = Field(
        1, ge=1, le=16, description="the transformer sees images smaller by this factor, and its map is enlarged by it"
    )
    loops: int = Field(
        3, ge=0, le=100, description="passes through the blocks, each added to its input; 0: a plain one"
    )
    add_last: bool = Field(True, description="the last pass is added, too")
    kernel: Literal[1, 3] = Field(1, description="of the transformer's classifier")
    attention: Literal["none", "class"] = Field("class", description="class: the class token's, times the CAMs in use")
    warmup: Natural = Field(661, description="step from which l1 is on; one epoch of VOC")
    l1_block: Natural = Field(0, description="steps that l1 is on, then off for as many, and so on; 0: it stays on")
    padding: Literal["counted", "left_out"] = Field(
        "counted", description="whether padding of training crops takes part in the pooling of class maps and in l1"
    )
    cam_scales: Scales = Field([1.0, 0.5, 1.5, 2.0, 0.75, 1.25, 1.75], description=CAM_SCALES)
    l1_size: Literal["map", "image"] = Field("map", description="what maps are resized to before l1 compares them")
    weight_cls: Positive = Field(1.0, description="of the transformer's classification")
    weight_cls_cnn: Factor = Field(1.0, description="of the CNN's classification")
    weight_l1: Factor = Field(0.1, description="lambda; 0 also leaves out the CNN, which then teaches nothing")

    def phases(self) -> dict[str, bool]:
        return super().phases() | {"warmup": self.weight_l1 > 0}

    @model_validator(mode="after")
    def _check_stride(self) -> CRTConfig:
        if self.tile is not None and self.stride > self.tile:
            raise ValueError("stride is larger than tile, and would leave gaps; the paper's are 112 and 224")
        return self


@METHODS.register("crt")
class CRT(ClassifierMethod):
    """Two branches that learn together, of which the first is used."""

    config_class = CRTConfig
    config: CRTConfig
    training_only = ("cnn", "cnn_classifier")

    def __init__(self, config: CRTConfig, encoder: Encoder, classes: int) -> None:
        _check_branch(config, encoder)
        if config.loops > 0 and isinstance(encoder, TimmViT):
            encoder.set_loops(config.loops, config.add_last)
        super().__init__(config, encoder, classes)
        self.classifier = Classifier(encoder.channels[-1], classes, pooling="avg")
        if config.kernel > 1:
            self.classifier.conv = nn.Conv2d(encoder.channels[-1], classes, config.kernel, padding=config.kernel // 2)
            nn.init.normal_(self.classifier.conv.weight, std=0.01)
        self.cnn: Encoder | None = None
        if config.weight_l1 > 0:
            random = encoder.weights_origin.startswith("none")
            self.cnn = build_encoder(config.cnn.model_copy(update={"weights": "none"}) if random else config.cnn)
            if config.cnn_detach:
                self.cnn.freeze_to(8, "method.cnn_detach")
            self.cnn_classifier = Classifier(self.cnn.channels[-1], classes, pooling="avg")
            encoder.weights_origin = f"{encoder.weights_origin}; cnn: {self.cnn.weights_origin}"

    def losses(self, batch: Batch, step: int) -> Losses:
        """cls of both branches and, from ``warmup`` in every other ``l1_block``, l1 between their class maps.

        They are weighted as in equation 2.
        """
        cfg = self.config
        maps = self.class_maps(batch.images)
        terms = {"cls": self.tag_loss(self._over(maps, batch), batch.tags)}
        matches = step >= cfg.warmup and (cfg.l1_block == 0 or (step - cfg.warmup) // cfg.l1_block % 2 == 0)
        if self.cnn is not None and (matches or cfg.weight_cls_cnn > 0):
            others = self.cnn_classifier.cam(self.cnn(batch.images).maps[-1])
            if cfg.weight_cls_cnn > 0:
                terms["cls_cnn"] = self.tag_loss(self._over(others, batch), batch.tags)
            if matches:
                of = batch.images if cfg.l1_size == "image" else maps
                grid = (of.shape[-2], of.shape[-1])
                apart = (resize(others.float(), grid) - resize(maps.float(), grid)).abs()
                terms["l1"] = self._over(apart, batch).mean()
        return self.weighted(terms)

    def _over(self, maps: Tensor, batch: Batch) -> Tensor:
        """(B,C) means of maps (B,C,h,w) over all positions, or over those of the photos (``padding``)."""
        if self.config.padding == "counted":
            return maps.mean((-2, -1))
        photo = photo_positions(batch, (maps.shape[-2], maps.shape[-1]))[:, None]
        return (full(maps) * photo).sum((-2, -1)) / photo.sum((-2, -1)).clamp(min=1)

    def class_maps(self, images: Tensor) -> Tensor:
        """(B,C,h,w) the transformer's class maps before ReLU, without attention: those that are trained."""
        return self._merged(lambda tiles: self.classifier.cam(self._enlarged(self._features(tiles).maps[-1])), images)

    def class_logits(self, images: Tensor) -> Tensor:
        """(B,C) class scores, logits: means of the class maps."""
        return self.class_maps(images).mean((-2, -1))

    def cam_maps(self, images: Tensor) -> Tensor:
        """(B,C,h,w) class maps times attention (equation 1), tile by tile; the CNN does not run."""
        if self.config.attention == "none":
            return self.class_maps(images)
        recorded = range(self.encoder.depth)

        def forward(tiles: Tensor) -> Tensor:
            features = self._features(tiles, queries=recorded, keys=recorded)
            return self.classifier.cam(self._enlarged(features.maps[-1])) * self._enlarged(class_attention(features))

        return self._merged(forward, images)

    def _features(self, tiles: Tensor, **recorded: Sequence[int]) -> Features:
        """The transformer's of tiles (n,3,H,W), which it sees smaller by ``upsample``."""
        factor = self.config.upsample
        if factor > 1:
            size = [max(1, round(side / factor)) for side in tiles.shape[-2:]]
            tiles = F.interpolate(tiles, size=size, mode="bilinear", antialias=True).clamp(0, 1)
        return self.encoder(tiles, **recorded)

    def _enlarged(self, maps: Tensor) -> Tensor:
        """Maps (n,K,h,w), larger by ``upsample``: the bilinear interpolation of Table 2."""
        factor = self.config.upsample
        return resize(maps, (factor * maps.shape[-2], factor * maps.shape[-1]))

    def _merged(self, forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        cfg = self.config
        if cfg.tile is None:
            return forward(images)
        at_once = None if self.training else cfg.tiles_at_once
        return cut_and_merge(forward, images, cfg.tile, cfg.stride, at_once, self.encoder.mean)

    def analyses(self) -> dict[str, Analysis]:
        """Figure 6, where there are loops."""
        about = "cosine of the tokens before and after each pass"
        return {"loops": Analysis("numbers", about, self._loop_cosines, "pass")} if self.config.loops > 0 else {}

    def _loop_cosines(self, images: Tensor, tags: Tensor) -> Tensor:
        """(loops,) cosine of T_in and T_out of equation 3, mean over tokens and tiles, padded ones among them."""
        encoder, seen = self.encoder, []
        assert isinstance(encoder, TimmViT)
        first, last = encoder.model.blocks[0], encoder.model.blocks[-1]
        hooks = [
            first.register_forward_pre_hook(lambda block, given: seen.append(given[0])),
            last.register_forward_hook(lambda block, given, out: seen.append(out)),
        ]
        try:
            self.class_maps(images)
        finally:
            for hook in hooks:
                hook.remove()
        # Of each pass through the blocks its tokens (B,N,D) before and after, and so on for each group of tiles.
        count = self.config.loops
        pairs = zip(seen[::2], seen[1::2])
        cosines = [F.cosine_similarity(before.float(), after.float(), dim=-1) for before, after in pairs]
        return torch.stack([torch.cat(cosines[n::count]).mean() for n in range(count)])


def class_attention(features: Features) -> Tensor:
    """(B,1,h,w) how much the class token attends to each patch: mean over the heads of all recorded blocks.

    The softmax goes over all tokens, the prefix's included. Only the class token's row of each attention is computed,
    from queries and keys, not the N rows that nobody reads.
    """
    height, width = features.maps[-1].shape[-2:]
    rows = []
    for index, keys in features.keys.items():
        query = features.queries[index][:, :, :1].float()
        logits = query @ keys.float().mT * query.shape[-1] ** -0.5
        rows.append(logits.softmax(-1)[:, :, 0, features.prefix :].mean(1))
    return torch.stack(rows).mean(0).unflatten(-1, (height, width))[:, None]


def _check_branch(config: CRTConfig, encoder: Encoder) -> None:
    """Raises ConfigError where the first branch lacks what the settings read."""
    what = f"Encoder '{type(encoder).__name__}' (kind '{encoder.kind}')"
    vit = "or pick a plain ViT with a class token, such as encoder.name=deit_small_patch16_224."
    if config.attention == "class" and not (encoder.has_attention and getattr(encoder, "has_class_token", False)):
        raise ConfigError(
            f"{what} has no class token whose attention could refine CAMs; set method.attention=none, {vit}"
        )
    if config.loops > 0 and not isinstance(encoder, TimmViT):
        raise ConfigError(f"{what} cannot go through its blocks again: they change the grid; set method.loops=0, {vit}")
