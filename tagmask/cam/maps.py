"""Multi-scale and normalised class activation maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.tensors import resize


def normalize(cams: Tensor) -> Tensor:
    """Min-max normalise each map: subtract its spatial minimum, then divide by its maximum + 1e-5.

    cams: (B,C,h,w), any range → the same shape, in [0,1). A constant map becomes 0.
    """
    cams = cams - cams.amin((-2, -1), keepdim=True)
    return cams / (cams.amax((-2, -1), keepdim=True) + 1e-5)


def peak_normalize(cams: Tensor) -> Tensor:
    """Each map of (B,C,h,w) cut at 0 and divided by its largest value; a map that is nowhere above 0 becomes 0."""
    cams = cams.relu()
    return cams / cams.amax((-2, -1), keepdim=True).clamp(min=1e-5)


@torch.no_grad()
def multi_scale(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    size: tuple[int, int] | None = None,
    plain: Tensor | None = None,
    flip_merge: Literal["max", "sum"] = "max",
) -> Tensor:
    """Class activation maps, summed over scales of the images and their mirror images. Without gradient.

    For each scale s the images are resized to round(s·H) × round(s·W), at least 1 × 1, and ``forward`` gives their
    maps before the ReLU, which are resized to ``size``. An image's map and its mirror image's, after a ReLU, are merged
    by ``flip_merge``: the larger value, or the sum, in which a place seen in one of the two counts half. The sum over
    scales is normalised (``normalize``). All resizing is bilinear, align_corners=False. Images and mirror images go
    through ``forward`` as one batch of 2B.

    images: (B,3,H,W). forward: (n,3,h,w) → (n,C,h',w'). size: of the result; default: that of the images.
    plain: (B,C,h',w'), ``forward`` of the images, if a training step has it already; scale 1 then needs a pass of the
    mirror images only.
    Returns float32 (B,C,H,W) in [0,1). Raises TagmaskError for no scale or one that is not above 0.
    """
    if not scales or min(scales) <= 0:
        raise TagmaskError(f"Multi-scale CAM: scales must be one or more numbers above 0, got {list(scales)}.")
    height, width = images.shape[-2:]
    size = size or (height, width)
    total: Tensor | None = None
    for scale in scales:
        scaled = resize(images, (max(1, round(height * scale)), max(1, round(width * scale))))
        if plain is not None and scale == 1:
            cams = torch.cat([plain, forward(scaled.flip(-1))]) if flip else plain
        else:
            cams = forward(torch.cat([scaled, scaled.flip(-1)]) if flip else scaled)
        cams = cams.float()
        if flip:
            straight, mirrored = cams.chunk(2)
            # Resizing commutes with mirroring: mirror the small maps.
            straight, mirrored = resize(straight, size), resize(mirrored.flip(-1), size)
            cams = torch.maximum(straight, mirrored) if flip_merge == "max" else straight.relu() + mirrored.relu()
        cams = resize(cams, size).relu()
        total = cams if total is None else total.add_(cams)
    assert total is not None
    return normalize(total)
