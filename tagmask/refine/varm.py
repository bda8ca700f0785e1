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
"""Where the horizontal step of the variation goes: to the previous column as printed, to the next as released."""


@REFINERS.register("varm")
class VARM(LocalRefiner):
    """Variation-aware refinement (Xu et al., Self Correspondence Distillation, AAAI 2023, equations 7 to 10).

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

    def weights(self, padded: Tensor, height: int, width: int) -> Tensor:
        scale = self.colour_std(padded, height, width).add_(EPS).reciprocal_().mul_(self.alpha)
        weights = softmin_(self.squared_differences(padded, height, width, scale))
        if self.beta == 0:
            return weights
        total = torch.zeros_like(weights[0])
        for values in self._exp_variation(padded, height, width):
            total += values
        total.reciprocal_()
        for n, values in enumerate(self._exp_variation(padded, height, width)):
            weights[n].addcmul_(values, total, value=-self.beta)
        return weights

    def _exp_variation(self, padded: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """exp(V) of each neighbour in turn, (B,height,width), in one buffer that is overwritten.

        V of a neighbour is the variation at the neighbour's place, so its exponential is taken once for the whole
        padded image, except on the border from which a step leaves the image.
        """
        sideways = (padded - padded.roll(-COLUMN[self.variant], -1)).square_().mean(0)
        down = (padded - padded.roll(-1, -2)).square_().mean(0)
        side, last = (0 if self.variant == "paper" else width - 1), height - 1
        both = self.views((sideways + down).exp_(), height, width)
        only_down = self.views(down.exp_(), height, width)
        only_sideways = self.views(sideways.exp_(), height, width)
        values = padded.new_empty(padded.shape[1], height, width)
        for all_steps, row_step, column_step in zip(both, only_down, only_sideways):
            values.copy_(all_steps)
            values[..., side] = row_step[..., side]
            values[..., last, :] = column_step[..., last, :]
            values[..., last, side] = 1
            yield values
