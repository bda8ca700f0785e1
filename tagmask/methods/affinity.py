"""What methods that learn affinities from self-attention share (AFA, TSCD); not a method."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tagmask.config import MethodConfig
from tagmask.encoders import Encoder
from tagmask.errors import ConfigError
from tagmask.heads import AffinityHead
from tagmask.losses import affinity_labels, affinity_loss, downsample_labels
from tagmask.types import Features

PROBE = 64
"""Side of the image that blocks are tried on: the last map has several positions, the reduced keys fewer."""


class AffinitySettings(MethodConfig):
    """Where affinities come from."""

    affinity: Literal["none", "attention"] = Field("attention", description="none where the encoder has no attention")
    affinity_blocks: list[int] = Field([-2, -1], description="blocks whose attention is read")
    affinity_radius: int = Field(8, ge=1, description="rows and columns of the grid within which pairs count")
    affinity_symmetric: bool = Field(True, description="add the transposed attention")

    def learns_affinity(self, weight: float) -> bool:
        """Whether there is an affinity head, by the weight of its loss."""
        return self.affinity != "none" and weight > 0


def build_affinity(config: AffinitySettings, encoder: Encoder, weight: float) -> AffinityHead | None:
    """The head for the attention of the blocks that ``config`` names; None with ``affinity: none`` or weight 0.

    Raises ConfigError where there is none, and where it is not between the positions of the encoder's last map.
    """
    if not config.learns_affinity(weight):
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
    _try(head, encoder, blocks)
    return head


@torch.no_grad()
def _try(head: AffinityHead, encoder: Encoder, blocks: list[int]) -> None:
    """Predict affinities of a black image: what does not fit shows now, and not when the warm-up is over."""
    training = encoder.training
    encoder.eval()
    try:
        predict_affinity(head, encoder(encoder.mean.new_zeros(1, 3, PROBE, PROBE), attention=blocks))
    finally:
        encoder.train(training)


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


def affinity_term(affinity: Tensor, labels: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """Affinity loss of (B,N,N) affinities between the positions of ``grid`` against pseudo labels (B,H,W)."""
    return affinity_loss(affinity, affinity_labels(downsample_labels(labels, grid), radius))


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
