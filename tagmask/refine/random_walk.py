"""Random walk of maps over a sparse affinity graph: the propagation of AffinityNet and IRN."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.refine.threads import cut, for_each, worker_count
from tagmask.tensors import check_shapes


@torch.no_grad()
def random_walk(maps: Tensor, edges: Tensor, weights: Tensor, steps: int, beta: float) -> Tensor:
    """Replace each value, ``steps`` times, by the affinity-weighted average of its neighbours' values.

    The propagation of AffinityNet (Ahn and Kwak, Learning Pixel-level Semantic Affinity with Image-level Supervision,
    CVPR 2018, 'Revising CAMs using AffinityNet') and of IRN (Ahn, Cho and Kwak, Weakly Supervised Learning of
    Instance Segmentation with Inter-pixel Relations, CVPR 2019):

        A = W^β elementwise, A_ii = 1        T_ij = A_ij / Σ_k A_kj        out = maps · T^steps

    Columns of T sum to 1 and maps multiply from the left, so that every position averages over its neighbours.
    T^steps is never formed: each step is one sparse product with all maps.

    maps: (K,h,w), floating point, any K. edges: integers (2,E), flat positions y·w + x, each undirected pair once,
    in either order; self-loops of weight 1 are added. weights: (E,), affinities in [0,1]. steps: from 0 up; 0 returns
    a copy. beta: exponent from 0 up (0 gives every edge the weight 1). All tensors are on one device, CPU or CUDA.
    Returns (K,h,w) in the maps' dtype, without gradient. A position without edges keeps its value, and a constant map
    stays constant.

    Computed in float64 for all dtypes. Affinities to the power of β are tiny between regions; float32 sums lose them
    at every step, which in 256 steps adds up to errors of 2e-4 (measured).

    The function only propagates. IRN first multiplies the maps by 1 − boundary; AffinityNet adds a background map
    (1 − max)^16. Positions beyond the border have no edges, which equals padding a boundary map with 1.

    Memory besides the result: about 140 bytes an edge while the matrix is built, and 24 afterwards.

    Raises TagmaskError when shapes, dtypes or devices do not fit, when a position lies outside the maps, when a pair
    is there twice (in either order) or is a self-loop, when weights leave [0,1], and on NaN or infinite values.
    """
    _check(maps, edges, weights, steps, beta)
    result = maps.clone()
    if maps.numel() == 0 or steps == 0:
        return result
    with torch.autocast(maps.device.type, enabled=False):
        matrix = _transition(edges, weights, beta, maps[0].numel())

        def walk(part: slice) -> None:
            values = maps[part].flatten(1).t().double().contiguous()
            for _ in range(steps):
                values = matrix @ values
            result[part] = values.t().reshape(result[part].shape)

        # Each thread takes its maps through all steps: see threads.py.
        for_each(walk, cut(len(maps), worker_count(maps.device)), maps.device)
    return result


def _transition(edges: Tensor, weights: Tensor, beta: float, count: int) -> Tensor:
    """Tᵀ, sparse by rows (CSR): row j holds the weights of the average at j. A is symmetric; T is not."""
    loops = torch.arange(count, device=edges.device)
    first, second = edges.long()
    keys = torch.cat([first * count + second, second * count + first, loops * (count + 1)])  # row · N + column
    keys, order = keys.sort()
    if (keys[1:] == keys[:-1]).any():
        row, column = divmod(int(keys[1:][keys[1:] == keys[:-1]][0]), count)
        raise TagmaskError(
            f"Random walk: the pair ({row}, {column}) is there twice. Give each undirected pair once, in one order, "
            "and no self-loops: those are added."
        )
    powers = weights.double().pow(beta)
    values = torch.cat([powers, powers, powers.new_ones(count)])[order]
    rows = keys.div(count, rounding_mode="floor")
    starts = torch.searchsorted(rows, torch.arange(count + 1, device=rows.device))
    totals = torch.zeros(count, dtype=values.dtype, device=values.device).index_add_(0, rows, values)
    values /= totals[rows]
    with warnings.catch_warnings():
        # torch 2.11 gives the second warning although check_invariants is set.
        warnings.filterwarnings("ignore", "Sparse (CSR tensor support is in beta|invariant checks are implicitly)")
        # The CPU's sparse products (MKL) take 32-bit indices; others would be converted at every step.
        return torch.sparse_csr_tensor(
            starts.int(), (keys - rows * count).int(), values, (count, count), check_invariants=False
        )


def _check(maps: Tensor, edges: Tensor, weights: Tensor, steps: int, beta: float) -> None:
    check_shapes("Random walk", "maps (K,h,w), edges (2,E) and weights (E,)", maps, edges, weights)
    if not (maps.is_floating_point() and weights.is_floating_point()) or edges.dtype not in (torch.int64, torch.int32):
        raise TagmaskError(
            "Random walk takes floating-point maps and weights and int64 or int32 edges, got "
            f"{maps.dtype}, {weights.dtype} and {edges.dtype}."
        )
    if not maps.device == edges.device == weights.device:
        raise TagmaskError(
            f"Random walk: maps lie on {maps.device}, edges on {edges.device}, weights on {weights.device}; "
            "move them to one device."
        )
    if not (isinstance(steps, int) and steps >= 0):
        raise TagmaskError(f"Random walk: steps is an integer from 0 up, got {steps}.")
    if not 0 <= beta < math.inf:
        raise TagmaskError(f"Random walk: beta is a number from 0 up, got {beta}.")
    if not torch.isfinite(maps).all():
        raise TagmaskError("Random walk: the maps hold NaN or infinite values; look for where they came from.")
    if edges.numel() == 0:
        return
    count = maps.shape[1] * maps.shape[2]
    low, high = (int(v) for v in torch.aminmax(edges))
    if low < 0 or high >= count:
        raise TagmaskError(
            f"Random walk: edges reach from {low} to {high}, but maps of {maps.shape[1]}x{maps.shape[2]} have the "
            f"positions 0 to {count - 1}. Make the edges for the maps' own grid."
        )
    least, most = (float(v) for v in torch.aminmax(weights))
    if not (least >= 0 and most <= 1):  # a NaN fails both
        raise TagmaskError(f"Random walk: weights are affinities in [0,1] without NaN, got {least} to {most}.")
