"""What AffinityNet and IRN share: they learn affinities from label files that tags made, and walk over them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from tagmask.config import MethodConfig
from tagmask.errors import TrainingError
from tagmask.losses.affinity import downsample_labels
from tagmask.losses.pair_affinity import pair_labels
from tagmask.methods.base import Method
from tagmask.refine import radius_edges
from tagmask.strict import USED, Factor, Few, settings
from tagmask.types import Batch


class WalkConfig(MethodConfig):
    """Settings that a walk has, whatever made its affinities. Those of the walk itself may change after training."""

    stride: Few = Field(8, description="image pixels a step of the grid of affinities and walk")
    radius: float = Field(5, gt=1, le=1000, description="pairs closer than this teach, in grid steps")
    walk_radius: Annotated[float, USED] = Field(5, gt=1, le=1000, description="closer pairs take part in the walk")
    beta: Annotated[Factor, USED] = Field(8, description="exponent of the affinities in the walk")
    walk_steps: Annotated[int, USED] = Field(
        256, ge=0, le=10**6, description="steps of the walk; the papers square a matrix eight times"
    )

    def walk(self) -> dict[str, Any]:
        """The settings of the walk by name: all that may be set when the trained network is used."""
        return settings(self, lambda role: role.used)

    @classmethod
    def stage_labels(cls) -> dict[str, Any]:
        """Settings of stage ``cams``, by their names there, that make the labels this method learns from best.

        ``tagmask run`` plans them where the user sets none. Empty: that stage's defaults suit the method.
        """
        return {}


class WalkMethod(Method):
    """A network of affinities. It has neither CAMs nor a segmenter: other methods' CAMs walk over what it learned.

    Its masks are confident labels that were made from tags (stage ``cams``), never true ones: ``labels_from_tags``
    tells the training so.
    """

    reads_masks = True
    labels_from_tags: ClassVar[bool] = True
    config: WalkConfig

    def propagate(self, images: Tensor, cams: Tensor) -> Tensor:
        """Scores (K+1,H,W), background first, of an image's CAMs after the walk; the largest is a pixel's label.

        images: (1,3,H,W) in [0,1]. cams: (K,H,W) in [0,1], of the K ≥ 1 classes that the image has. No gradient.
        """
        raise NotImplementedError

    def grid(self, images: Tensor) -> tuple[int, int]:
        """(h,w) of the affinities of images (B,3,H,W): one position for ``stride`` pixels, rounded up."""
        height, width = images.shape[-2:]
        return -(-height // self.config.stride), -(-width // self.config.stride)

    def pairs(self, batch: Batch, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Edges (2,E) within ``radius`` and what each teaches (B,E), from the batch's labels."""
        if batch.masks is None:
            raise TrainingError(
                f"Method '{self.config.name}' learns from confident labels; set data.train_masks to their folder, or "
                "let 'tagmask run' make them (stages: cams, affinity)."
            )
        edges, _ = radius_edges(*grid, self.config.radius, batch.masks.device)
        return edges, pair_labels(downsample_labels(batch.masks, grid), edges)


def to_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """(K,H,W) as cell means (K,h,w)."""
    return F.interpolate(maps[None].float(), size=grid, mode="area")[0]


def on_one_grid(maps: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """(B,ΣD,h,w): maps (B,D,h',w') resized bilinearly and joined."""
    return torch.cat([F.interpolate(m, size=grid, mode="bilinear", align_corners=False) for m in maps], 1)
