"""Contrastive separation: class maps of like regions shall be alike, of unlike regions different."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.types import IGNORE

EPS = 1e-8
"""Smallest norm that a vector is divided by."""

NOTHING = -1e9
"""Logarithm of an empty sum; an infinite one would make gradients NaN."""


def contrastive_separation(
    cams: Tensor, labels: Tensor, perplexity: Tensor, epsilon: float = 1.0, temperature: float = 0.1
) -> Tensor:
    """InfoNCE between the class vectors of positions whose labels are sure.

    Yang et al., Co-training with Swapping Assignments, ECCV 2024, equations 9 and 10. Within an image, Ω are the
    positions of perplexity ≤ ε; those of one label are positives of each other, the others negatives. For anchor i,
    −log L_ip / (L_ip + Σ_n L_in) is averaged over its positives p, n being its negatives and L_ij = exp(cosine of the
    class vectors at i and j / temperature); this is averaged over Ω, then over images. Anchors without a positive are
    left out, and so are images without anchors. Gradient flows into ``cams`` only.

    cams: (B,C,h,w), class maps of any range. labels: integers (B,h,w), 0 background, 1..C, 255 never in Ω.
    perplexity: (B,h,w). epsilon: largest perplexity in Ω. temperature: above 0. Returns a scalar ≥ 0, float32 for
    half-precision maps; 0 where there is no anchor. Memory is that of |Ω|² similarities an image, at most 784² (2.5 MB
    a copy) for maps of 28×28, as a ViT of patch 16 has them at 448 pixels. Raises TagmaskError when shapes do not fit
    and for a temperature that is not above 0.

    Example:
        >>> labels = torch.tensor([[[0, 0], [1, 1]]])
        >>> loss = contrastive_separation(torch.randn(1, 3, 2, 2), labels, torch.zeros(1, 2, 2))
    """
    if cams.dim() != 4 or labels.shape != (len(cams), *cams.shape[-2:]) or perplexity.shape != labels.shape:
        raise TagmaskError(
            f"Contrastive separation: CAMs are (B,C,h,w), labels and perplexity (B,h,w) on their grid, got "
            f"{tuple(cams.shape)}, {tuple(labels.shape)} and {tuple(perplexity.shape)}."
        )
    if not temperature > 0:
        raise TagmaskError(f"Contrastive separation: the temperature is above 0, got {temperature}.")
    if cams.dtype in (torch.float16, torch.bfloat16):
        cams = cams.float()
    sure = ((perplexity <= epsilon) & (labels != IGNORE)).flatten(1)
    vectors = F.normalize(cams.flatten(2), dim=1, eps=EPS).mT
    with torch.autocast(cams.device.type, enabled=False):
        found = [_of_image(v[s], y[s], temperature) for v, y, s in zip(vectors, labels.flatten(1), sure)]
    losses = [loss for loss in found if loss is not None]
    return torch.stack(losses).mean() if losses else cams.sum() * 0


def _of_image(vectors: Tensor, labels: Tensor, temperature: float) -> Tensor | None:
    """Equation 10 for unit vectors (n,C) and their labels (n,); None where no position has a positive."""
    same = labels[:, None] == labels
    positives = (same.sum(1) - 1).to(vectors.dtype)  # all but itself
    anchors = positives > 0
    if not anchors.any():
        return None
    similarity = vectors @ vectors.mT / temperature
    negatives = similarity.masked_fill(same, NOTHING).logsumexp(1, keepdim=True)
    terms = F.softplus(negatives - similarity)  # −log L / (L + K)
    others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    each = (terms * others).sum(1) / positives.clamp(min=1)
    return each.sum() / anchors.sum()
