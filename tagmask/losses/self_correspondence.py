"""Self correspondence distillation: where class maps agree, segmentations should agree."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tagmask import comm
from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes, strips

EPS = 1e-8
"""Lower bound of a norm in a cosine: a vector of zeros has cosine 0 with everything."""


def self_correspondence(
    cam_a: Tensor,
    cam_b: Tensor,
    seg_a: Tensor,
    seg_b: Tensor,
    points_a: Tensor,
    points_b: Tensor,
    centered: bool = False,
) -> Tensor:
    """−mean of M · max(S, 0) over the pairs of sampled points of two views, M and S being cosine similarities.

    Xu et al., Self Correspondence Distillation, AAAI 2023, equations 3 to 7. For point p of view a and q of view b,
    M_pq is the cosine of the class maps' vectors there and S_pq that of the segmentation logits'. The printed sum is
    taken as a mean over images and pairs. ``centered``: subtract from M_pq its mean over q, and add its mean over all
    pairs of the whole batch. Gradient flows into all four maps: detach the class maps if they are the target.

    cam_a (B,C,·,·) and cam_b (B,C,·,·): class maps. seg_a, seg_b: (B,K,·,·) logits. The two maps of a view may differ
    in size; they cover the same image, and nothing is resized: each is read at the same places of the image. points_a
    (B,n,2), points_b (B,m,2): (x,y), −1/1 being the corner pixels' centres of the larger of the view's two maps.
    Corners of a coarser map lie further inside the image, as in a resize with align_corners=False. Values between
    pixels are bilinear, points outside the pixels' centres read the border.
    Returns a scalar, in [−1,1] unless centered; in the widest type of the maps, at least float32. Memory besides the
    samples is bounded: pairs are processed in strips, and the forward pass computes the gradients. There are no second
    derivatives. Raises TagmaskError when shapes do not fit and for an empty batch.

    Examples:
        >>> points = torch.rand(2, 100, 2) * 2 - 1
        >>> cam, seg = torch.rand(2, 20, 32, 32), torch.randn(2, 21, 32, 32, requires_grad=True)
        >>> self_correspondence(cam, cam, seg, seg, points, points).shape
        torch.Size([])
    """
    what, points = "Self correspondence", "points (B,n,2) and (B,m,2)"
    check_shapes(what, f"class maps (B,C,h,w) and (B,C,h',w'), {points}", cam_a, cam_b, points_a, points_b)
    check_shapes(what, f"segmentation maps (B,K,h,w) and (B,K,h',w'), {points}", seg_a, seg_b, points_a, points_b)
    if 0 in (len(cam_a), points_a.shape[1], points_b.shape[1]):
        raise TagmaskError("Self correspondence: there is no image or no point; give at least one.")
    dtype = torch.float32
    for maps in (cam_a, cam_b, seg_a, seg_b):
        dtype = torch.promote_types(dtype, maps.dtype)
    cam_a, cam_b, seg_a, seg_b = (maps.to(dtype) for maps in (cam_a, cam_b, seg_a, seg_b))
    with torch.autocast(cam_a.device.type, enabled=False):
        a, s = _sample(cam_a, seg_a, points_a)
        b, t = _sample(cam_b, seg_b, points_b)
        if centered:
            row_means = (a @ b.mean(1)[:, :, None])[..., 0]
            offset = comm.all_sum(row_means.mean()) / comm.shares() - row_means
        else:
            offset = a.new_zeros(a.shape[:2])
        pairs = len(a) * a.shape[1] * b.shape[1]
        return -_PairSum.apply(a, b, offset, s, t) / pairs


class _PairSum(torch.autograd.Function):
    """Sum over images and pairs of (a_p·b_q + offset_p) · max(s_p·t_q, 0).

    a, s: (B,n,·); b, t: (B,m,·); offset: (B,n). The sum is piecewise linear in s, so it is the inner product of s and
    its own gradient: one pass over the strips gives the sum and all gradients.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, offset: Tensor, s: Tensor, t: Tensor) -> Tensor:
        target = any(ctx.needs_input_grad[:3])
        grads = [torch.zeros_like(x) for x in (a, b, offset, s, t)]
        grad_a, grad_b, grad_offset, grad_s, grad_t = grads
        a1, b1 = torch.cat([a, offset[..., None]], 2), torch.cat([b, torch.ones_like(b[..., :1])], 2)
        parts = strips(a.shape[1], b.shape[1], a.device)
        buffers = a.new_empty(2, parts[0].stop, b.shape[1])
        for i in range(len(a)):
            for rows in parts:
                cosine, weight = buffers[:, : rows.stop - rows.start]
                torch.mm(s[i, rows], t[i].T, out=cosine)
                torch.mm(a1[i, rows], b1[i].T, out=weight)
                # What relu's backward calls: 0 where the cosine is not above 0, in one pass without a mask.
                torch.ops.aten.threshold_backward.grad_input(weight, cosine, 0, grad_input=weight)
                torch.mm(weight, t[i], out=grad_s[i, rows])
                if ctx.needs_input_grad[4]:
                    grad_t[i].addmm_(weight.T, s[i, rows])
                if target:
                    positive = cosine.clamp_(min=0)
                    torch.mm(positive, b[i], out=grad_a[i, rows])
                    grad_b[i].addmm_(positive.T, a[i, rows])
                    torch.sum(positive, 1, out=grad_offset[i, rows])
        ctx.save_for_backward(*grads)
        return (s * grad_s).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(grad * g if needed else None for g, needed in zip(ctx.saved_tensors, ctx.needs_input_grad))


def _sample(cam: Tensor, seg: Tensor, points: Tensor) -> list[Tensor]:
    """Unit vectors over the channels of both maps (B,·,·,·) of a view at points (B,n,2): (B,n,C) and (B,n,K)."""
    height, width = (max(sizes) for sizes in zip(cam.shape[-2:], seg.shape[-2:]))
    corner = cam.new_tensor([1 - 1 / width, 1 - 1 / height])  # centre of the corner pixel, in halves of the image
    places = (points.to(cam) * corner)[:, None]
    vectors = []
    for maps in (cam, seg):
        values = F.grid_sample(maps, places, padding_mode="border", align_corners=False)
        vectors.append(F.normalize(values[:, :, 0], dim=1, eps=EPS).mT.contiguous())
    return vectors
