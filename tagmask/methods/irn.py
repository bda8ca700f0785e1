"""``irn``: class boundaries between pixels (Ahn, Cho and Kwak, Weakly Supervised Learning of Instance Segmentation with
Inter-pixel Relations, CVPR 2019), the part of it that semantic masks need.

A boundary map is trained through pairs of positions: of one class when no boundary lies on the line between them. CAMs
walk until they meet boundaries. The displacement field, which tells instances of a class apart, is left out: it has no
effect on semantic masks.
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
from tagmask.refine import path_affinity, random_walk
from tagmask.registry import METHODS
from tagmask.strict import USED, Factor, Few
from tagmask.types import Batch, Losses

WIDTH, GROUPS = 32, 4
"""Channels that each level of the encoder is reduced to, and groups of their norm."""


class IRNConfig(WalkConfig):
    """Settings of ``irn``; the defaults are the paper's and, where it is silent, the release's."""

    name: Literal["irn"] = "irn"
    stride: Few = Field(4, description="image pixels a step of the grid of boundaries and walk")
    radius: float = Field(10, gt=1, le=1000, description="pairs closer than this teach, in grid steps")
    beta: Annotated[Factor, USED] = Field(10, description="exponent of the affinities in the walk")
    threshold: Annotated[float, USED] = Field(0.25, ge=0, le=1, description="background score after the walk")

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """The release's learning rate for the branch alone."""
        return super().short_schedule(schedule) | {
            "encoder.freeze": (True, "the branch alone learns, as released"),
            "train.optimizer": ("sgd", "as released"),
            "train.lr": (0.1, "as released: with a tenth of it few steps teach too little"),
            "train.head_lr": (1.0, "that rate is the branch's"),
        }


@METHODS.register("irn")
class IRN(WalkMethod):
    """Class boundaries from confident labels, for a random walk of CAMs."""

    config_class = IRNConfig
    config: IRNConfig
    default_for = "affinity"

    def __init__(self, config: IRNConfig, encoder: Encoder, classes: int) -> None:
        super().__init__(config, encoder, classes)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, WIDTH, 1, bias=False), nn.GroupNorm(GROUPS, WIDTH)) for c in encoder.channels
        )
        self.join = nn.Conv2d(WIDTH * len(self.levels), 1, 1)

    def boundary_logits(self, images: Tensor) -> Tensor:
        """(B,h,w) of the class-boundary map, before the sigmoid; float32.

        A map of stride 2 is max-pooled to stride 4 first, as a ResNet does with it.
        """
        maps = list(self.encoder(images).maps)
        if self.encoder.strides[0] == 2:
            maps[0] = F.max_pool2d(maps[0], 3, stride=2, padding=1)
        reduced = [level(m) for level, m in zip(self.levels, maps)]
        return self.join(on_one_grid(reduced, self.grid(images)).relu())[:, 0].float()

    def losses(self, batch: Batch, step: int) -> Losses:
        """fg, bg: same-class pairs, no boundary between them; neg: of two classes, a boundary somewhere between."""
        boundary = self.boundary_logits(batch.images).sigmoid()
        _, kinds = self.pairs(batch, (boundary.shape[-2], boundary.shape[-1]))
        _, affinity = path_affinity(boundary, self.config.radius)
        terms = pair_affinity_loss(affinity, kinds)
        return Losses(terms, weighted(terms))

    @torch.no_grad()
    def boundary(self, images: Tensor) -> Tensor:
        """(B,h,w) in [0,1], from the mean logit of the images and their mirror images."""
        grid = self.grid(images)
        straight, mirrored = self.boundary_logits(torch.cat([images, images.flip(-1)])).view(2, -1, *grid).unbind()
        return ((straight + mirrored.flip(-1)) / 2).sigmoid()

    @torch.no_grad()
    def propagate(self, images: Tensor, cams: Tensor) -> Tensor:
        """The classes walk from where no boundary is; their largest value becomes 1, the background ``threshold``."""
        cfg = self.config
        boundary = self.boundary(images)[0]
        maps = to_grid(cams, self.grid(images)) * (1 - boundary)
        edges, affinity = path_affinity(boundary, cfg.walk_radius)
        walked = random_walk(maps, edges, affinity, cfg.walk_steps, cfg.beta)
        walked = resize(walked[None], (images.shape[-2], images.shape[-1]))[0]
        walked = walked / walked.max().clamp(min=1e-5)
        return torch.cat([torch.full_like(walked[:1], cfg.threshold), walked])
