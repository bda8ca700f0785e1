"""PAMR: pixel-adaptive mask refinement, the predecessor of PAR, with linear colour differences."""

from __future__ import annotations

import torch
from torch import Tensor

from tagmask.refine.neighbours import EPS, LocalRefiner, softmin_
from tagmask.registry import REFINERS


@REFINERS.register("pamr")
class PAMR(LocalRefiner):
    """Pixel-adaptive mask refinement (Araslanov and Roth, Single-Stage Semantic Segmentation, CVPR 2020, section 4.2).

    Weight of neighbour n of pixel p, for colours I in [0,1]:

        softmax_n(−mean_rgb(|I_n − I_p| / (1e-8 + 0.1 σ_p)))

    σ_p is the unbiased standard deviation of a colour over the full 3×3 windows of all dilations, so that the pixel
    itself counts once for each dilation. The weights of a pixel sum to 1.

    Input, output, memory and errors: see ``LocalRefiner``.
    """

    def weights(self, padded: Tensor, out: Tensor, below: Tensor | None) -> None:
        own = self.centre(padded)
        scale = self.colour_std(padded, centre=len(self.dilations)).mul_(0.1).add_(EPS).mul_(3).reciprocal_()
        delta = torch.empty_like(scale)
        for energy, values in zip(out, self.views(padded, own)):
            torch.sub(values, own, out=delta)
            delta.mul_(scale).abs_()
            torch.add(delta[0], delta[1], out=energy)
            energy.add_(delta[2])
        softmin_(out)
