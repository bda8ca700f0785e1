"""Shapes of label maps: outlines of parts, and polygons and run lengths back to pixels.

Coordinates are those of the photo's edges: x from 0 to W to the right, y from 0 to H downwards, so that the centre of
the first pixel lies at (0.5, 0.5). A pixel belongs to a polygon if its centre lies inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from contourpy import contour_generator

from tagmask.parts import Part

MOST_CROSSINGS = 50_000_000
"""Of the outlines of one object with rows of pixels: each takes some tens of bytes."""


def inside_runs(lengths: Any, total: int) -> np.ndarray:
    """Bool (total,) of ``parts.run_lengths``. Raises ValueError where they are not such."""
    if not isinstance(lengths, list) or not all(type(length) is int and length >= 0 for length in lengths):
        raise ValueError("run lengths are whole numbers from 0")
    if sum(lengths) != total:
        raise ValueError("its run lengths do not add up to the image")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


def outlines(part: Part, level: float = 0.5) -> list[np.ndarray]:
    """Rings (n,2) of x and y around a part: the outer one, then those of its holes; the first point is not repeated.

    Between the centre of a pixel inside and one outside a ring passes at 1 − ``level`` of the way, 0.5 to 1. So the
    centres that lie inside are those of the part. Points in the middle of straight lines are kept.
    """
    height, width = part.inside.shape
    around = np.zeros((height + 2, width + 2))
    around[1:-1, 1:-1] = part.inside
    found: Any = contour_generator(z=around, fill_type="OuterOffset").filled(level, 2.0)
    (points,), (ends,) = found
    rings = np.split(points + (part.left - 0.5, part.top - 0.5), ends[1:-1].tolist())
    return [ring[:-1] for ring in rings]


def straightened(ring: np.ndarray) -> np.ndarray:
    """The ring without points in the middle of straight lines."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return ring[(turn != 0) | ((before * after).sum(axis=1) < 0)]


def joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """One ring of a part's ``outlines``: each hole is joined to the outline on its left by a zero-width cut.

    From the leftmost point of a hole the line goes over pixels of the part, to the next ring. That one begins further
    left, so it is in the ring already, and has a point in this row.
    """
    whole, *holes = rings
    for hole in sorted(holes, key=lambda ring: ring[:, 0].min()):
        first = int(hole[:, 0].argmin())
        x, y = hole[first]
        left = np.flatnonzero((whole[:, 1] == y) & (whole[:, 0] < x))
        at = int(left[whole[left, 0].argmax()])
        way = [whole[: at + 1], hole[first:], hole[: first + 1], whole[at:]]
        whole = np.concatenate(way)
    return whole


def draw(labels: np.ndarray, rings: Sequence[Any], label: int) -> None:
    """Give the pixels whose centres lie inside the rings a label: inside an odd number of them, as holes are drawn.

    labels: uint8 (H,W), changed in place. rings: points (x,y), three or more each. Raises ValueError on other shapes,
    coordinates that are no finite numbers or far off the photo, and outlines that are too long.
    """
    arrays = [np.asarray(ring, dtype=float) for ring in rings]
    if not arrays or any(ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 for ring in arrays):
        raise ValueError("a polygon has three points or more, of two numbers each")
    height, width = labels.shape
    starts = np.concatenate(arrays)
    far = np.array([width, height], dtype=float)
    if not ((starts >= -far) & (starts <= 2 * far)).all():
        raise ValueError("a polygon's point is not on the photo, nor near it")
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in arrays])
    # From the upper point to the lower one, so that lines that are gone along twice cross a row at the same place.
    swap = starts[:, 1] > ends[:, 1]
    (x0, y0), (x1, y1) = np.where(swap, ends.T, starts.T), np.where(swap, starts.T, ends.T)
    # The row r is crossed if its centre r + 0.5 lies in [y0, y1).
    top, bottom = (np.ceil(y - 0.5).clip(0, height).astype(np.int64) for y in (y0, y1))
    crossings = bottom - top
    total = int(crossings.sum())
    if total > MOST_CROSSINGS:
        raise ValueError("a polygon with too many long lines")
    if total == 0:
        return
    line = np.repeat(np.arange(len(starts)), crossings)
    row = np.arange(total) - np.repeat(crossings.cumsum() - crossings, crossings) + top[line]
    x = x0[line] + (row + 0.5 - y0[line]) * (x1 - x0)[line] / (y1 - y0)[line]
    column = np.ceil(x - 0.5).clip(0, width).astype(np.int64)  # the first one whose centre is not left of the line
    rows, columns = (slice(int(at.min()), int(at.max()) + 1) for at in (row, column))
    size = (rows.stop - rows.start, columns.stop - columns.start)
    flat = (row - rows.start) * size[1] + column - columns.start
    odd = np.bincount(flat, minlength=size[0] * size[1]).reshape(size).cumsum(axis=1) % 2 == 1
    labels[rows, columns][odd[:, : width - columns.start]] = label
