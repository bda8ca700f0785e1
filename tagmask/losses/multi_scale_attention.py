"""Multi-scale attention: CAMs of several scales learn from another network's, dissimilar ones with more weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes, full


def multi_scale_attention(
    cams_main: Sequence[Tensor],
    cams_support: Sequence[Tensor],
    tags: Tensor,
    attention: bool = True,
    normalized: bool = True,
    reduction: Literal["mean", "sum"] = "mean",
    valid: Tensor | None = None,
    target: Literal["mean", "renormalized"] = "mean",
) -> Tensor:
    """L1 distance of each scale's CAM to a weighted mean of the other network's CAMs of all scales.

    Yoon et al., Exploring Pixel-level Self-supervision for Weakly Supervised Semantic Segmentation, equations 6 to 8.
    For each tagged class ξ_ij = 2 − cos(main_i, support_j) over the positions of the map, and the target of scale i
    is ⅓ Σ_j ξ_ij support_j. For CAMs in [0,1] ξ is in [1,2], so the printed target reaches up to 2; ``normalized``
    divides the ξ of a scale i by their mean. Targets are constants: gradient flows into ``cams_main`` only, and not
    through ξ.

    CAMs that peak at 1 in different places have a mean that peaks below 1, so a trained map that is divided by its own
    maximum never equals the target. ``target='renormalized'`` divides each target by its maximum; a common factor of
    the ξ, which is all that ``normalized`` changes, does nothing then.

    cams_main: one (B,C,h,w) in [0,1] a scale, usually three, on one grid. cams_support: likewise, any number; one
    scale of ``cams_main`` is the paper's single-multi module (SMM). tags: (B,C) of 0/1; only tagged classes count.
    attention: False sets ξ = 1 (the paper's MMM). reduction: of the L1 norm over positions, 'mean' or, as printed,
    'sum'; it is summed over tagged classes and scales and averaged over images. valid: (B,h,w) bool, positions that
    count, in ξ and in the norm; default: all.
    Returns a scalar ≥ 0, float32 for half-precision CAMs. Raises TagmaskError when the shapes do not fit.

    Examples:
        >>> ones, halves = [torch.ones(1, 1, 2, 2)], [torch.full((1, 1, 2, 2), 0.5)] * 3
        >>> multi_scale_attention(ones, halves, torch.ones(1, 1))
        tensor(0.5000)
    """
    if not cams_main or not cams_support:
        raise TagmaskError("Multi-scale attention: there is no CAM of one of the networks; give at least one each.")
    for cams in (*cams_main, *cams_support):
        check_shapes("Multi-scale attention", "CAMs (B,C,h,w), (B,C,h,w) and tags (B,C)", cams, cams_main[0], tags)
    main, support = full(torch.stack(list(cams_main))), torch.stack(list(cams_support))
    valid = main.new_ones(len(tags), *main.shape[-2:]) if valid is None else valid.to(main.dtype)
    main, support = main * valid[:, None], support * valid[:, None]
    # The tagged classes of all images in one dimension: (scales, n, positions).
    tagged = tags > 0
    main, support = main.flatten(3)[:, tagged], support.to(main.dtype).flatten(3)[:, tagged].detach()
    weights = main.new_ones(len(main), len(support), main.shape[1])
    if attention:
        # A map of zeros has no direction; its cosine with any map counts as 0.
        directions = F.normalize(main.detach(), dim=-1), F.normalize(support, dim=-1)
        weights = 2 - (directions[0][:, None] * directions[1][None]).sum(-1)
        if normalized:
            weights = weights / weights.mean(1, keepdim=True)
    targets = (weights[..., None] * support).mean(1)
    if target == "renormalized":
        targets = targets / targets.amax(-1, keepdim=True).clamp(min=1e-5)
    distances = (targets - main).abs().sum(-1)
    if reduction == "mean":
        distances = distances / valid.sum((-2, -1)).clamp(min=1)[tagged.nonzero()[:, 0]]
    return distances.sum() / len(tags)
