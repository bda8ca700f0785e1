"""Class regions as supervision: of features, by the prototype of their class, or of CAMs, directly."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask import comm
from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes, full

LEAST_CAM = 0.01
"""Smallest distance of CAMs from 0 and 1 in a logarithm."""


def regional_contrast(
    features: Tensor,
    masks: Tensor,
    prototypes: Tensor,
    temperature: float = 0.5,
    log: bool = True,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Contrast of each position's feature with the prototypes: −log of the softmax at its own class.

    Yoon et al., Exploring Pixel-level Self-supervision for Weakly Supervised Semantic Segmentation, equations 4 and 5;
    features and prototypes are L2-normalised first. Equation 5 is printed as a sum without a logarithm; its source,
    the InfoNCE bound of contrastive predictive coding, has the logarithm. ``log=False`` with ``reduction='sum'`` is
    the printed equation: minus the softmax, summed over positions and classes.

    A prototype of length 0 is a class never seen: the softmax leaves it out, and positions in its mask do not count.
    Positions in no mask do not count either. Gradient flows into features and prototypes; the prototypes of
    ``tagmask.cam.class_prototypes`` have none.

    features: (B,D,h,w), any range. masks: bool or 0/1 (B,K,h,w), a position in one mask at most; prototypes: (K,D).
    temperature: above 0. reduction: 'mean' over the positions that count; 'sum' over those of an image, mean over
    images. Returns a scalar, ≥ 0 with ``log``, 0 where nothing counts; float32 for half-precision features. Raises
    TagmaskError when the shapes do not fit or the temperature is not above 0.

    Examples:
        >>> features = torch.tensor([[[[1.0]], [[0.0]]]])
        >>> regional_contrast(features, torch.tensor([[[[1]], [[0]]]]), torch.eye(2), temperature=0.5)
        tensor(0.1269)
    """
    wanted = "features (B,D,h,w), masks (B,K,h,w) and prototypes (K,D)"
    check_shapes("Regional contrast", wanted, features, masks, prototypes)
    if not temperature > 0:
        raise TagmaskError(f"Regional contrast: the temperature must be above 0, got {temperature}.")
    features = full(features)
    prototypes = prototypes.to(features.dtype)
    seen = prototypes.detach().square().sum(1) > 0
    # Autocast would compute the product in half precision.
    with torch.autocast(features.device.type, enabled=False):
        logits = torch.einsum("bdp,kd->bkp", F.normalize(features, dim=1).flatten(2), F.normalize(prototypes, dim=1))
    logits = (logits / temperature).masked_fill(~seen[:, None], float("-inf"))
    own = masks.flatten(2).bool() & seen[:, None]
    costs = -(logits.log_softmax(1) if log else logits.softmax(1))
    # gather, not a product: the costs of excluded classes are infinite.
    label = own.int().argmax(1, keepdim=True)
    counted = own.any(1)
    found = torch.where(counted, costs.gather(1, label)[:, 0], torch.zeros_like(costs[:, 0]))
    return found.sum() / (comm.share(counted.sum()) if reduction == "mean" else len(features))


def region_cross_entropy(
    cams: Tensor, masks: Tensor, tags: Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Binary cross-entropy of CAMs with class regions, for the tagged classes.

    Experiment 1 of Table 2 in the paper of ``regional_contrast``, whose section 3.2 only names the cross-entropy of
    CAMs with region masks. There is no CAM of the background, so each tagged class is compared with its own region:
    −log a inside, −log(1 − a) outside. a is the CAM rescaled to [0.01, 0.99], as CAMs reach 0 and 1, where a logarithm
    would be infinite.

    cams: (B,C,h,w) in [0,1]; masks: bool or 0/1 (B,C+1,h,w), background first, at most one mask a position; positions
    in none do not count; tags: (B,C) of 0/1. reduction: 'mean' over positions and classes that count; 'sum' over them,
    mean over images. Returns a scalar ≥ 0, 0 where nothing counts; float32 for half-precision CAMs. Raises
    TagmaskError when the shapes do not fit.

    Examples:
        >>> masks = torch.tensor([[[[1, 0]], [[0, 1]]]])
        >>> region_cross_entropy(torch.tensor([[[[0.0, 1.0]]]]), masks, torch.tensor([[1]]))
        tensor(0.0101)
    """
    check_shapes("Region cross-entropy", "CAMs (B,C,h,w), masks (B,C+1,h,w) and tags (B,C)", cams, masks, tags)
    cams = full(cams)
    masks = masks.bool()
    counted = masks.any(1, keepdim=True) & (tags > 0)[:, :, None, None]
    bounded = LEAST_CAM + (1 - 2 * LEAST_CAM) * cams
    costs = -torch.where(masks[:, 1:], bounded, 1 - bounded).log() * counted
    return costs.sum() / (comm.share(counted.sum()) if reduction == "mean" else len(cams))
