"""VARM: variation-aware refinement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from tagmask.errors import TagmaskError, nearest
from tagmask.refine.neighbours import DILATIONS, EPS, LocalRefiner, softmin_
from tagmask.registry import REFINERS

COLUMN = {"paper": -1, "release": 1}
"""Horizontal step of the variation: to the previous column as printed, to the next as released."""


@REFINERS.register("varm")
class VARM(LocalRefiner):
    """Variation-aware refinement (Xu et al., Self Correspondence Distillation, AAAI 2023, equations 8 to 11).

    Weight of neighbour n of pixel (i,j), for colours I in [0,1], x_ijn being the colour of that neighbour:

        softmax_n(−mean_rgb((α |x_ijn − I_ij|)² / (σ_ij + 1e-8)²)) − β · softmax_n(V_ijn)
        V_ijn = mean_rgb((x_i,j−1,n − x_ijn)² + (x_i+1,j,n − x_ijn)²)

    σ_ij is the unbiased standard deviation of a colour over the neighbours without the pixel itself. A step of V
    that would leave the image counts 0. ``variant``: 'paper' steps to the previous column as printed above,
    'release' to the next one; both to the next row. The weights of a pixel sum to 1 − β and many are negative;
    t iterations scale maps by (1 − β)^t: 0.904 by default.

    Input, output, memory and errors: see ``LocalRefiner``.
    """

    def __init__(
        self,
        dilations: tuple[int, ...] = DILATIONS,
        iterations: int = 10,
        alpha: float = 4.0,
        beta: float = 0.01,
        variant: Literal["paper", "release"] = "paper",
    ) -> None:
        super().__init__(dilations, iterations)
        if variant not in COLUMN:
            raise TagmaskError(f"VARM: unknown variant '{variant}'.{nearest(variant, COLUMN)}")
        self.alpha = alpha
        self.beta = beta
        self.variant = variant

    def weights(self, padded: Tensor, out: Tensor, below: Tensor | None) -> None:
        scale = self.colour_std(padded).add_(EPS).reciprocal_().mul_(self.alpha)
        softmin_(self.squared_differences(padded, scale, out))
        if self.beta == 0:
            return
        total = torch.zeros_like(out[0])
        for values in self._exp_variation(padded, total, below):
            total += values
        total.reciprocal_()
        for weight, values in zip(out, self._exp_variation(padded, total, below)):
            weight.addcmul_(values, total, value=-self.beta)

    def _exp_variation(self, padded: Tensor, like: Tensor, below: Tensor | None) -> Iterator[Tensor]:
        """exp(V) of each neighbour in turn, (B,h,w) like ``like``, always in the same buffer.

        V of a neighbour is the variation at the neighbour's position, so one exponential of the whole padded image
        serves all neighbours, except on the borders where a step leaves the image.
        """
        column = COLUMN[self.variant]
        sideways = (padded - padded.roll(-column, -1)).square_().mean(0)
        last = padded[..., -1:, :] if below is None else below
        down = (padded - torch.cat([padded[..., 1:, :], last], -2)).square_().mean(0)
        side = 0 if column < 0 else like.shape[-1] - 1
        both = self.views((sideways + down).exp_(), like)
        only_down = self.views(down.exp_(), like)
        only_sideways = self.views(sideways.exp_(), like)
        values = torch.empty_like(like)
        for all_steps, row_step, column_step in zip(both, only_down, only_sideways):
            values.copy_(all_steps)
            values[..., side] = row_step[..., side]
            if below is None:
                values[..., -1, :] = column_step[..., -1, :]
                values[..., -1, side] = 1
            yield values
