"""What guides CAMs in the place of a segmentation, to see how much a guide matters (Figure 1 and Table 4a of CoSA)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tagmask.cam.maps import resize
from tagmask.errors import TrainingError
from tagmask.types import IGNORE, Batch


def truth_guide(batch: Batch, logits: Tensor) -> Tensor:
    """(B,C+1,H,W) logits of the true masks; where these are void, the segmentation's logits (B,C+1,h,w).

    Raises TrainingError for a batch without masks.
    """
    if batch.masks is None:
        raise TrainingError("method.guidance=truth needs masks; set data.masks to their folder.")
    truth = batch.masks.long()
    void = truth == IGNORE
    sure = _certain(truth.masked_fill(void, 0), logits.shape[1])
    return torch.where(void[:, None], resize(logits.float(), (truth.shape[-2], truth.shape[-1])), sure)


def noise_guide(batch: Batch, logits: Tensor) -> Tensor:
    """(B,C+1,h,w) logits of a class that is drawn for each position among the background and the tags."""
    absent = F.pad(batch.tags <= 0, (1, 0))[:, :, None, None]
    drawn = batch.draw(torch.rand, *logits.shape[1:]).masked_fill(absent, -1)
    return _certain(drawn.argmax(1), logits.shape[1])


def _certain(labels: Tensor, outputs: int) -> Tensor:
    """(B,outputs,h,w) logits that are certain of labels (B,h,w) at any temperature in use."""
    return 100 * F.one_hot(labels, outputs).movedim(-1, 1).float()
