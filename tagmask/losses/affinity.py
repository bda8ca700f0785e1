"""Affinity from attention: labels of pairs of positions, and the loss that trains affinities on them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from tagmask import comm
from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes, full
from tagmask.types import IGNORE

LABEL_TYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def downsample_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps at a coarser grid: each cell takes the label of its top-left pixel (nearest sampling).

    labels: integers (B,H,W). size: (h,w), at most (H,W); cell (i,j) reads pixel (⌊i·H/h⌋, ⌊j·W/w⌋).
    Returns (B,h,w), same dtype. Raises TagmaskError when shapes do not fit.
    """
    check_labels("Affinity labels", labels)
    for cells, pixels in zip(size, labels.shape[1:]):
        if not 1 <= cells <= pixels:
            raise TagmaskError(f"Labels of {tuple(labels.shape[1:])} cannot be downsampled to {tuple(size)}.")
    rows, columns = (
        torch.arange(cells, device=labels.device) * pixels // cells for cells, pixels in zip(size, labels.shape[1:])
    )
    return labels[:, rows[:, None], columns]


def affinity_labels(labels: Tensor, radius: int) -> Tensor:
    """Labels of pairs of positions for the affinity loss: 1 same class, 0 different classes, 255 ignored.

    AFA (Ru et al., Learning Affinity from Attention, CVPR 2022). A pair counts inside a square window, |Δy| ≤ radius
    and |Δx| ≤ radius, and if neither label is ignored. A position forms a positive pair with itself, and two positions
    of background are a positive pair.

    labels: integers (B,h,w) on the grid of the affinity, 0 background, 1..C, 255 ignored; ``downsample_labels``
    brings larger label maps to it. radius: window radius in grid steps, an integer from 0 up (AFA: 8).
    Returns uint8 (B,N,N), N = h·w positions in rows, symmetric.

    Memory: one byte a pair, and N² bytes for the window mask (cached by size and radius).
    Raises TagmaskError when shape, dtype or radius do not fit.

    Examples:
        >>> affinity_labels(torch.tensor([[[0, 1, 1, 255]]]), radius=1)
        tensor([[[  1,   0, 255, 255],
                 [  0,   1,   1, 255],
                 [255,   1,   1, 255],
                 [255, 255, 255, 255]]], dtype=torch.uint8)
    """
    check_labels("Affinity labels", labels)
    if radius < 0 or radius != int(radius):
        raise TagmaskError(f"Affinity labels: the radius is an integer from 0 up, got {radius}.")
    flat = labels.flatten(1)
    rows, columns = flat[:, :, None], flat[:, None, :]
    pairs = (rows == columns).view(torch.uint8)
    pairs.masked_fill_(rows == IGNORE, IGNORE).masked_fill_(columns == IGNORE, IGNORE)
    return pairs.masked_fill_(_outside(labels.shape[1], labels.shape[2], int(radius), str(labels.device)), IGNORE)


def affinity_loss(affinity: Tensor, labels: Tensor) -> Tensor:
    """½ mean of 1 − A over the positive pairs + ½ mean of A over the negative pairs.

    AFA (Ru et al., Learning Affinity from Attention, CVPR 2022). The means go over the pairs of the whole batch and
    divide by their number + 1, so that a batch without positive or negative pairs adds 0.

    affinity: (B,N,N) in (0,1), after the sigmoid. labels: (B,N,N) of ``affinity_labels``: 1, 0, or 255
    ignored. Returns a scalar in [0,1), float32 for half-precision affinities; ignored pairs get no gradient.
    Raises TagmaskError when the shapes do not fit.
    """
    check_shapes("Affinity loss", "affinity (B,N,N) and labels (B,N,N)", affinity, labels)
    affinity = full(affinity)
    positive, negative = labels == 1, labels == 0
    # where, not a product: ignored pairs may hold NaN.
    attraction, repulsion = torch.where(positive, 1 - affinity, 0).sum(), torch.where(negative, affinity, 0).sum()
    pairs = (comm.all_sum(torch.stack([positive.sum(), negative.sum()])) + 1) / comm.shares()
    return 0.5 * (attraction / pairs[0] + repulsion / pairs[1])


@lru_cache(maxsize=8)
def _outside(height: int, width: int, radius: int, device: str) -> Tensor:
    """bool (N,N), true where two positions are not in one another's window."""
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    far_y, far_x = ((p[:, None] - p).abs() > radius for p in (y, x))
    return (far_y[:, None, :, None] | far_x[None, :, None, :]).view(height * width, height * width)


def check_labels(what: str, labels: Tensor) -> None:
    """Raise TagmaskError for label maps that are not integers (B,h,w)."""
    check_shapes(what, "labels (B,h,w)", labels)
    if labels.dtype not in LABEL_TYPES:
        raise TagmaskError(f"{what}: labels are integers, got {labels.dtype}.")
