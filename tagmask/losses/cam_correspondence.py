"""CAM correspondence: class maps of a local view should be similar where the global view gives one label."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tagmask.errors import TagmaskError
from tagmask.losses.affinity import check_labels
from tagmask.tensors import check_shapes, full, strips
from tagmask.types import IGNORE

EPS = 1e-8
"""Lower bound of a norm in a cosine: an activation of zeros has similarity 0 with everything, itself included."""
TINY = 1e-38
"""Lower bound of the argument of a logarithm."""


def cam_correspondence(cams: Tensor, labels: Tensor, divergence: Literal["js", "cosine"] = "js") -> Tensor:
    """Mean of 1 − similarity over the pairs of positions with one label + mean of similarity over the other pairs.

    (DINO is Also a Semantic Guider, ACM MM 2024, equation 11.) A pair is two different positions of one view whose
    labels are not ignored. The printed equation has 1 − D on pairs of one label, D being a divergence. That would
    reward dissimilar activations there, against the text around it, so D is read as a similarity:

    - ``js``: 1 − JS(p, q) / ln 2, JS the Jensen-Shannon divergence of the softmax over the channels, at most ln 2;
    - ``cosine``: the absolute cosine of the activations themselves.

    A half without pairs is 0. The result is the mean over views; the printed sum over an image's N local views is N
    times that.

    cams: (B,C,h,w) raw class maps, B views; ``js`` needs C ≥ 2. labels: integers (B,h,w) on the same grid, 0
    background, 1..C, 255 ignored. Returns a scalar in [0,2], float32 for half-precision maps. Memory besides the input
    is bounded: pairs are processed in strips, and the forward pass computes the gradient. There are no second
    derivatives. Raises TagmaskError when shapes, dtypes or ``divergence`` do not fit.

    Examples:
        >>> cam_correspondence(torch.zeros(1, 3, 2, 2), torch.ones(1, 2, 2, dtype=torch.long), "js")
        tensor(0.)
    """
    check_labels("CAM correspondence", labels)
    check_shapes("CAM correspondence", "class maps (B,C,h,w) and labels (B,h,w)", cams, labels)
    if divergence not in ("js", "cosine"):
        raise TagmaskError(f"CAM correspondence: the divergence is 'js' or 'cosine', got '{divergence}'.")
    if divergence == "js" and cams.shape[1] < 2:
        raise TagmaskError("CAM correspondence: 'js' needs two classes or more; the softmax over one is 1 everywhere.")
    flat = labels.flatten(1)
    positive, negative = _pair_counts(flat)
    with torch.autocast(cams.device.type, enabled=False):
        vectors = cams.flatten(2).mT
        vectors = full(vectors)
        # The loss is linear in the pairs' similarities: one weight a pair and a constant for each half.
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

    With m = (p_i + p_j) / 2 the gradient to p_i is g_i = Σ_j w_ij (log p_i − log m). The sum is homogeneous of degree
    1 in p, so it equals Σ_i p_i·g_i (Euler): one pass over the pairs gives both.
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


def _strips(x: Tensor, values_a_row: int) -> Iterator[tuple[int, slice]]:
    """(view, rows) of vectors (B,n,C)."""
    return itertools.product(range(len(x)), strips(x.shape[1], values_a_row, x.device))


def _pair_weights(labels: Tensor, rows: slice, weights: Tensor) -> Tensor:
    """Weights of the strip's pairs, (r,n). weights: of pairs with equal and with different labels."""
    mine, others = labels[rows, None], labels[None]
    pairs = torch.where(mine == others, weights[0], weights[1])
    pairs = pairs.masked_fill_((mine == IGNORE) | (others == IGNORE), 0)
    at = torch.arange(len(mine), device=labels.device)
    pairs[at, at + rows.start] = 0  # a position forms no pair with itself
    return pairs


def _pair_counts(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of ordered pairs with equal and with different labels, long (B,) each; labels (B,n)."""
    counts = torch.zeros(len(labels), IGNORE + 1, dtype=torch.long, device=labels.device)
    counts.scatter_add_(1, labels.long(), torch.ones_like(labels, dtype=torch.long))
    counts = counts[:, :IGNORE]
    total = counts.sum(1)
    same = counts.square().sum(1)
    return same - total, total.square() - same
