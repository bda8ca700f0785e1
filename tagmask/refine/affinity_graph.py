"""Graphs over the positions of a feature grid, and the affinities of AffinityNet and IRN on their edges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tagmask.errors import TagmaskError, nearest
from tagmask.tensors import check_shapes, full

REDUCTIONS = ("mean", "sum")
BLOCK = 2**18
"""Feature differences held at once (1 MB in float32), as many as fit in the cache; measured."""


def radius_edges(
    height: int, width: int, radius: float, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """All pairs of grid positions less than ``radius`` apart (Euclidean, strictly less), each once.

    The pairs of AffinityNet (Ahn and Kwak, CVPR 2018) and IRN (Ahn, Cho and Kwak, CVPR 2019): the offsets of half a
    disc, since the other half gives the same pairs in reverse.

    height, width: size of the grid, from 1 up. radius: in grid steps, above 0; up to 1 there are no pairs.
    Returns edges, long (2,E), flat positions y·width + x of both ends, and offsets, long (P,2), the steps (dy,dx)
    from the first end to the second, dy ≥ 0. Edges are sorted by offset, in that order, then by row and column.

    Both are cached for a few sizes and shared by all callers: do not write into them.
    Raises TagmaskError when a size or the radius is out of range.
    """
    if not 0 < radius < math.inf:
        raise TagmaskError(f"The radius of an affinity graph is a number above 0, in grid steps, got {radius}.")
    if height < 1 or width < 1:
        raise TagmaskError(f"A grid has at least one row and one column, got {height}x{width}.")
    return _edges(int(height), int(width), float(radius), str(device or "cpu"))


def pixel_affinity(features: Tensor, edges: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """exp(−|f_i − f_j|₁) of the two ends of each edge.

    The semantic affinity of AffinityNet (Ahn and Kwak, Learning Pixel-level Semantic Affinity with Image-level
    Supervision, CVPR 2018).

    features: (D,h,w), floating point. edges: integers (2,E), flat positions y·w + x. reduction: 'mean' divides the
    L1 distance by D, as released, so that affinities do not vanish with many channels; 'sum' is the equation as
    printed. Returns (E,) in (0,1], float32 for half-precision features; differentiable in the features.

    Memory besides the result: bounded without gradient; with it, E·D values are kept.
    Raises TagmaskError when shapes do not fit, an edge lies outside the grid, or features are NaN or infinite.
    """
    check_shapes("Pixel affinity", "features (D,h,w) and edges (2,E)", features, edges)
    if reduction not in REDUCTIONS:
        raise TagmaskError(f"Pixel affinity: unknown reduction '{reduction}'.{nearest(reduction, REDUCTIONS)}")
    if not torch.isfinite(features).all():
        raise TagmaskError("Pixel affinity: the features hold NaN or infinite values; look for where they came from.")
    count = features.shape[1] * features.shape[2]
    if edges.numel() and not (int(edges.min()) >= 0 and int(edges.max()) < count):
        raise TagmaskError(
            f"Pixel affinity: edges reach from {int(edges.min())} to {int(edges.max())}, but features of "
            f"{features.shape[1]}x{features.shape[2]} have the positions 0 to {count - 1}."
        )
    vectors = full(features).flatten(1).t().contiguous()  # (N,D): a position's channels are contiguous
    parts = []
    for first, second in (part.unbind() for part in edges.long().split(max(1, BLOCK // len(features)), 1)):
        parts.append(torch.linalg.vector_norm(vectors.index_select(0, first) - vectors.index_select(0, second), 1, 1))
    distance = torch.cat(parts)
    return torch.exp(-(distance / len(features) if reduction == "mean" else distance))


def path_affinity(boundary: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """1 − the strongest boundary between two positions, for all pairs less than ``radius`` apart.

    IRN (Ahn, Cho and Kwak, Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations, CVPR
    2019): a_ij = 1 − max_{k ∈ Π_ij} B(x_k), Π_ij the line from i to j. The paper does not say which positions lie on a
    line. Here they are both ends and all positions of the rectangle they span that are less than 1 away from the
    straight line, so that no line crosses a diagonal boundary of one position's width unseen.

    boundary: (h,w) or (B,h,w), in [0,1]. Returns the edges of ``radius_edges`` (2,E), and the affinities, (E,) or
    (B,E) in [0,1], float32 for a half-precision boundary; differentiable once in the boundary (equal maxima share
    the gradient).

    Positions beyond the border have no edges. To propagate as IRN does, multiply the maps by (1 − boundary), then
    call ``random_walk(maps, edges, affinity, ...)``.

    Memory besides the results: a tensor of the affinities' size, with or without gradient.
    Raises TagmaskError when the shape or radius does not fit or values leave [0,1].
    """
    if boundary.dim() not in (2, 3) or boundary.numel() == 0 or not boundary.is_floating_point():
        raise TagmaskError(
            "Path affinity takes a floating-point boundary map (h,w) or (B,h,w), got "
            f"{tuple(boundary.shape)} of {boundary.dtype}."
        )
    least, most = (float(v) for v in torch.aminmax(boundary.detach()))
    if not (least >= 0 and most <= 1):  # a NaN fails both
        raise TagmaskError(
            f"Path affinity: the boundary is a probability in [0,1] without NaN, got {least} to {most}. "
            "Apply the sigmoid first."
        )
    edges, _ = radius_edges(boundary.shape[-2], boundary.shape[-1], radius, boundary.device)
    return edges, 1 - _PathMaximum.apply(full(boundary), float(radius), edges.shape[1])


class _PathMaximum(torch.autograd.Function):
    """Maximum over each edge's path, (...,h,w) → (...,E): one running maximum an offset, over shifted views.

    The backward pass searches the maxima again. Autograd would keep every intermediate maximum, which is gigabytes for
    a training batch at radius 10.
    """

    @staticmethod
    def forward(ctx: Any, boundary: Tensor, radius: float, count: int) -> Tensor:
        result = boundary.new_empty(*boundary.shape[:-2], count)
        start = 0
        for views in _path_views(boundary, radius):
            first = next(views)
            shape = first.shape[-2:]
            highest = result[..., start : start + shape.numel()].unflatten(-1, shape).copy_(first)
            for view in views:
                torch.maximum(highest, view, out=highest)
            start += shape.numel()
        ctx.save_for_backward(boundary, result)
        ctx.radius = radius
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        boundary, result = ctx.saved_tensors
        gradient = torch.zeros_like(boundary)
        start = 0
        for values, targets in zip(_path_views(boundary, ctx.radius), _path_views(gradient, ctx.radius)):
            views = list(values)
            shape = views[0].shape[-2:]
            part = slice(start, start + shape.numel())
            highest = result[..., part].unflatten(-1, shape)
            ties = torch.zeros_like(highest)
            for view in views:
                ties += view == highest
            share = grads[0][..., part].unflatten(-1, shape) / ties
            for view, target in zip(views, targets):
                target += share * (view == highest)
            start = part.stop
        return gradient, None, None


def _path_views(grid: Tensor, radius: float) -> Iterator[Iterator[Tensor]]:
    """For each offset of the half disc that fits in the grid: views of the grid at the positions of its path.

    A view at step (y,x) of the path holds, for every edge of the offset in order, the value (y,x) away from the
    edge's first end.
    """
    height, width = grid.shape[-2:]
    for dy, dx in _half_disc(radius):
        rows, columns, left = height - dy, width - abs(dx), max(0, -dx)
        if rows > 0 and columns > 0:
            yield (grid[..., y : y + rows, left + x : left + x + columns] for y, x in _path(dy, dx))


@lru_cache(maxsize=64)
def _half_disc(radius: float) -> list[tuple[int, int]]:
    """Offsets (dy,dx) shorter than the radius; of (dy,dx) and (−dy,−dx) only the one that comes later in rows."""
    reach = math.ceil(radius) - 1
    return [
        (dy, dx)
        for dy in range(reach + 1)
        for dx in range(-reach, reach + 1)
        if (dy, dx) > (0, 0) and dy * dy + dx * dx < radius * radius
    ]


@lru_cache(maxsize=4096)
def _path(dy: int, dx: int) -> list[tuple[int, int]]:
    """Steps of the line from (0,0) to (dy,dx): of the rectangle between, those less than 1 from the straight line."""
    side = 1 if dx >= 0 else -1
    return [
        (y, x) for y in range(dy + 1) for x in range(0, dx + side, side) if (dy * x - dx * y) ** 2 < dy * dy + dx * dx
    ]


@lru_cache(maxsize=4)
def _edges(height: int, width: int, radius: float, device: str) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training later
        positions = torch.arange(height * width, device=device).view(height, width)
        offsets, first, second = [], [], []
        for dy, dx in _half_disc(radius):
            if dy < height and abs(dx) < width:
                left = max(0, -dx)
                columns = width - abs(dx)
                offsets.append((dy, dx))
                first.append(positions[: height - dy, left : left + columns].flatten())
                second.append(positions[dy:, left + dx : left + dx + columns].flatten())
        if not offsets:
            return positions.new_empty(2, 0), positions.new_empty(0, 2)
        return torch.stack([torch.cat(first), torch.cat(second)]), torch.tensor(offsets, device=device)
