"""From CAMs to pseudo labels: which tags of a crop count, which pixels do, and equation 3 of CoSA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tagmask.cam import pseudo_labels
from tagmask.cam.maps import resize
from tagmask.tensors import inside
from tagmask.types import IGNORE, Batch


class Assigned(NamedTuple):
    """What labels are cut from: CAMs (B,C,h,w) in [0,1], the tags that are trusted, bool (B,C), and the threshold ξ."""

    cams: Tensor
    trusted: Tensor
    threshold: Tensor | float


@torch.no_grad()
def cam_assignment(assigned: Assigned, size: tuple[int, int], low: float | None = None) -> tuple[Tensor, Tensor]:
    """Labels and confidence on a grid of ``size``, to which the CAMs are resized.

    Equation 3 of Co-training with Swapping Assignments: the class of the largest CAM ν among the trusted ones where
    ν ≥ ξ, else 0. With ``low``, 255 where low ≤ ν < ξ. Returns long (B,H,W) of 0, 1..C and 255, and ν (B,H,W), which
    is 0 where no tag is trusted.
    """
    trusted = assigned.trusted
    # Only the channels of trusted tags are resized, of 80 classes seldom more than five.
    count = max(1, int(trusted.sum(1).max()))
    classes = trusted.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    cams = assigned.cams.gather(1, classes[:, :, None, None].expand(-1, -1, *assigned.cams.shape[-2:]))
    cams = cams * trusted.gather(1, classes)[:, :, None, None]
    confidence, index = resize(cams, size).max(1)
    labels = classes.gather(1, index.flatten(1)).view_as(index) + 1
    below = confidence < assigned.threshold
    labels = labels.masked_fill(below, 0)
    if low is not None:
        labels = labels.masked_fill(below & (confidence >= low), IGNORE)
    return labels, confidence


@torch.no_grad()
def batch_labels(
    assigned: Assigned, batch: Batch, refiner: nn.Module | None, low: float | None = None
) -> tuple[Tensor, Tensor]:
    """Labels, which the refiner may have refined, and confidence of the CAMs; (B,H,W) as the batch's images.

    ``low`` as in ``cam_assignment``; 255 also as ``without_doubt`` has it.
    """
    labels, confidence = cam_assignment(assigned, (batch.images.shape[-2], batch.images.shape[-1]), low)
    if refiner is not None:
        high = float(assigned.threshold)
        low = high if low is None else low
        labels = pseudo_labels(assigned.cams, assigned.trusted, high, low, refine=refiner, images=batch.images)
    return without_doubt(labels, batch, assigned.trusted), confidence


def without_doubt(labels: Tensor, batch: Batch, trusted: Tensor) -> Tensor:
    """Labels (B,h,w) with 255 outside of the photos, and on background of images with a tag that is not trusted.

    What looks like background there may be that tag's class.
    """
    doubtful = (trusted < (batch.tags > 0)).any(1)[:, None, None] & (labels == 0)
    return labels.masked_fill(doubtful | ~photo_positions(batch, (labels.shape[-2], labels.shape[-1])), IGNORE)


def photo_positions(batch: Batch, grid: tuple[int, int]) -> Tensor:
    """bool (B,h,w): positions of a grid over the batch's images whose centre is photo and not padding."""
    return inside(batch.boxes, batch.images.shape[-2:], grid)


def mean_of_views(maps: Sequence[Tensor], flip: bool) -> Tensor:
    """Mean of float32 maps (n,K,·,·) over scales, on the finest grid; ``flip``: mirror images' maps come behind."""
    size = max((x.shape[-2], x.shape[-1]) for x in maps)
    parts = []
    for x in maps:
        x = x.float()
        if flip:
            straight, mirrored = x.chunk(2)
            x = (straight + mirrored.flip(-1)) / 2
        parts.append(resize(x, size))
    return torch.stack(parts).mean(0)
