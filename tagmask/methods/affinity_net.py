"""``affinity_net``: which pixels belong together (Ahn and Kwak, Learning Pixel-level Semantic Affinity with
Image-level Supervision for Weakly Supervised Semantic Segmentation, CVPR 2018).

A feature map is trained so that the L1 distance of two positions says whether they are of one class. CAMs, with a
background made of what they leave, then walk over these affinities.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.cam.maps import resize
from tagmask.config import ShortSchedule
from tagmask.encoders import Encoder
from tagmask.losses.pair_affinity import pair_affinity_loss, weighted
from tagmask.methods.common.walk_base import WalkConfig, WalkMethod, on_one_grid, to_grid
from tagmask.refine import pixel_affinity, radius_edges, random_walk
from tagmask.registry import METHODS
from tagmask.strict import USED, Positive
from tagmask.types import IGNORE, Batch, Losses

WIDTHS = (64, 128, 256)
"""Channels that the last three levels of the encoder are reduced to: conv4, conv5 and conv6 of the paper's network."""


class AffinityNetConfig(WalkConfig):
    """Settings of ``affinity_net``; the defaults are the paper's and, where it is silent, the release's."""

    name: Literal["affinity_net"] = "affinity_net"
    reduction: Literal["mean", "sum"] = Field("mean", description="of the L1 distance; sum: equation 3 as printed")
    background_power: Annotated[Positive, USED] = Field(
        16, description="alpha of the walk's background, (1 - strongest CAM)^alpha"
    )

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """A walk that ends before what few steps have taught lets objects flow into the background."""
        return super().short_schedule(schedule) | {
            "method.walk_steps": (32, "few steps teach weak boundaries: longer walks dissolve objects"),
        }

    @classmethod
    def stage_labels(cls) -> dict[str, Any]:
        """The paper's: background (1 - strongest CAM)^alpha for two alphas, after a dense CRF."""
        return {"rule": "power", "crf": "psa", "confidence": None}


@METHODS.register("affinity_net")
class AffinityNet(WalkMethod):
    """Pixel affinities from confident labels, for a random walk of CAMs."""

    config_class = AffinityNetConfig
    config: AffinityNetConfig

    def __init__(self, config: AffinityNetConfig, encoder: Encoder, classes: int) -> None:
        super().__init__(config, encoder, classes)
        channels = encoder.channels[-len(WIDTHS) :]
        widths = WIDTHS[-len(channels) :]
        self.levels = nn.ModuleList(nn.Conv2d(c, w, 1, bias=False) for c, w in zip(channels, widths))
        self.join = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)
        for level in self.levels:
            nn.init.kaiming_normal_(level.weight)  # type: ignore[arg-type]
        # A wide start: with small weights all distances are near 0 and every pair looks alike.
        nn.init.xavier_uniform_(self.join.weight, gain=4)

    def affinity_features(self, images: Tensor) -> Tensor:
        """(B,D,h,w) the features whose L1 distances are affinities; D = 448 on encoders of three levels or more."""
        maps = self.encoder(images).maps[-len(self.levels) :]
        reduced = [F.elu(level(m)) for level, m in zip(self.levels, maps)]
        return F.elu(self.join(on_one_grid(reduced, self.grid(images))))

    def losses(self, batch: Batch, step: int) -> Losses:
        """fg, bg: same-class pairs, drawn together; neg: pairs of two classes, driven apart (equations 6 to 9)."""
        features = self.affinity_features(batch.images)
        edges, kinds = self.pairs(batch, (features.shape[-2], features.shape[-1]))
        affinities, taught = [], []
        for image, kind in zip(features, kinds):
            counts = kind != IGNORE  # only these: a pair costs D numbers
            affinities.append(pixel_affinity(image, edges[:, counts], self.config.reduction))
            taught.append(kind[counts])
        terms = pair_affinity_loss(torch.cat(affinities), torch.cat(taught))
        return Losses(terms, weighted(terms))

    @torch.no_grad()
    def propagate(self, images: Tensor, cams: Tensor) -> Tensor:
        """The classes and the background (1 − max)^alpha walk together (section 3.3 of the paper)."""
        cfg = self.config
        features = self.affinity_features(images)[0]
        background = (1 - cams.float().amax(0, keepdim=True)).clamp(min=0).pow(cfg.background_power)
        maps = to_grid(torch.cat([background, cams.float()]), self.grid(images))
        edges, _ = radius_edges(*self.grid(images), cfg.walk_radius, features.device)
        affinity = pixel_affinity(features, edges, cfg.reduction)
        walked = random_walk(maps, edges, affinity, cfg.walk_steps, cfg.beta)
        return resize(walked[None], (images.shape[-2], images.shape[-1]))[0]
