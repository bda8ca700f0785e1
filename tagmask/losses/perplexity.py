"""Perplexity of class activation maps: how close their confidence is to the threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.tensors import full

TINY = 1e-12
"""Lower bound of ξ and 1 − ξ as divisors, so that a threshold of 0 or 1 does not give 0 / 0."""


def perplexity(confidence: Tensor, threshold: float | Tensor, alpha: float = 0.8, beta: float = 1.0) -> Tensor:
    """[−log(α·d)]^β, d being the distance of a confidence ν from the threshold ξ, relative to the largest on its side.

    Yang et al., Co-training with Swapping Assignments, ECCV 2024, equation 4: d = (ν − ξ)/(1 − ξ) if ν ≥ ξ, else
    (ξ − ν)/ξ. The perplexity is infinite at the threshold and least, (−log α)^β, where ν is 0 or 1. With α > 1 it is
    clamped to 0 where d > 1/α.

    confidence: any shape, in [0,1]. threshold: a number, or a tensor that broadcasts, in [0,1]. alpha, beta:
    above 0. Returns the confidence's shape, in [0,∞], float32 for half precision. Raises TagmaskError for
    alpha or beta out of range.

    Examples:
        >>> perplexity(torch.tensor([0.0, 0.5, 1.0]), 0.5)
        tensor([0.2231,    inf, 0.2231])
    """
    if not alpha > 0 or not beta > 0:
        raise TagmaskError(f"Perplexity: alpha and beta must be above 0, got {alpha} and {beta}.")
    confidence = full(confidence)
    xi = torch.as_tensor(threshold, dtype=confidence.dtype, device=confidence.device)
    above = (confidence - xi) / (1 - xi).clamp(min=TINY)
    below = (xi - confidence) / xi.clamp(min=TINY)
    distance = torch.where(confidence >= xi, above, below)
    return (-torch.log(alpha * distance)).clamp(min=0) ** beta
