"""Seeds that a person clicks, spread over the photo: a label map that follows them and the photo's edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tagmask.errors import DataError
from tagmask.refine.seeded_walk import seeded_walk
from tagmask.types import IGNORE

PIXELS = 30_000
"""Pixels of the grid that seeds walk on. With more of them an answer takes longer than half a second."""
BETA = 20.0
"""How much edges hold the walk back."""
HOLD = 5.0
"""Strength of the prior times the number of pixels: a click reaches as far on a fine grid as on a coarse one."""
RADIUS = 2
"""Of a seed on that grid: a click means what is under the finger, not one pixel."""


def spread(photo: np.ndarray, labels: np.ndarray, seeds: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """The label map after a random walk from the seeds; far from them it stays as it is.

    photo: uint8 (h,w,3). labels: uint8 (h,w), the prior of the walk; unsure pixels (255) have none. seeds: x, y and
    label of each click, in pixels of the photo. Returns uint8 (h,w). Raises DataError for seeds outside of the photo.
    """
    height, width = labels.shape
    if any(not (0 <= x < width and 0 <= y < height and 0 <= label <= 255) for x, y, label in seeds):
        raise DataError(f"A seed lies outside of the photo of {width}x{height} pixels.")
    if not seeds:
        return labels
    there = sorted({0, *np.unique(labels[labels != IGNORE]).tolist(), *(label for *_, label in seeds)})
    factor = min(1.0, (PIXELS / (height * width)) ** 0.5)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    prior = torch.from_numpy(np.stack([labels == label for label in there])).float()
    prior += torch.from_numpy(labels == IGNORE).float() / len(there)
    placed = _discs(seeds, there, labels.shape, size)
    walked = seeded_walk(_small(photo, size), _fitted(prior, size), placed, BETA, HOLD / (size[0] * size[1]))
    best = F.interpolate(walked[None], size=(height, width), mode="bilinear")[0].argmax(0).numpy()
    found = np.array(there, dtype=np.uint8)[best]
    return np.where((labels == IGNORE) & (found == 0), IGNORE, found).astype(np.uint8)


def _small(photo: np.ndarray, size: tuple[int, int]) -> Tensor:
    return _fitted(torch.from_numpy(photo).permute(2, 0, 1).float() / 255, size)


def _fitted(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (K,h,w) averaged to a smaller size."""
    return F.interpolate(maps[None], size=size, mode="area")[0]


def _discs(
    seeds: Sequence[tuple[int, int, int]], there: Sequence[int], shape: tuple[int, ...], size: tuple[int, int]
) -> Tensor:
    """Seeds (n,3) of x, y and place in ``there``, on the grid of the walk, each a disc."""
    reach = range(-RADIUS, RADIUS + 1)
    found = []
    for x, y, label in seeds:
        left, top = x * size[1] // shape[1], y * size[0] // shape[0]
        found += [
            (left + dx, top + dy, there.index(label))
            for dy in reach
            for dx in reach
            if dx * dx + dy * dy <= RADIUS**2 and 0 <= left + dx < size[1] and 0 <= top + dy < size[0]
        ]
    return torch.tensor(found)
