"""Equivariance of class activation maps under a change of the view."""

from __future__ import annotations

from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes, full


def equivariance(cam_warped: Tensor, cam_of_warped: Tensor) -> Tensor:
    """Mean of |A(E(I)) − E(A(I))|: the warped maps of an image against the maps of the warped image.

    Xu et al., Self Correspondence Distillation, AAAI 2023, equation 12; the norm is a mean over images, classes and
    positions, so that it does not grow with the maps' size. It is proportional to their values: where maps that
    merely shrink shall gain nothing, give normalised ones. Gradient flows into both arguments.

    cam_warped, cam_of_warped: (B,C,h,w), any range. Returns a scalar ≥ 0, float32 for half-precision maps. Raises
    TagmaskError when the shapes differ, and for empty maps.

    Examples:
        >>> equivariance(torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
        tensor(1.)
    """
    check_shapes("Equivariance", "maps (B,C,h,w) and (B,C,h,w)", cam_warped, cam_of_warped)
    if cam_warped.numel() == 0:
        raise TagmaskError(f"Equivariance: the maps {tuple(cam_warped.shape)} are empty; give at least one image.")
    return (full(cam_warped) - cam_of_warped).abs().mean()
