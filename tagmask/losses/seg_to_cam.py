"""Binary cross-entropy of class activation maps with a sharpened segmentation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tagmask import comm
from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes, full, resize


def segmentation_labels(seg_logits: Tensor, tags: Tensor, temperature: float = 0.01) -> Tensor:
    """Sharpened softmax of segmentation logits over the background and the tagged classes; absent classes are 0.

    Yang et al., Co-training with Swapping Assignments, ECCV 2024, equation 7 ("segmentation pseudo-labels").

    seg_logits: (B,C+1,h,w), background first. tags: (B,C) of 0/1. temperature: divides the logits, above 0.
    Returns (B,C+1,h,w) that sum to 1 over channels, float32 for half precision. Raises TagmaskError when shapes do not
    fit and for a temperature that is not above 0.
    """
    check_shapes("Segmentation labels", "logits (B,C+1,h,w), with background, and tags (B,C)", seg_logits, tags)
    if not temperature > 0:
        raise TagmaskError(f"Segmentation labels: the temperature is above 0, got {temperature}.")
    absent = F.pad(tags <= 0, (1, 0))  # the background is never absent
    return full(seg_logits).masked_fill(absent[:, :, None, None], float("-inf")).div(temperature).softmax(1)


def seg_to_cam(
    cams: Tensor,
    seg_logits: Tensor,
    tags: Tensor,
    temperature: float = 0.01,
    valid: Tensor | None = None,
    rectify: bool = False,
) -> Tensor:
    """Mean binary cross-entropy of σ(CAM) with the segmentation labels of the foreground classes.

    Yang et al., Co-training with Swapping Assignments, ECCV 2024, equation 8. The labels are ``segmentation_labels``
    (equation 7), resized to the CAMs' grid where sizes differ (bilinear, align_corners=False); they get no gradient.

    cams: (B,C,h,w) raw class maps (logits). seg_logits: (B,C+1,h',w'), background first. tags: (B,C) of 0/1.
    valid: bool (B,h,w), positions that count, such as the photo without its padding; default: all.
    rectify: apply a ReLU before σ, as the authors' release does; σ is then at least ½.
    Returns a scalar ≥ 0, float32 for half-precision maps; 0, with gradient 0, if no position counts. Raises
    TagmaskError as ``segmentation_labels`` does.

    Examples:
        >>> seg_to_cam(torch.zeros(1, 2, 4, 4), torch.randn(1, 3, 4, 4), torch.tensor([[1.0, 0.0]]))
        tensor(0.6931)
    """
    check_shapes("Segmentation to CAM", "CAMs (B,C,h,w), tags (B,C) and valid (B,h,w)", cams, tags, valid)
    cams = full(cams)
    labels = segmentation_labels(seg_logits.detach(), tags, temperature)[:, 1:]
    target = resize(labels.to(cams.dtype), cams.shape[-2:])
    losses = F.binary_cross_entropy_with_logits(cams.relu() if rectify else cams, target, reduction="none")
    if valid is None:
        return losses.mean()
    counted = valid[:, None].to(losses.dtype)
    return (losses * counted).sum() / comm.share(counted.sum() * cams.shape[1])
