"""``afa``: affinity from attention (Ru et al., Learning Affinity from Attention, CVPR 2022).

``baseline`` plus affinities between positions, predicted from the encoder's self-attention and trained on pairs of
its own refined labels; after a second warm-up they spread the CAMs before these become labels of the segmenter.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from tagmask.cam.maps import resize
from tagmask.encoders import Encoder
from tagmask.losses import balanced_cross_entropy
from tagmask.methods.affinity import AffinitySettings, affinity_term, build_affinity, predict_affinity, propagate
from tagmask.methods.baseline import Baseline, BaselineConfig, full
from tagmask.methods.regularize import EnergyConfig, build_energy, dense_energy
from tagmask.registry import METHODS
from tagmask.types import Batch, Features, Losses


class AFAConfig(AffinitySettings, BaselineConfig):
    """Settings of ``afa``; the defaults are those of its paper and release on VOC, and ours where docs/methods/afa.md
    says so."""

    name: Literal["afa"] = "afa"  # type: ignore[assignment]
    head: str = Field("segformer", description="segmentation head")
    affinity_power: float = Field(2.0, gt=0, description="of affinities in the propagation")
    affinity_steps: int = Field(1, ge=1, description="of the propagation")
    affinity_warmup: int = Field(4000, ge=0, description="step from which CAMs are propagated")
    weight_aff: float = Field(0.1, ge=0, description="of the affinity loss; 0 also switches off the propagation")
    weight_reg: float = Field(0.0, ge=0, description="of the dense energy")
    energy: EnergyConfig = EnergyConfig()

    def phases(self) -> dict[str, bool]:
        segments, learns = self.weight_seg > 0 or self.weight_reg > 0, self.learns_affinity(self.weight_aff)
        return super().phases() | {"warmup": segments or learns, "affinity_warmup": segments and learns}


@METHODS.register("afa")
class AFA(Baseline):
    """Baseline whose CAMs are spread by affinities that it learns from attention."""

    config_class = AFAConfig
    config: AFAConfig

    def __init__(self, config: AFAConfig, encoder: Encoder, classes: int) -> None:
        super().__init__(config, encoder, classes)
        self.affinity = build_affinity(config, encoder, config.weight_aff)
        self.energy = build_energy(config.weight_reg, config.energy)

    def losses(self, batch: Batch, step: int) -> Losses:
        """cls; after ``warmup`` seg, aff and reg. seg's labels come from propagated CAMs after ``affinity_warmup``."""
        cfg = self.config
        wanted = cfg.weight_seg > 0 or self.affinity is not None or self.energy is not None
        started = wanted and step >= cfg.warmup
        recorded = cfg.affinity_blocks if started and self.affinity is not None else ()
        features = self.encoder(batch.images, attention=recorded)
        maps = self.classifier.cam(features.maps[-1])
        scores = self.classifier.pool(maps)
        terms = {"cls": F.multilabel_soft_margin_loss(full(scores), batch.tags)}
        if started:
            terms |= self._learned_from_cams(batch, step, features, maps.detach(), scores.detach())
        total = torch.stack([getattr(cfg, f"weight_{name}") * term for name, term in terms.items()]).sum()
        return Losses(terms, total)

    def _learned_from_cams(
        self, batch: Batch, step: int, features: Features, maps: Tensor, scores: Tensor
    ) -> dict[str, Tensor]:
        cfg = self.config
        terms = {}
        segments = cfg.weight_seg > 0 or self.energy is not None
        cams = self.training_cams(batch, maps)
        labels = self.cut(batch, cams, scores)
        if self.affinity is not None:
            grid = (maps.shape[-2], maps.shape[-1])
            affinity = predict_affinity(self.affinity, features)
            terms["aff"] = affinity_term(affinity, labels, grid, cfg.affinity_radius)
            if segments and step >= cfg.affinity_warmup:
                spread = propagate(
                    resize(cams, grid), affinity.detach(), cfg.affinity_radius, cfg.affinity_power, cfg.affinity_steps
                )
                labels = self.cut(batch, spread, scores)
        if segments:
            logits = self.decoder(features)
            if cfg.weight_seg > 0:
                terms["seg"] = balanced_cross_entropy(logits, labels)
            if self.energy is not None:
                terms["reg"] = dense_energy(self.energy, batch, logits, labels)
        return terms
