"""The threshold between background and foreground, found from the CAM values themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagmask import comm
from tagmask.cam.mixture import BINS, check_range, count_values, crossing, fit_counts
from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes

LEAST_SHARE = 1e-3
"""A component with less of the values is a few outliers, and says nothing about where foreground begins."""


class DynamicThreshold(nn.Module):
    """Threshold ξ that follows the distribution of the CAMs of the last batches.

    (Co-training with Swapping Assignments, ECCV 2024, section 3.3, "Dynamic Threshold".) Each batch gives its CAM
    values, the maximum over the tagged classes at each position, to a queue of batches; ξ is the ``crossing`` of the
    two components fitted to the queue. It stays as it was where there is none, where the fit has not converged, and
    where a component has less than a thousandth of the values. The crossing puts each value in the component that is
    the more probable for it, and so has the largest product of equation 6's two products. Their sum, as printed, has
    its maximum elsewhere: one of the two is all of it, which one depends on the unit of the values.

    Values that round to 0, which are those below 0.5/1023, are left out: ReLU has put most of them there, from
    anywhere below. A normal distribution would shrink on them, take all other values for foreground, and the
    threshold would be next to 0.

    queue: batches kept; the queue starts empty. initial: ξ until the first fit, in [0,1]. From one fit to the next go
    ``every`` batches, a tenth of the queue; the first ``every`` batches are each fitted. A batch is kept as its counts
    on a grid of 1024 values: 0.8 MB for the queue, whatever the CAMs' size. Each fit has its own start.

    Buffers: ``value`` (float32 scalar, ξ), ``counts`` and ``batches``, so saving the module saves its state. With
    several processes the counts of all are summed, and all get the same ξ.

    Examples:
        >>> threshold = DynamicThreshold(initial=0.5)
        >>> xi = threshold.update(torch.rand(2, 3, 28, 28), torch.tensor([[1, 0, 1], [0, 1, 0]]))
    """

    value: Tensor
    counts: Tensor
    batches: Tensor

    def __init__(self, queue: int = 100, initial: float = 0.5) -> None:
        super().__init__()
        if queue < 1:
            raise TagmaskError(f"Dynamic threshold: the queue is 1 or more batches, got {queue}.")
        if not 0 <= initial <= 1:
            raise TagmaskError(f"Dynamic threshold: initial is a value of normalised CAMs, 0 to 1, got {initial}.")
        self.every = max(1, queue // 10)
        self.register_buffer("value", torch.tensor(float(initial)))
        self.register_buffer("counts", torch.zeros(queue, BINS, dtype=torch.int64))
        self.register_buffer("batches", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def update(self, cams: Tensor, tags: Tensor, valid: Tensor | None = None) -> Tensor:
        """Put a batch's CAM values in the queue, drop the oldest, fit where it is due; returns a copy of ``value``.

        cams: (B,C,h,w) in [0,1], floating point. tags: (B,C) of 0/1; images without a tag give no values. valid: bool
        (B,h,w), positions that are photo and not padding; default: all. With several processes all must call it.
        Raises TagmaskError when shapes do not fit and for NaN and values outside of [0,1], in all
        processes alike.
        """
        check_shapes("Dynamic threshold", "CAMs (B,C,h,w), tags (B,C) and valid (B,h,w)", cams, tags, valid)
        values = cams.masked_fill(tags[:, :, None, None] <= 0, 0).amax(1)
        if valid is not None:
            values = values.masked_fill(~valid.bool(), 0)
        counts, outside = comm.all_sum(torch.cat(count_values(values))).split([BINS, 1])
        counts[0] = 0
        place = self.batches % len(self.counts)
        queued = self.counts.sum(0) - self.counts[place][0] + counts
        # The only wait for the device.
        queued, outside, batches = torch.cat([queued, outside, self.batches + 1]).cpu().split([BINS, 1, 1])
        check_range(outside)
        self.counts[place] = counts
        self.batches += 1
        due = batches <= self.every or batches % self.every == 0
        if due and queued.any():
            fit = fit_counts(queued)
            found = crossing(fit) if fit.converged and fit.weights.min() >= LEAST_SHARE else None
            if found is not None:
                self.value.fill_(found)
        return self.value.clone()
