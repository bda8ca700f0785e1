"""Which classes of a pretrained network a tag is made of."""

from __future__ import annotations

from torch import Tensor


def association(seen: Tensor, photos: Tensor) -> Tensor:
    """(C,S) share of each pretrained class in each tag: how much more probable it is in photos with the tag.

    seen: (C+1,S) sums of probabilities over the photos of a tag, and in the last row over all; photos: (C+1,) their
    numbers. The mean probability in photos with the tag, less the mean in those without it, cut at 0; rows sum to 1, or
    are 0 where no photo has the tag.
    """
    inside = seen[:-1] / photos[:-1, None].clamp(min=1)
    outside = (seen[-1:] - seen[:-1]) / (photos[-1:] - photos[:-1])[:, None].clamp(min=1)
    return row_shares((inside - outside).clamp(min=0))


def row_shares(weights: Tensor) -> Tensor:
    """Weights (...,S) >= 0, scaled so that they sum to 1 over S; rows of zeros stay."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
