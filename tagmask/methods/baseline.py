"""``baseline``: the plain recipe that all five papers start from, in one stage.

A classifier learns from tags; after a warm-up its class activation maps, refined by the image's colours, are the
labels of a segmentation head on the same encoder (AFA's base model, without affinity; Ru et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.cam import multi_scale, pseudo_labels
from tagmask.config import MethodConfig, ShortSchedule
from tagmask.encoders import Encoder
from tagmask.errors import ConfigError
from tagmask.heads import Classifier
from tagmask.losses import balanced_cross_entropy
from tagmask.methods.base import Method, build_head, build_refiner, to_image_size
from tagmask.registry import METHODS
from tagmask.types import IGNORE, Batch, Losses


class BaselineConfig(MethodConfig):
    """Settings of ``baseline``; the defaults are those of the AFA family on VOC."""

    name: Literal["baseline"] = "baseline"
    pooling: Literal["max", "avg"] = Field("max", description="of the class maps into class scores")
    head: str = Field("largefov", description="segmentation head")
    head_options: dict[str, Any] = {}
    warmup: int = Field(2000, ge=0, description="steps of classification only")
    cam_scales: list[float] = Field([1.0, 0.5, 1.5], description="of the CAMs that become labels in training")
    cam_flip: bool = True
    high: float = Field(0.55, ge=0, le=1, description="CAM above which a pixel is its class")
    low: float = Field(0.35, ge=0, le=1, description="CAM up to which a pixel is background")
    refine: str = Field("par", description="none, par, pamr or varm")
    refine_options: dict[str, Any] = {}
    gate: float = Field(0.0, ge=0, lt=1, description="class probability under which a crop's tag is not trusted")
    weight_cls: float = Field(1.0, ge=0)
    weight_seg: float = Field(0.1, ge=0)

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """As for all methods; thresholds of the encoder, and every weight but ``weight_cls`` in proportion."""
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

    def phases(self) -> dict[str, bool]:
        return super().phases() | {"warmup": self.weight_seg > 0}


def full(x: Tensor) -> Tensor:
    """float32 for half precision, anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@METHODS.register("baseline")
class Baseline(Method):
    """Classifier and segmentation head on one encoder, the first teaching the second.

    Raises ConfigError where ``high`` is below ``low``.
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
        """cls: multi-label soft margin; seg: balanced cross-entropy against refined CAM labels, after warm-up."""
        cfg = self.config
        features = self.encoder(batch.images)
        maps = self.classifier.cam(features.maps[-1])
        scores = self.classifier.pool(maps)
        terms = {"cls": F.multilabel_soft_margin_loss(full(scores), batch.tags)}
        total = cfg.weight_cls * terms["cls"]
        if cfg.weight_seg > 0 and step >= cfg.warmup:
            labels = self.labels(batch, maps.detach(), scores.detach())
            terms["seg"] = balanced_cross_entropy(self.decoder(features), labels)
            total = total + cfg.weight_seg * terms["seg"]
        return Losses(terms, total)

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
        return multi_scale(self._cam, batch.images, cfg.cam_scales, cfg.cam_flip, half, plain=maps)

    @torch.no_grad()
    def cut(self, batch: Batch, cams: Tensor, scores: Tensor) -> Tensor:
        """(B,H,W) pseudo labels of CAMs (B,C,h,w) in [0,1] on any grid; scores (B,C).

        Where a tagged class scores under ``gate`` in this crop the object was probably cropped out, and its
        normalised CAM is noise: the class is left out there, and what would be background is ignored.
        """
        cfg = self.config
        trusted = batch.tags * (scores.sigmoid() >= cfg.gate)
        labels = pseudo_labels(
            cams, trusted, cfg.high, cfg.low, refine=self.refiner, images=batch.images, boxes=batch.boxes
        )
        doubtful = (trusted < batch.tags).any(dim=1)[:, None, None]
        return labels.masked_fill(doubtful & (labels == 0), IGNORE)

    def _cam(self, images: Tensor) -> Tensor:
        return self.classifier.cam(self.encoder(images).maps[-1])

    @torch.no_grad()
    def cams(
        self,
        images: Tensor,
        tags: Tensor | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
    ) -> Tensor:
        """(B,C,H,W) multi-scale CAMs in [0,1]; scales and flip default to those of training."""
        cfg = self.config
        cams = multi_scale(self._cam, images, scales or cfg.cam_scales, cfg.cam_flip if flip is None else flip)
        return cams if tags is None else cams * tags[:, :, None, None]

    @torch.no_grad()
    def class_scores(self, images: Tensor) -> Tensor:
        """(B,C) sigmoid probabilities."""
        return self.classifier(self.encoder(images).maps[-1]).float().sigmoid()

    def segment(self, images: Tensor) -> Tensor:
        """(B,C+1,H,W) logits at the images' size."""
        return to_image_size(self.decoder(self.encoder(images)), images)
