"""Class regions from class activation maps, and the mean feature of each class over a batch."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask import comm
from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes, full


@torch.no_grad()
def region_masks(cams: Tensor, tags: Tensor, threshold: float) -> Tensor:
    """One mask a class: each position goes to the tagged class with the largest CAM above ``threshold``, or background.

    Yoon et al., Exploring Pixel-level Self-supervision for Weakly Supervised Semantic Segmentation, equations 1 and 2.
    Each position is in exactly one mask. A CAM equal to the threshold is background; of equal classes the lower wins.

    cams: (B,C,h,w) in [0,1]. tags: (B,C) of 0/1; threshold: at least 0. Returns bool (B,C+1,h,w), background first.
    Raises TagmaskError when the shapes do not fit or the threshold is negative.

    Examples:
        >>> region_masks(torch.tensor([[[[0.9, 0.1]]]]), torch.ones(1, 1), 0.2)[0, :, 0].int()
        tensor([[0, 1],
                [1, 0]], dtype=torch.int32)
    """
    check_shapes("Region masks", "CAMs (B,C,h,w) and tags (B,C)", cams, tags)
    if threshold < 0:
        raise TagmaskError(f"Region masks: the threshold must be in [0,1], as CAMs are, got {threshold}.")
    present = cams.masked_fill(tags[:, :, None, None] <= 0, -1)
    best, label = present.max(1)
    label = (label + 1).masked_fill(best <= threshold, 0)
    return F.one_hot(label, cams.shape[1] + 1).movedim(-1, 1) > 0


@torch.no_grad()
def class_prototypes(features: Tensor, masks: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """L2-normalised mean feature of each class, over the batches of all processes. Without gradient.

    The paper of ``region_masks``, equation 3 and the mean over images after it: the mean of an image's features in
    the mask of a class, then the mean over the images in which that mask is not empty, then L2 normalisation.
    (Equation 3 prints a sum over the mask, but its text says average. After L2 normalisation they differ only for a
    class that several images of the batch have: with sums, ``reduction='sum'``, large regions outweigh small ones.)

    features: (B,D,h,w), any range. masks: bool or 0/1 (B,K,h,w), as ``region_masks`` gives them. reduction: of the
    features in one image's mask.
    Returns (K,D) of unit length, float32 for half-precision features; 0 for a class without a position. Raises
    TagmaskError when the shapes do not fit.

    Examples:
        >>> class_prototypes(torch.tensor([[[[3.0]], [[4.0]]]]), torch.ones(1, 1, 1, 1))
        tensor([[0.6000, 0.8000]])
    """
    check_shapes("Class prototypes", "features (B,D,h,w) and masks (B,K,h,w)", features, masks)
    features = full(features)
    inside = masks.flatten(2).to(features.dtype)
    counts = inside.sum(2)
    # Autocast would compute the product in half precision.
    with torch.autocast(features.device.type, enabled=False):
        weights = inside / counts.clamp(min=1)[:, :, None] if reduction == "mean" else inside
        found = torch.einsum("bkp,bdp->bkd", weights, features.flatten(2))
    sums = comm.all_sum(found.sum(0))
    images = comm.all_sum((counts > 0).sum(0))
    return F.normalize(sums / images.clamp(min=1)[:, None], dim=1)
