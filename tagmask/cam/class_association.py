"""Which classes of a pretrained network a tag is made of."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGENET = 1000
"""Classes of ImageNet, as the competition has them."""
PLACES = (970, 972, 973, 974, 975, 976, 977, 978, 979, 980)
"""Of these the natural places, such as lakeside and seashore: what objects are photographed in front of."""


def association(seen: Tensor, photos: Tensor, places: bool = False) -> Tensor:
    """(C,S) share of each pretrained class in each tag: how much more probable it is in photos with the tag.

    seen: (C+1,S) sums of probabilities over the photos of a tag, and in the last row over all; photos: (C+1,) their
    numbers. The mean probability in photos with the tag, less the mean in those without it, cut at 0; rows sum to 1, or
    are 0 where no photo has the tag. places: false leaves ImageNet's natural places out of tags of which they make no
    more than half.
    """
    inside = seen[:-1] / photos[:-1, None].clamp(min=1)
    outside = (seen[-1:] - seen[:-1]) / (photos[-1:] - photos[:-1])[:, None].clamp(min=1)
    shares = row_shares((inside - outside).clamp(min=0))
    if places or shares.shape[1] != IMAGENET:
        return shares
    objects = shares.clone()
    objects[:, PLACES] = 0
    return torch.where(shares[:, PLACES].sum(1, keepdim=True) > 0.5, shares, row_shares(objects))


def row_shares(weights: Tensor) -> Tensor:
    """Weights (...,S) >= 0, scaled so that they sum to 1 over S; rows of zeros stay."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
