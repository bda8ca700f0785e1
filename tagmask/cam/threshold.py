"""The threshold between background and foreground, found from the CAM values themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagmask import comm
from tagmask.cam.mixture import BINS, check_range, count_values, crossing, fit_counts, two_modes
from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes

LOWEST, HIGHEST = 0.05, 0.8
"""Bounds of a threshold that is found. Above the upper one only the peaks, which normalisation puts at 1, are left."""
CLEAN_SHARE = 0.25
"""Least share of values at 0 that is taken for a background by itself."""
EVEN = 1.3
"""By chance, up to so many times as many of evenly spread values lie below 0.05 as are expected there."""


def background_threshold(counts: Tensor) -> float | None:
    """The value from which CAMs are foreground, by how many of them, int64 (1024,) on the CPU, round to each i/1023.

    The values have up to three components: one of fixed place, at 0, where ReLU puts a background, and two normal
    distributions, fitted to all others (``fit_two_components``).

    - The background is the values at 0 alone where these are a quarter of all or more, and next to none lie just
      above: up to 0.05 at most 1.3 times as many as if those at 0, or all others, were spread evenly over [0,1]. A
      background that ReLU cut goes on above 0. All others are then objects, and the threshold is 0.05.
    - Else the lower normal distribution is background as well, and the threshold is the ``crossing``, at least 0.05,
      where the values above 0 have ``two_modes``.
    - None where they have one mode, and where the crossing is above 0.8.

    Objects whose values fade to 0 at their rims look like a background that ReLU cut, and are parted as one.
    """
    zeros, above = int(counts[0]), counts.clone()
    above[0] = 0
    total = int(above.sum())
    if total == 0:
        return None
    near = int(above[: round(LOWEST * (BINS - 1)) + 1].sum())
    if zeros >= CLEAN_SHARE * (zeros + total) and near < EVEN * LOWEST * min(zeros, total):
        return LOWEST
    mixture = fit_counts(above)
    found = crossing(mixture) if two_modes(above, mixture) else None
    return None if found is None or found > HIGHEST else max(found, LOWEST)


class DynamicThreshold(nn.Module):
    """Threshold ξ that follows the distribution of the CAMs of the last batches.

    (Co-training with Swapping Assignments, ECCV 2024, section 3.3, "Dynamic Threshold".) Each batch gives its CAM
    values, the maximum over the tagged classes at each position, to a queue of batches; ξ is the
    ``background_threshold`` of the queue, 0.05 to 0.8. Where there is none it is held: it stays as it was. The
    crossing puts each value in the component that is the more probable for it, and so has the largest product of
    equation 6's two products. Their sum, as printed, has its maximum elsewhere: one of the two is all of it, which one
    depends on the unit of the values.

    No normal distribution is fitted to values that round to 0, which are those below 0.5/1023: ReLU has put most of
    them there, from anywhere below. It would shrink on them, take all other values for foreground, and the threshold
    would be next to 0.

    queue: batches kept; the queue starts empty. initial: ξ until one is found, in [0,1]. From one fit to the next go
    ``every`` batches, a tenth of the queue; the first ``every`` batches are each fitted. A batch is kept as its counts
    on a grid of 1024 values: 0.8 MB for the queue, whatever the CAMs' size. Each fit has its own start.

    Buffers: ``value`` (float32 scalar, ξ), ``held`` (bool scalar, whether the last fit left ξ where it was),
    ``counts`` and ``batches``, so saving the module saves its state. With several processes the counts of all are
    summed, and all get the same ξ.

    Examples:
        >>> threshold = DynamicThreshold(initial=0.5)
        >>> xi = threshold.update(torch.rand(2, 3, 28, 28), torch.tensor([[1, 0, 1], [0, 1, 0]]))
    """

    value: Tensor
    held: Tensor
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
        self.register_buffer("held", torch.tensor(False))
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
        left_out = (tags <= 0).all(1)[:, None, None].expand_as(values)
        if valid is not None:
            left_out = left_out | ~valid.bool()
        counts, outside = count_values(values.masked_fill(left_out, 0))
        counts[0] -= left_out.sum()
        counts, outside = comm.all_sum(torch.cat([counts, outside])).split([BINS, 1])
        place = self.batches % len(self.counts)
        queued = self.counts.sum(0) - self.counts[place][0] + counts
        # The only wait for the device.
        queued, outside, batches = torch.cat([queued, outside, self.batches + 1]).cpu().split([BINS, 1, 1])
        check_range(outside)
        self.counts[place] = counts
        self.batches += 1
        due = batches <= self.every or batches % self.every == 0
        if due:
            found = background_threshold(queued)
            self.held.fill_(found is None)
            if found is not None:
                self.value.fill_(found)
        return self.value.clone()
