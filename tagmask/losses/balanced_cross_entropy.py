"""Cross-entropy in which background and foreground have equal weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask import comm
from tagmask.tensors import check_shapes, full, resize
from tagmask.types import IGNORE


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """½ mean cross-entropy of the background pixels + ½ that of the foreground pixels.

    The segmentation loss of the single-stage methods (AFA, CVPR 2022). The means go over the pixels of the whole
    batch (``comm.share``); a half without pixels is 0 and has no gradient.

    logits: (B,C+1,h,w), background first, resized to the labels' size where it differs (bilinear,
    align_corners=False). labels: integers (B,H,W), 0 background, 1..C, 255 ignored. Returns a scalar ≥ 0, float32
    for half-precision logits. Raises TagmaskError when shapes do not fit.

    Examples:
        >>> balanced_cross_entropy(torch.zeros(1, 3, 4, 4), torch.full((1, 8, 8), 255))
        tensor(0.)
    """
    check_shapes("Balanced cross-entropy", "logits (B,C+1,h,w) and labels (B,H,W)", logits, labels)
    logits = resize(full(logits), labels.shape[-2:])
    labels = labels.long()
    # cross_entropy gives ignored pixels value and gradient 0.
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    background = labels == 0
    foreground = ~background & (labels != IGNORE)
    found = comm.share(torch.stack([background.sum(), foreground.sum()]))
    return (losses * 0.5 * (background / found[0] + foreground / found[1])).sum()
