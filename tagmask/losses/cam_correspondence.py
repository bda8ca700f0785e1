"""CAM correspondence: class maps of a local view shall be alike where the global view's labels agree."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tagmask.errors import TagmaskError
from tagmask.losses.affinity import LABEL_TYPES
from tagmask.types import IGNORE

EPS = 1e-8
"""Smallest norm that a vector is divided by: an activation of zeros is unlike everything, itself included."""
TINY = 1e-38
"""Stands for 0 where a logarithm is taken."""

CPU_VALUES = 2**18
GPU_VALUES = 2**24
"""Values (pairs times channels) worked on at once; on CPUs what fits into the cache."""


def cam_correspondence(cams: Tensor, labels: Tensor, divergence: Literal["js", "cosine"] = "js") -> Tensor:
    """Mean of 1 − similarity over the pairs of positions with one label + mean of similarity over the other pairs.

    (DINO is Also a Semantic Guider, ACM MM 2024, equation 11.) Pairs are two different positions of one view whose
    labels are not ignored. The equation is printed with a divergence D, 1 − D on pairs of one label, which would
    reward unlike activations there and contradicts the text around it; D is read as a similarity:

    - ``js``: 1 − JS(p, q) / ln 2, JS the Jensen-Shannon divergence of the softmax over the channels, at most ln 2;
    - ``cosine``: the absolute cosine of the activations themselves.

    Activations that are the same in all positions of one label therefore cost 0 there. A half without pairs is 0. The
    result is the mean over views; the printed sum over an image's N local views is N times that.

    cams: (B,C,h,w) raw class maps, B views; ``js`` needs C ≥ 2 (the softmax over one class is the same everywhere).
    labels: integers (B,h,w) on the same grid, 0 background, 1..C, 255 ignored. Returns a scalar in [0,2], float32 for
    half-precision maps. Memory besides the input is bounded: pairs are worked on in strips and their gradients found
    on the way; second derivatives are therefore not available. Raises TagmaskError when shapes, dtypes or
    ``divergence`` do not fit.

    Example:
        >>> cam_correspondence(torch.zeros(1, 3, 2, 2), torch.ones(1, 2, 2, dtype=torch.long), "js")
        tensor(0.)
    """
    if cams.dim() != 4 or labels.shape != (len(cams), *cams.shape[-2:]) or labels.dtype not in LABEL_TYPES:
        raise TagmaskError(
            "CAM correspondence takes class maps (B,C,h,w) and integer labels (B,h,w) on the same grid, got "
            f"{tuple(cams.shape)} and {tuple(labels.shape)} {labels.dtype}."
        )
    if divergence not in ("js", "cosine"):
        raise TagmaskError(f"CAM correspondence: the divergence is 'js' or 'cosine', got '{divergence}'.")
    if divergence == "js" and cams.shape[1] < 2:
        raise TagmaskError("CAM correspondence: 'js' needs two classes; of one the softmax is 1 everywhere.")
    flat = labels.flatten(1)
    positive, negative = _pair_counts(flat)
    with torch.autocast(cams.device.type, enabled=False):
        vectors = cams.flatten(2).mT
        if vectors.dtype in (torch.float16, torch.bfloat16):
            vectors = vectors.float()
        # Unlikeness is linear in the pairs' values: a constant for each half, and one weight a pair.
        weights = 1 / torch.stack([positive.clamp(min=1), -negative.clamp(min=1)]).to(vectors)
        if divergence == "js":
            logs = vectors.log_softmax(2)
            value = _JensenShannon.apply(logs.exp(), logs.detach(), flat, weights) / math.log(2)
            return (value + (negative > 0)).mean()
        units = F.normalize(vectors, dim=2, eps=EPS)
        value = _AbsoluteCosine.apply(units, flat, weights)
        return ((positive > 0).to(value) - value).mean()


class _JensenShannon(torch.autograd.Function):
    """(B,): Σ_ij w_ij JS(p_i, p_j) over a view's ordered pairs; p (B,n,C) and its logarithm, labels (B,n), w (2,B).

    With m = (p_i + p_j) / 2 the gradient to p_i is g_i = Σ_j w_ij (log p_i − log m), and the sum itself is Σ_i p_i·g_i
    (it is homogeneous in all p together): one visit of each pair gives both.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, log_p: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        grad = torch.empty_like(p)
        for b, rows in _strips(p, p.shape[1] * p.shape[2]):
            pairs = _pair_weights(labels[b], rows, weights[:, b])
            middle = (p[b, rows, None] + p[b]).mul_(0.5).clamp_(min=TINY).log_()
            grad[b, rows] = pairs.sum(1, keepdim=True) * log_p[b, rows] - (pairs[:, None] @ middle)[:, 0]
        ctx.save_for_backward(grad)
        return (p * grad).sum((1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        return outer[:, None, None] * ctx.saved_tensors[0], None, None, None


class _AbsoluteCosine(torch.autograd.Function):
    """(B,): Σ_ij w_ij |u_i·u_j| over a view's ordered pairs; u (B,n,C) of norm 1, labels (B,n), w (2,B).

    The gradient to u_i is g_i = 2 Σ_j w_ij sign(u_i·u_j) u_j, and the sum is ½ Σ_i u_i·g_i.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        grad = torch.empty_like(u)
        for b, rows in _strips(u, u.shape[1]):
            pairs = _pair_weights(labels[b], rows, weights[:, b])
            grad[b, rows] = 2 * (pairs * (u[b, rows] @ u[b].T).sign_()) @ u[b]
        ctx.save_for_backward(grad)
        return (u * grad).sum((1, 2)) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        return outer[:, None, None] * ctx.saved_tensors[0], None, None


def _strips(x: Tensor, values_a_row: int) -> list[tuple[int, slice]]:
    """View and rows of strips that hold about CPU_VALUES or GPU_VALUES values."""
    budget = CPU_VALUES if x.device.type == "cpu" else GPU_VALUES
    step = max(1, budget // max(1, values_a_row))
    return [(b, slice(start, start + step)) for b in range(len(x)) for start in range(0, x.shape[1], step)]


def _pair_weights(labels: Tensor, rows: slice, weights: Tensor) -> Tensor:
    """(r,n): what each pair of the strip weighs; weights: of a pair with one label, of one with two labels."""
    mine, others = labels[rows, None], labels[None]
    pairs = torch.where(mine == others, weights[0], weights[1])
    pairs = pairs.masked_fill_((mine == IGNORE) | (others == IGNORE), 0)
    at = torch.arange(len(mine), device=labels.device)
    pairs[at, at + rows.start] = 0  # a position and itself are no pair
    return pairs


def _pair_counts(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Ordered pairs of two different positions with one label and with two, long (B,) each; labels (B,n)."""
    counts = torch.zeros(len(labels), IGNORE + 1, dtype=torch.long, device=labels.device)
    counts.scatter_add_(1, labels.long(), torch.ones_like(labels, dtype=torch.long))
    counts = counts[:, :IGNORE]
    total = counts.sum(1)
    same = counts.square().sum(1)
    return same - total, total.square() - same
