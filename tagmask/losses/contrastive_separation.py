"""Contrastive separation: class vectors of one label attract, those of different labels repel each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tagmask import comm
from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes, full, strips
from tagmask.types import IGNORE

EPS = 1e-8
"""Lower bound of a norm in a cosine."""


def contrastive_separation(
    cams: Tensor, labels: Tensor, perplexity: Tensor, epsilon: float = 1.0, temperature: float = 0.1
) -> Tensor:
    """InfoNCE between the class vectors of positions with a confident label.

    Yang et al., Co-training with Swapping Assignments, ECCV 2024, equations 9 and 10. Ω are the positions of an image
    with perplexity ≤ ε. Two of them are positives of each other if they have one label, else negatives. Anchor i
    costs the mean over its positives p of −log L_ip / (L_ip + Σ_n L_in), with its negatives n and L_ij = exp(cosine of
    the class vectors at i and j / temperature). The loss is the mean over the anchors of an image that have a positive,
    then the mean over the images of the whole batch that have such anchors. Gradient flows into ``cams`` only.

    cams: (B,C,h,w), class maps of any range. labels: integers (B,h,w), 0 background, 1..C, 255 never in Ω.
    perplexity: (B,h,w). epsilon: largest perplexity in Ω. temperature: above 0. Returns a scalar ≥ 0, float32 for
    half-precision maps; 0 without anchors. Memory does not grow with the maps: anchors are processed in strips, and
    the forward pass computes the gradient. It peaks at some eight matrices of 2^18 pairs, 1 MB each in float32 (on
    GPUs 2^24 and 64 MB). There are no second derivatives. Raises TagmaskError when shapes do not fit and for a
    temperature that is not above 0.

    Examples:
        >>> labels = torch.tensor([[[0, 0], [1, 1]]])
        >>> loss = contrastive_separation(torch.randn(1, 3, 2, 2), labels, torch.zeros(1, 2, 2))
    """
    wanted = "CAMs (B,C,h,w), labels (B,h,w) and perplexity (B,h,w)"
    check_shapes("Contrastive separation", wanted, cams, labels, perplexity)
    if not temperature > 0:
        raise TagmaskError(f"Contrastive separation: the temperature is above 0, got {temperature}.")
    cams = full(cams)
    sure = ((perplexity <= epsilon) & (labels != IGNORE)).flatten(1)
    vectors = F.normalize(cams.flatten(2), dim=1, eps=EPS).mT
    with torch.autocast(cams.device.type, enabled=False):
        found = [_of_image(v[s], y[s], temperature) for v, y, s in zip(vectors, labels.flatten(1), sure)]
    losses = [loss for loss in found if loss is not None]
    images = comm.share(torch.tensor(float(len(losses)), device=cams.device))
    return torch.stack(losses).sum() / images if losses else cams.sum() * 0


def _of_image(vectors: Tensor, labels: Tensor, temperature: float) -> Tensor | None:
    """Equation 10 for unit vectors (n,C) and their labels (n,); None where no position has a positive."""
    _, which, members = labels.unique(return_inverse=True, return_counts=True)
    positives = members[which] - 1  # all but itself
    anchors = int((positives > 0).sum())
    return _AnchorSum.apply(vectors, labels, positives, temperature) / anchors if anchors else None


class _AnchorSum(torch.autograd.Function):
    """Sum over anchors i of the mean over their positives p of softplus(N_i − s_ip).

    s_ij is the product of vectors i and j over the temperature, N_i the logarithm of the sum of exp(s_in) over the
    negatives n. vectors: (n,C); labels: (n,); positives: (n,), how many each position has.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, labels: Tensor, positives: Tensor, temperature: float) -> Tensor:
        grad = torch.zeros_like(vectors)
        total = vectors.new_zeros(())
        for rows in strips(len(vectors), len(vectors), vectors.device):
            similarity = vectors[rows] @ vectors.mT / temperature
            same = labels[rows, None] == labels
            negative = similarity.masked_fill(same, -torch.inf)
            # An empty sum has the logarithm −∞, which would give NaN below; the least finite number does not.
            behind = negative.logsumexp(1, keepdim=True).clamp(min=torch.finfo(vectors.dtype).min)
            excess = behind - similarity
            share = same.to(vectors.dtype) / positives[rows, None].clamp(min=1)
            share[:, rows].fill_diagonal_(0)
            total += (F.softplus(excess) * share).sum()
            if ctx.needs_input_grad[0]:
                pull = excess.sigmoid_().mul_(share)
                push = negative.sub_(behind).exp_().mul_(pull.sum(1, keepdim=True))
                by_pair = push.sub_(pull).div_(temperature)
                grad[rows] += by_pair @ vectors
                grad += by_pair.mT @ vectors[rows]
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.saved_tensors[0], None, None, None
