"""What methods that learn affinities from self-attention share (AFA, TSCD, ECA)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tagmask.cam.maps import resize
from tagmask.config import ShortSchedule
from tagmask.encoders import Encoder
from tagmask.errors import ConfigError
from tagmask.heads import AffinityHead
from tagmask.losses import affinity_labels, affinity_loss, downsample_labels
from tagmask.methods.baseline import Baseline, BaselineConfig
from tagmask.strict import Block, Factor, Few, Positive
from tagmask.types import Features

PROBE = 64
"""Side of the image that blocks are tried on: the last map has several positions, the reduced keys fewer."""


class AffinityConfig(BaselineConfig):
    """Settings of an ``AffinityMethod``. ``affinity_term``: name of its affinity loss."""

    affinity_term: ClassVar[str] = "aff"
    head: str = Field("segformer", description="segmentation head: largefov, aspp, segformer or upernet")
    affinity: Literal["none", "attention"] = Field("attention", description="none where the encoder has no attention")
    affinity_blocks: list[Block] = Field(
        [-2, -1], min_length=1, max_length=100, description="blocks whose attention is read"
    )
    affinity_radius: Few = Field(8, description="rows and columns of the grid within which pairs count")
    affinity_symmetric: bool = Field(True, description="add the transposed attention")

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """A radius that suits the maps of small crops."""
        plan = super().short_schedule(schedule)
        if schedule.small_crop:
            plan["method.affinity_radius"] = (4, f"positions, of a map of crops of {schedule.crop}")
        return plan

    @property
    def wanted(self) -> set[str]:
        """As the baseline's; no affinity loss with ``affinity: none``."""
        return super().wanted - ({self.affinity_term} if self.affinity == "none" else set())


class PropagationConfig(AffinityConfig):
    """Settings of a method whose affinities spread its CAMs, from step ``affinity_warmup``."""

    affinity_power: Positive = Field(2.0, description="of affinities in the propagation")
    affinity_steps: Few = Field(1, description="of the propagation")
    weight_aff: Factor = Field(0.1, description="of the affinity loss; 0 also switches off the propagation")

    def phases(self) -> dict[str, bool]:
        propagates = "aff" in self.wanted and bool(self.wanted & {"seg", "reg"})
        return super().phases() | {"affinity_warmup": propagates}


class AffinityMethod(Baseline):
    """Baseline that learns affinities from the encoder's self-attention, of pairs of its own pseudo labels."""

    config: AffinityConfig

    def __init__(self, config: AffinityConfig, encoder: Encoder, classes: int) -> None:
        super().__init__(config, encoder, classes)
        self.affinity = build_affinity(config, encoder)

    def attention_blocks(self, active: set[str]) -> list[int]:
        """``affinity_blocks`` where the affinity loss is active."""
        return self.config.affinity_blocks if self.config.affinity_term in active else []

    def affinity_loss(self, affinity: Tensor, features: Features, labels: Tensor) -> Tensor:
        """Loss of affinities (B,N,N) between the positions of the last map against pseudo labels (B,H,W)."""
        coarse = downsample_labels(labels, grid_of(features))
        return affinity_loss(affinity, affinity_labels(coarse, self.config.affinity_radius))

    def spread(self, cams: Tensor, affinity: Tensor, features: Features) -> Tensor:
        """CAMs (B,C,·,·) on the last map's grid, propagated along affinities (B,N,N); needs ``PropagationConfig``."""
        cfg: Any = self.config
        coarse = resize(cams, grid_of(features))
        return propagate(coarse, affinity.detach(), cfg.affinity_radius, cfg.affinity_power, cfg.affinity_steps)


def build_affinity(config: AffinityConfig, encoder: Encoder) -> AffinityHead | None:
    """The head for the attention of the blocks that ``config`` names; None with ``affinity: none`` or weight 0.

    Raises ConfigError where there is no attention, and where it is not between the positions of the encoder's last map.
    """
    if config.affinity_term not in config.wanted:
        return None
    blocks = config.affinity_blocks
    if not encoder.has_attention:
        raise ConfigError(
            f"Method '{config.name}' learns affinities from self-attention, and encoder '{type(encoder).__name__}' "
            f"(kind '{encoder.kind}') has none to read; set method.affinity=none, or pick a transformer such as "
            "encoder.name=mit_b1 or vit_small_patch16_224."
        )
    wrong = [i for i in blocks if not -encoder.depth <= i < encoder.depth]
    chosen = sorted({i % encoder.depth for i in blocks})
    if wrong or not blocks or len(chosen) < len(blocks):
        raise ConfigError(
            f"method.affinity_blocks={blocks}: name one or more of the encoder's {encoder.depth} blocks, each "
            "once; negative numbers count from the last. To do without affinities set method.affinity=none."
        )
    head = AffinityHead([encoder.heads[i] for i in chosen], config.affinity_symmetric)
    # With a black image, what does not fit shows now, and not when the warm-up is over.
    training = encoder.training
    with torch.no_grad():
        predict_affinity(head, encoder.eval()(encoder.mean.new_zeros(1, 3, PROBE, PROBE), attention=blocks))
    encoder.train(training)
    return head


def predict_affinity(head: AffinityHead, features: Features) -> Tensor:
    """(B,N,N) affinities between the positions of the last map, from the attention that was recorded with it."""
    recorded = features.attention_logits
    affinity = head([recorded[i] for i in sorted(recorded)], features.prefix)
    height, width = features.maps[-1].shape[-2:]
    if affinity.shape[-1] != height * width:
        raise ConfigError(
            f"Blocks {sorted(recorded)} attend between {affinity.shape[-1]} positions, the last map has "
            f"{height}x{width}; let method.affinity_blocks name blocks of the encoder's last stage."
        )
    return affinity


def grid_of(features: Features) -> tuple[int, int]:
    """(h,w) of the last map."""
    return features.maps[-1].shape[-2], features.maps[-1].shape[-1]


def propagate(cams: Tensor, affinity: Tensor, radius: int, power: float = 2.0, steps: int = 1) -> Tensor:
    """Spread class maps along affinities: each position becomes a weighted mean of those around it.

    The transition of AFA (CVPR 2022, section 3.2): T = D⁻¹ A^power, the power entrywise, D the row sums; here with A
    set to 0 outside a square window of ``radius`` positions and, on the diagonal, to 1. Applied ``steps`` times.

    cams: (B,C,h,w) in [0,1]. affinity: (B,N,N) in [0,1], N = h·w. Returns (B,C,h,w) in [0,1], a constant map
    unchanged.
    """
    height, width = cams.shape[-2:]
    one_label = torch.zeros(1, height, width, dtype=torch.uint8, device=cams.device)
    weights = affinity.float().pow(power) * (affinity_labels(one_label, radius) == 1)
    weights.diagonal(dim1=-2, dim2=-1).fill_(1)  # a position is alike to itself, and no row is empty
    weights = weights / weights.sum(-1, keepdim=True)
    values = cams.float().flatten(2).mT
    with torch.autocast(cams.device.type, enabled=False):  # rounded weights no longer sum to 1
        for _ in range(steps):
            values = weights @ values
    return values.mT.reshape(cams.shape)
