"""``baseline``: the plain recipe that all five papers start from, in one stage.

A classifier learns from tags; after a warm-up its class activation maps, refined by the image's colours, are the
labels of a segmentation head on the same encoder (AFA's base model, without affinity; Ru et al., CVPR 2022).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tagmask.cam import multi_scale, pseudo_labels
from tagmask.config import ShortSchedule
from tagmask.encoders import Encoder
from tagmask.errors import ConfigError
from tagmask.heads import Classifier
from tagmask.losses import balanced_cross_entropy
from tagmask.methods.base import OneStageConfig, OneStageMethod, build_head, build_refiner
from tagmask.registry import METHODS
from tagmask.strict import Factor, Natural, Scales
from tagmask.types import IGNORE, Batch, Features, Losses


class BaselineConfig(OneStageConfig):
    """Settings of ``baseline``; the defaults are those of the AFA family on VOC."""

    name: Literal["baseline"] = "baseline"
    warmup: Natural = Field(2000, description="steps of classification only")
    cam_scales: Scales = Field([1.0, 0.5, 1.5], description="image scales of the CAMs that become pseudo labels")
    high: float = Field(0.55, ge=0, le=1, description="CAM above which a pixel is labelled with its class")
    low: float = Field(0.35, ge=0, le=1, description="CAM up to which a pixel is labelled background; 255 in between")
    refine: str = Field("par", description="refinement of pseudo labels: none, par, pamr or varm")
    weight_cls: Factor = Field(1.0, description="of classification")
    weight_seg: Factor = Field(0.1, description="of segmentation against the pseudo labels")

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """Thresholds of the encoder; every weight but ``weight_cls`` grows as ``weight_seg`` does."""
        plan = super().short_schedule(schedule)
        plan["method.high"] = (schedule.high, "CAM above which a pixel teaches its class")
        plan["method.low"] = (schedule.low, "CAM up to which it teaches background")
        plan["method.cam_scales"] = ([1.0], "one scale and its flip in training; more when labelling")
        full = cls.model_fields["weight_seg"].default
        for name, field in cls.model_fields.items():
            if name.startswith("weight_") and name != "weight_cls" and field.default > 0:
                why = "short schedules need the full weight" if name == "weight_seg" else "in its ratio to weight_seg"
                plan[f"method.{name}"] = (round(field.default / full, 6), why)
        return plan

    @property
    def wanted(self) -> set[str]:
        """Names of the terms besides cls whose weight is above 0."""
        weights = [name for name in type(self).model_fields if name.startswith("weight_") and getattr(self, name) > 0]
        return {name.removeprefix("weight_") for name in weights} - {"cls"}

    def phases(self) -> dict[str, bool]:
        """``warmup`` is for any term that is wanted, ``start_<term>`` for that term."""
        phases = {name: name.removeprefix("start_") in self.wanted for name in super().phases()}
        return phases | {"warmup": bool(self.wanted)}


@METHODS.register("baseline")
class Baseline(OneStageMethod):
    """Classifier and segmentation head on one encoder, the first teaching the second.

    ``losses`` computes what all methods of this family have. A subclass gives its terms in ``terms_from_cams`` and a
    weight ``weight_<term>`` in its settings. Raises ConfigError where ``high`` is below ``low``.
    """

    config_class = BaselineConfig
    config: BaselineConfig
    default_for = "classifier"

    def __init__(self, config: BaselineConfig, encoder: Encoder, classes: int) -> None:
        if config.high < config.low:
            raise ConfigError(
                f"method.high={config.high} is below method.low={config.low}: a CAM above high is its class, one up to "
                "low background; set both."
            )
        super().__init__(config, encoder, classes)
        self.classifier = Classifier(encoder.channels[-1], classes, pooling=config.pooling)
        self.decoder = build_head(config.head, encoder, classes + 1, config.head_options)
        self.refiner: nn.Module | None = build_refiner(config.refine, config.refine_options)

    def losses(self, batch: Batch, step: int) -> Losses:
        """cls, the classification; after the warm-up also the terms of ``terms_from_cams``."""
        active = self.active(step)
        features = self.encoder(batch.images, attention=self.attention_blocks(active))
        maps = self.classifier.cam(features.maps[-1])
        scores = self.classifier(features.maps[-1], maps)
        terms = {"cls": self.tag_loss(scores, batch.tags)}
        if active:
            terms |= self.terms_from_cams(batch, step, active, features, maps, scores.detach())
        return self.weighted(terms)

    def active(self, step: int) -> set[str]:
        """Wanted terms that have started: none before ``warmup``, nor before its ``start_<term>``, if it has one."""
        cfg = self.config
        return {term for term in cfg.wanted if step >= max(cfg.warmup, getattr(cfg, f"start_{term}", 0))}

    def attention_blocks(self, active: set[str]) -> list[int]:
        """Blocks of the encoder whose attention the active terms read."""
        return []

    def terms_from_cams(
        self, batch: Batch, step: int, active: set[str], features: Features, maps: Tensor, scores: Tensor
    ) -> dict[str, Tensor]:
        """The active terms. maps: class maps (B,C,h,w), with gradient; scores: (B,C), without.

        seg: balanced cross-entropy of the segmentation against refined CAM labels.
        """
        labels = self.labels(batch, maps.detach(), scores)
        return {"seg": balanced_cross_entropy(self.decoder(features), labels)}

    @torch.no_grad()
    def labels(self, batch: Batch, maps: Tensor, scores: Tensor) -> Tensor:
        """(B,H,W) pseudo labels. maps: the batch's own class maps (B,C,h,w), reused for scale 1; scores (B,C)."""
        return self.cut(batch, self.training_cams(batch, maps), scores)

    @torch.no_grad()
    def training_cams(self, batch: Batch, maps: Tensor) -> Tensor:
        """(B,C,h',w') multi-scale CAMs in [0,1] of the batch, all classes; maps as in ``labels``."""
        cfg = self.config
        # Refinement works at half resolution: CAMs on that grid from the start are a quarter of the pixels.
        height, width = batch.images.shape[-2:]
        half = None if self.refiner is None else (max(1, height // 2), max(1, width // 2))
        return multi_scale(self.class_maps, batch.images, cfg.cam_scales, cfg.cam_flip, half, plain=maps)

    @torch.no_grad()
    def cut(self, batch: Batch, cams: Tensor, scores: Tensor, thresholds: tuple[float, float] | None = None) -> Tensor:
        """(B,H,W) pseudo labels of CAMs (B,C,h,w) in [0,1] on any grid; scores (B,C).

        thresholds: the lower one first; default: ``low`` and ``high`` of the settings.

        Where a tagged class scores under ``gate`` in this crop the object was probably cropped out, and its
        normalised CAM is noise: the class is left out there, and what would be background is ignored.
        """
        cfg = self.config
        trusted = batch.tags * (self.probabilities(scores) >= cfg.gate)
        low, high = thresholds or (cfg.low, cfg.high)
        labels = pseudo_labels(cams, trusted, high, low, refine=self.refiner, images=batch.images, boxes=batch.boxes)
        doubtful = (trusted < batch.tags).any(dim=1)[:, None, None]
        return labels.masked_fill(doubtful & (labels == 0), IGNORE)
