"""Equivariance of class activation maps under a change of the view."""

from __future__ import annotations

import torch
from torch import Tensor

from tagmask.errors import TagmaskError


def equivariance(cam_warped: Tensor, cam_of_warped: Tensor) -> Tensor:
    """Mean of |A(E(I)) − E(A(I))|: the warped maps of an image against the maps of the warped image.

    Xu et al., Self Correspondence Distillation, AAAI 2023, equation 12; the norm is a mean over images, classes
    and positions, so that it does not grow with the maps. Gradient flows into both arguments.

    cam_warped, cam_of_warped: (B,C,h,w), any range. Returns a scalar ≥ 0, float32 for half-precision maps. Raises
    TagmaskError when the shapes differ, and for empty maps.

    Example:
        >>> equivariance(torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
        tensor(1.)
    """
    if cam_warped.dim() != 4 or cam_warped.shape != cam_of_warped.shape:
        raise TagmaskError(
            "Equivariance compares two sets of maps (B,C,h,w) of one shape, "
            f"got {tuple(cam_warped.shape)} and {tuple(cam_of_warped.shape)}."
        )
    if cam_warped.numel() == 0:
        raise TagmaskError(f"Equivariance: the maps {tuple(cam_warped.shape)} are empty; give at least one image.")
    if cam_warped.dtype in (torch.float16, torch.bfloat16):
        cam_warped = cam_warped.float()
    return (cam_warped - cam_of_warped).abs().mean()
