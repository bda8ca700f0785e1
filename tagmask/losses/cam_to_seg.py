"""Cross-entropy of a segmentation against CAM labels, pixels weighted by the labels' reliability."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.types import IGNORE

LEAST = 1e-8
"""Smallest perplexity that is divided by."""


def cam_to_seg(
    logits: Tensor,
    labels: Tensor,
    perplexity: Tensor | None = None,
    log_probs: bool = False,
    balanced: bool = False,
) -> Tensor:
    """Mean cross-entropy over the batch's pixels R, each weighted by |R| · P⁻¹ / Σ P⁻¹, P being its perplexity.

    Yang et al., Co-training with Swapping Assignments, ECCV 2024, equation 5 ("reliability based adaptive weighting").
    The fraction as printed comes out proportional to P; its text says that reliability is the reciprocal of
    perplexity, and that is done here. Without ``perplexity`` all pixels weigh the same. ``balanced``: half of
    that mean over the pixels labelled background and half of that over the others, a half without pixels being 0 (the
    released code's, there without perplexity). Weights take no gradient.

    logits: (B,C+1,h,w), background first, resized to the labels' size where it differs (bilinear,
    align_corners=False). log_probs: they are a log_softmax already, of the labels' size, as it pays to make once for
    several kinds of labels. labels: integers (B,H,W), 0 background, 1..C, 255 ignored. perplexity: (B,H,W), 0 to ∞; a
    pixel of infinite perplexity weighs nothing. Returns a scalar ≥ 0, float32 for half-precision logits; 0, with
    gradient 0, where nothing has weight. Raises TagmaskError when shapes do not fit.

    Example:
        >>> labels = torch.tensor([[[0, 1]]])
        >>> cam_to_seg(torch.zeros(1, 2, 1, 2), labels, torch.tensor([[[0.2, 3.0]]]))
        tensor(0.6931)
    """
    if logits.dim() != 4 or labels.dim() != 3 or len(logits) != len(labels):
        raise TagmaskError(
            f"CAM to segmentation: logits are (B,C+1,h,w) and labels (B,H,W), got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if perplexity is not None and perplexity.shape != labels.shape:
        raise TagmaskError(
            f"CAM to segmentation: perplexity has the labels' shape {tuple(labels.shape)}, "
            f"got {tuple(perplexity.shape)}."
        )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if logits.shape[-2:] != labels.shape[-2:]:
        if log_probs:
            raise TagmaskError(
                f"CAM to segmentation: log-probabilities {tuple(logits.shape)} and labels {tuple(labels.shape)} differ "
                "in size; resize the logits before their log_softmax."
            )
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    # Ignored pixels come out as 0, with gradient 0.
    known = logits if log_probs else logits.log_softmax(1)
    losses = F.nll_loss(known, labels.long(), ignore_index=IGNORE, reduction="none")
    weights = (labels != IGNORE).to(losses.dtype)
    if perplexity is not None:
        weights = weights / perplexity.detach().to(losses.dtype).clamp(min=LEAST)
    # |R| cancels against the mean.
    if not balanced:
        return (losses * weights).sum() / weights.sum().clamp(min=LEAST)
    background = labels == 0
    halves = [weights * part for part in (background, ~background)]
    return sum(0.5 * (losses * half).sum() / half.sum().clamp(min=LEAST) for half in halves)  # type: ignore[return-value]
