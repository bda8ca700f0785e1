"""Class regions as supervision: features drawn to the prototype of their class, or class maps to the regions."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask.errors import TagmaskError


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
    features and prototypes are L2-normalised first. Equation 5 prints no logarithm, and a sum; its source, the
    mutual-information bound of contrastive predictive coding (InfoNCE), has the logarithm. ``log=False`` with
    ``reduction='sum'`` is the print: minus the softmax, summed over positions and classes.

    A prototype of length 0 is a class never seen: it takes no part in the softmax, and positions in its mask do not
    count. Neither do positions in no mask. Gradient flows into features and prototypes; prototypes that
    ``tagmask.cam.class_prototypes`` gave are constants.

    features: (B,D,h,w), any range. masks: bool or 0/1 (B,K,h,w), a position in one mask at most; prototypes: (K,D).
    temperature: above 0. reduction: 'mean' over the positions that count; 'sum' over those of an image, mean over
    images. Returns a scalar, ≥ 0 with ``log``, 0 where nothing counts; float32 for half-precision features. Raises
    TagmaskError when the shapes do not fit or the temperature is not above 0.

    Example:
        >>> features = torch.tensor([[[[1.0]], [[0.0]]]])
        >>> regional_contrast(features, torch.tensor([[[[1]], [[0]]]]), torch.eye(2), temperature=0.5)
        tensor(0.1269)
    """
    fits = features.dim() == masks.dim() == 4 and features.shape[-2:] == masks.shape[-2:]
    if not fits or len(features) != len(masks) or prototypes.shape != (masks.shape[1], features.shape[1]):
        raise TagmaskError(
            "Regional contrast: features are (B,D,h,w), masks (B,K,h,w) and prototypes (K,D), got "
            f"{tuple(features.shape)}, {tuple(masks.shape)} and {tuple(prototypes.shape)}."
        )
    if not temperature > 0:
        raise TagmaskError(f"Regional contrast: the temperature is {temperature}; it is above 0.")
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    prototypes = prototypes.to(features.dtype)
    seen = prototypes.detach().square().sum(1) > 0
    # Autocast would take the product in half precision.
    with torch.autocast(features.device.type, enabled=False):
        logits = torch.einsum("bdp,kd->bkp", F.normalize(features, dim=1).flatten(2), F.normalize(prototypes, dim=1))
    logits = (logits / temperature).masked_fill(~seen[:, None], float("-inf"))
    own = masks.flatten(2).bool() & seen[:, None]
    return _own_class(-(logits.log_softmax(1) if log else logits.softmax(1)), own, reduction)


def region_cross_entropy(
    maps: Tensor, masks: Tensor, tags: Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Cross-entropy of class maps with class regions: −log of the softmax over tagged classes and the background.

    Experiment 1 of Table 2 in the paper of ``regional_contrast``, whose section 3.2 names the cross-entropy of CAMs
    with region masks. It does not say what the background's score is: here 0, the value that class maps are cut at to
    be CAMs, so that a position learns to be above it for its class alone. A position in no mask, or in that of a class
    without a tag, does not count.

    maps: (B,C,h,w) class maps before ReLU, any range; masks: bool or 0/1 (B,C+1,h,w), background first, a position in
    one mask at most; tags: (B,C) of 0/1. reduction: as in ``regional_contrast``. Returns a scalar ≥ 0, 0 where nothing
    counts; float32 for half-precision maps. Raises TagmaskError when the shapes do not fit.

    Example:
        >>> region_cross_entropy(torch.zeros(1, 2, 1, 1), torch.tensor([[[[0]], [[1]], [[0]]]]), torch.tensor([[1, 0]]))
        tensor(0.6931)
    """
    fits = maps.dim() == masks.dim() == 4 and maps.shape[-2:] == masks.shape[-2:]
    if not fits or masks.shape[:2] != (len(maps), maps.shape[1] + 1) or tags.shape != maps.shape[:2]:
        raise TagmaskError(
            "Region cross-entropy: maps are (B,C,h,w), masks (B,C+1,h,w) and tags (B,C), got "
            f"{tuple(maps.shape)}, {tuple(masks.shape)} and {tuple(tags.shape)}."
        )
    if maps.dtype in (torch.float16, torch.bfloat16):
        maps = maps.float()
    present = F.pad(tags > 0, (1, 0), value=True)[:, :, None]
    logits = F.pad(maps.flatten(2), (0, 0, 1, 0)).masked_fill(~present, float("-inf"))
    own = masks.flatten(2).bool() & present
    return _own_class(-logits.log_softmax(1), own, reduction)


def _own_class(values: Tensor, own: Tensor, reduction: str) -> Tensor:
    """Mean or sum, as in ``regional_contrast``, of each position's value (B,K,P) at its class; own: bool (B,K,P)."""
    # Looked up, not multiplied: values of classes that take no part are infinite.
    label = own.int().argmax(1, keepdim=True)
    counted = own.any(1)
    found = torch.where(counted, values.gather(1, label)[:, 0], torch.zeros_like(values[:, 0]))
    return found.sum() / (counted.sum().clamp(min=1) if reduction == "mean" else len(values))
