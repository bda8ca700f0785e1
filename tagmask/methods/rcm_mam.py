"""``rcm_mam``: regional contrast and multi-scale attention (Yoon et al., Exploring Pixel-level Self-supervision for
Weakly Supervised Semantic Segmentation).

A support network, the running average of the trained one, says where the classes are and what their features look
like: features are drawn to their class's prototype (RCM), which sharpens class maps, and class maps of each scale to
those of all scales (MAM), which widens them. There is no segmenter: its CAMs become masks for ``supervised``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from tagmask.cam import class_prototypes, peak_normalize, region_masks
from tagmask.cam.maps import resize
from tagmask.config import ShortSchedule
from tagmask.encoders import Encoder
from tagmask.heads import Classifier
from tagmask.losses import multi_scale_attention, region_cross_entropy, regional_contrast
from tagmask.methods.base import (
    CAM_SCALES,
    GATE,
    Analysis,
    ClassifierConfig,
    ClassifierMethod,
    short_gate,
    whole_image,
)
from tagmask.methods.common.ema import Teacher
from tagmask.methods.common.pseudo_label_assignment import photo_positions
from tagmask.registry import METHODS
from tagmask.strict import Factor, Natural, Positive, Scales
from tagmask.types import Batch, Losses


class RCMMAMConfig(ClassifierConfig):
    """Settings of ``rcm_mam``; the defaults are the paper's on VOC. ``variant`` changes some, unless they are set."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "literal": {
            "prototype_reduction": "sum",
            "contrast_log": False,
            "attention_normalized": False,
            "reduction": "sum",
        },
    }

    name: Literal["rcm_mam"] = "rcm_mam"
    variant: Literal["paper", "literal"] = Field(
        "paper", description="literal: equations 3, 5, 7 and 8 as printed; docs/methods/rcm_mam.md lists what it sets"
    )
    features: int = Field(256, ge=1, le=2**16, description="channels of the features that are contrasted")
    scales: Scales = Field([0.5, 1.0, 2.0], description="of the image in training; 1 is one of them")
    momentum: float = Field(0.997, ge=0, le=1, description="of the support network; 0: the trained network's weights")
    threshold: float = Field(0.2, ge=0, lt=1, description="CAM above which a position is of a class")
    self_supervision: Literal["contrastive", "direct"] = Field(
        "contrastive", description="what regions teach: features, by prototypes; or the CAMs themselves (Table 2)"
    )
    prototype_reduction: Literal["mean", "sum"] = Field("mean", description="of a class's features in one image")
    temperature: Positive = Field(0.5, description="of the contrast")
    contrast_log: bool = Field(True, description="InfoNCE; false: its softmax without the logarithm")
    attention: Literal["none", "smm", "mmm", "mam"] = Field(
        "mam", description="smm: scale 1 learns the mean of scales; mmm: each scale does; mam: unlike scales weigh more"
    )
    attention_normalized: bool = Field(True, description="mam: weights of a scale's target sum to the number of scales")
    attention_target: Literal["mean", "renormalized"] = Field(
        "mean", description="what smm, mmm and mam learn: the mean over scales, or that over its maximum"
    )
    reduction: Literal["mean", "sum"] = Field("mean", description="of rcm and mam over positions")
    gate: float = Field(0.0, ge=0, lt=1, description=GATE)
    warmup: Natural = Field(0, description="step from which rcm is on")
    attention_warmup: Natural = Field(3966, description="step from which mam is on; six epochs of VOC")
    cam_scales: Scales = Field([0.5, 1.0, 1.5, 2.0], description=CAM_SCALES)
    weight_cls: Positive = Field(1.0, description="lambda 1, of classification")
    weight_rcm: Factor = Field(1.0, description="lambda 2, of regional contrast")
    weight_mam: Factor = Field(1.0, description="lambda 3, of multi-scale attention")

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """A gate, and a support network that follows sooner."""
        average = (schedule.momentum, f"an average that has to follow in {schedule.steps} steps")
        return super().short_schedule(schedule) | {"method.gate": short_gate(schedule), "method.momentum": average}

    @property
    def attends(self) -> bool:
        """Whether there is a mam term."""
        return self.attention != "none" and self.weight_mam > 0

    def phases(self) -> dict[str, bool]:
        return super().phases() | {"warmup": self.weight_rcm > 0, "attention_warmup": self.attends}

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, scales: list[float]) -> list[float]:
        if 1 not in scales:
            raise ValueError("1 is one of the scales")
        return scales


