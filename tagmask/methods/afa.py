"""``afa``: affinity from attention (Ru et al., Learning Affinity from Attention, CVPR 2022).

``baseline`` plus affinities between positions, predicted from the encoder's self-attention and trained on pairs of
its own refined labels; after a second warm-up they spread the CAMs before these become labels of the segmenter.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from tagmask.losses import balanced_cross_entropy
from tagmask.methods.common.affinity import AffinityMethod, PropagationConfig, predict_affinity
from tagmask.methods.common.dense_energy import EnergyConfig, dense_energy
from tagmask.registry import METHODS
from tagmask.strict import Factor, Natural
from tagmask.types import Batch, Features


class AFAConfig(PropagationConfig):
    """Settings of ``afa``: defaults of its paper and release on VOC, and ours where docs/methods/afa.md says so."""

    name: Literal["afa"] = "afa"  # type: ignore[assignment]
    affinity_warmup: Natural = Field(4000, description="step from which CAMs are propagated")
    weight_reg: Factor = Field(0.0, description="of the dense energy")
    energy: EnergyConfig = Field(EnergyConfig(), description="the dense energy")


@METHODS.register("afa")
class AFA(AffinityMethod):
    """Baseline whose CAMs are spread by affinities that it learns from attention."""

    config_class = AFAConfig
    config: AFAConfig

    def terms_from_cams(
        self, batch: Batch, step: int, active: set[str], features: Features, maps: Tensor, scores: Tensor
    ) -> dict[str, Tensor]:
        """seg, aff and reg. seg's and reg's labels come from propagated CAMs after ``affinity_warmup``."""
        terms = {}
        segments = bool(active & {"seg", "reg"})
        cams = self.training_cams(batch, maps.detach())
        labels = self.cut(batch, cams, scores)
        if self.affinity is not None and "aff" in active:
            affinity = predict_affinity(self.affinity, features)
            terms["aff"] = self.affinity_loss(affinity, features, labels)
            if segments and step >= self.config.affinity_warmup:
                labels = self.cut(batch, self.spread(cams, affinity, features), scores)
        if segments:
            logits = self.decoder(features)
            if "seg" in active:
                terms["seg"] = balanced_cross_entropy(logits, labels)
            if "reg" in active:
                terms["reg"] = dense_energy(self.config.energy, batch, logits, labels)
        return terms
