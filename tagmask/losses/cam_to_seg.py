"""Cross-entropy of a segmentation with CAM labels, weighted by the labels' reliability."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask import comm
from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes, full, resize
from tagmask.types import IGNORE

LEAST = 1e-8
"""Lower bound of a divisor."""


def cam_to_seg(
    logits: Tensor,
    labels: Tensor,
    perplexity: Tensor | None = None,
    log_probs: bool = False,
    balanced: bool = False,
) -> Tensor:
    """Mean cross-entropy over the whole batch's pixels R, each weighted by |R| · P⁻¹ / Σ P⁻¹, P being its perplexity.

    Yang et al., Co-training with Swapping Assignments, ECCV 2024, equation 5 ("reliability based adaptive weighting").
    The printed fraction is proportional to P, but the text says that reliability is the reciprocal of perplexity; this
    function follows the text. Without ``perplexity`` all pixels have equal weight. Weights get no gradient.

    logits: (B,C+1,h,w), background first, resized to the labels' size where it differs (bilinear,
    align_corners=False). labels: integers (B,H,W), 0 background, 1..C, 255 ignored. perplexity: (B,H,W), 0 to ∞; an
    infinite one gives weight 0. log_probs: ``logits`` are a log_softmax of the labels' size, which a caller can share
    between several kinds of labels. balanced: ½ the mean over the background's pixels + ½ that over the others, as in
    the released code (there without perplexity); a half without pixels is 0. Returns a scalar ≥ 0, float32 for
    half-precision logits; 0, with gradient 0, if all weights are 0. Raises TagmaskError when shapes do not fit.

    Examples:
        >>> labels = torch.tensor([[[0, 1]]])
        >>> cam_to_seg(torch.zeros(1, 2, 1, 2), labels, torch.tensor([[[0.2, 3.0]]]))
        tensor(0.6931)
    """
    wanted = "logits (B,C+1,h,w), labels (B,H,W) and perplexity (B,H,W)"
    check_shapes("CAM to segmentation", wanted, logits, labels, perplexity)
    if log_probs and logits.shape[-2:] != labels.shape[-2:]:
        raise TagmaskError(
            f"CAM to segmentation: log-probabilities {tuple(logits.shape)} and labels {tuple(labels.shape)} differ "
            "in size; resize the logits before their log_softmax."
        )
    logits = resize(full(logits), labels.shape[-2:])
    # nll_loss gives ignored pixels value and gradient 0.
    known = logits if log_probs else logits.log_softmax(1)
    losses = F.nll_loss(known, labels.long(), ignore_index=IGNORE, reduction="none")
    weights = (labels != IGNORE).to(losses.dtype)
    if perplexity is not None:
        weights = weights / perplexity.detach().to(losses.dtype).clamp(min=LEAST)
    # |R| cancels with the mean's divisor.
    if not balanced:
        return (losses * weights).sum() / comm.share(weights.sum(), LEAST)
    background = labels == 0
    halves = torch.stack([weights * background, weights * ~background]).flatten(1)
    return (0.5 * (losses.flatten() * halves).sum(1) / comm.share(halves.sum(1), LEAST)).sum()