class Network(NamedTuple):
    """The parts that MainNet and SupportNet both have."""

    encoder: Encoder
    projection: nn.Conv2d
    classifier: Classifier

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features X (B,D,h,w) and class maps A (B,C,h,w) before ReLU."""
        features = self.projection(self.encoder(images).maps[-1])
        return features, self.classifier.cam(features)


class Guidance(NamedTuple):
    """What the support network says of a batch, on the grid of scale 1.

    features (B,D,h,w) of scale 1; valid: bool (B,h,w), where the photo is and no padding; cams: (B,C,h,w) in [0,1] of
    each scale, 0 in padding; trusted: bool (B,C), tags that count: those of a class that scores ``gate`` in this crop
    and that a CAM of some scale is above 0 for.
    """

    features: Tensor
    valid: Tensor
    cams: list[Tensor]
    trusted: Tensor


@METHODS.register("rcm_mam")
class RCMMAM(ClassifierMethod):
    """Classifier with a feature layer, its running average, and two losses that the average teaches it by."""

    config_class = RCMMAMConfig
    config: RCMMAMConfig
    training_only = ("support", "prototypes")
    prototypes: Tensor

    def __init__(self, config: RCMMAMConfig, encoder: Encoder, classes: int) -> None:
        super().__init__(config, encoder, classes)
        self.projection = nn.Conv2d(encoder.channels[-1], config.features, 1, bias=False)
        self.classifier = Classifier(config.features, classes, pooling="avg")
        self.support: Teacher | None = None
        if config.attends or config.weight_rcm > 0:
            self.support = Teacher(self.main._asdict())
        # Row k is class k's, background first; a row of zeros is a class that no region was found of yet.
        self.register_buffer("prototypes", torch.zeros(classes + 1, config.features))

    @property
    def main(self) -> Network:
        """MainNet, which is trained and used."""
        return Network(self.encoder, self.projection, self.classifier)

    def after_step(self, step: int) -> None:
        """Move the support network a step towards the trained one."""
        if self.support is not None:
            self.support.follow(self.main._asdict(), self.config.momentum)

    def losses(self, batch: Batch, step: int) -> Losses:
        """cls on scale 1; from ``warmup`` rcm, from ``attention_warmup`` mam (8); weighted as in equation 9.

        rcm is equation 5 or, with ``self_supervision`` direct, the regions' cross-entropy with the CAMs.
        """
        cfg = self.config
        contrasts = cfg.weight_rcm > 0 and step >= cfg.warmup
        attends = cfg.attends and step >= cfg.attention_warmup
        features, maps = self.main.maps(batch.images)
        terms = {"cls": self.tag_loss(self.classifier(features, maps), batch.tags)}
        if self.support is not None and (contrasts or attends):
            guidance = self._guidance(Network(**self.support), batch)
            if contrasts and cfg.self_supervision == "direct":
                cams, masks = peak_normalize(maps.float() * guidance.valid[:, None]), self._regions(batch, guidance)
                terms["rcm"] = region_cross_entropy(cams, masks, guidance.trusted, cfg.reduction)
            elif contrasts:
                terms["rcm"] = self._contrast(batch, features, guidance)
            if attends:
                terms["mam"] = self._attention(batch, maps, guidance)
        return self.weighted(terms)

    @torch.no_grad()
    def _guidance(self, support: Network, batch: Batch) -> Guidance:
        features, maps = support.maps(batch.images)
        valid = photo_positions(batch, (maps.shape[-2], maps.shape[-1]))
        cams = self._scaled_cams(support, batch.images, maps, valid)
        # Where a tagged class scores under ``gate`` in this crop its object was probably cropped out. A CAM that is 0
        # everywhere, as most are of a new classifier, has no maximum to be divided by: by equation 2 the object itself
        # would be background.
        trusted = (batch.tags > 0) & (self.probabilities(support.classifier(features, maps)) >= self.config.gate)
        trusted &= torch.stack(cams).amax((0, -2, -1)) > 0
        return Guidance(features.float(), valid, cams, trusted)

    def _scaled_cams(self, network: Network, images: Tensor, maps: Tensor, valid: Tensor) -> list[Tensor]:
        """CAMs (B,C,h,w) in [0,1] of each scale, 0 where not valid; maps: those of the images themselves, (B,C,h,w)."""
        height, width = images.shape[-2:]
        cams = []
        for scale in self.config.scales:
            scaled = maps
            if scale != 1:
                size = (max(1, round(height * scale)), max(1, round(width * scale)))
                scaled = network.maps(resize(images, size))[1]
            scaled = resize(scaled.float(), (maps.shape[-2], maps.shape[-1]))
            cams.append(peak_normalize(scaled * valid[:, None]))
        return cams

    def _regions(self, batch: Batch, guidance: Guidance) -> Tensor:
        """Class region masks, bool (B,C+1,h,w): equations 1 and 2."""
        inferred = peak_normalize(torch.stack(guidance.cams).mean(0))
        masks = region_masks(inferred, guidance.trusted.float(), self.config.threshold)
        # Padding is nothing; nor is what may be of a class that is not trusted.
        masks &= guidance.valid[:, None]
        masks[:, 0] &= (guidance.trusted == (batch.tags > 0)).all(1)[:, None, None]
        return masks

    def _contrast(self, batch: Batch, features: Tensor, guidance: Guidance) -> Tensor:
        """rcm of MainNet's features (B,D,h,w); takes up the batch's prototypes."""
        cfg, masks = self.config, self._regions(batch, guidance)
        found = class_prototypes(guidance.features, masks, cfg.prototype_reduction)
        self.prototypes.copy_(torch.where(found.any(1, keepdim=True), found, self.prototypes))
        return regional_contrast(features, masks, self.prototypes, cfg.temperature, cfg.contrast_log, cfg.reduction)

    def _attention(self, batch: Batch, maps: Tensor, guidance: Guidance) -> Tensor:
        """mam of MainNet's class maps (B,C,h,w) and, but for smm, of those of the other scales."""
        cfg, valid = self.config, guidance.valid
        if cfg.attention == "smm":
            cams = [peak_normalize(maps.float() * valid[:, None])]
        else:
            cams = self._scaled_cams(self.main, batch.images, maps, valid)
        return multi_scale_attention(
            cams,
            guidance.cams,
            guidance.trusted,
            cfg.attention == "mam",
            cfg.attention_normalized,
            cfg.reduction,
            valid,
            cfg.attention_target,
        )

    def analyses(self) -> dict[str, Analysis]:
        """The class region masks of a photo."""
        return {"regions": Analysis("maps", "class region masks", self._show_regions)}

    def _show_regions(self, images: Tensor, tags: Tensor) -> dict[str, Tensor]:
        """Equations 1 and 2 by MainNet: the support network is not kept."""
        batch = whole_image(images, tags)
        return {"regions": self._regions(batch, self._guidance(self.main, batch))[0]}

    def class_maps(self, images: Tensor) -> Tensor:
        """(B,C,h,w) class maps of MainNet before ReLU."""
        return self.main.maps(images)[1]

    def class_logits(self, images: Tensor) -> Tensor:
        """(B,C) class scores, logits: means of the class maps."""
        return self.class_maps(images).mean((-2, -1))
