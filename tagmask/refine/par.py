"""PAR: pixel-adaptive refinement with a colour and a position term."""

from __future__ import annotations

import torch
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.refine.neighbours import DILATIONS, EPS, LocalRefiner, softmin_
from tagmask.registry import REFINERS


@REFINERS.register("par")
class PAR(LocalRefiner):
    """Pixel-adaptive refinement (Ru et al., Learning Affinity from Attention, CVPR 2022, section 3.3).

    Weight of neighbour n of pixel p, for colours I in [0,1]:

        softmax_n(−mean_rgb((|I_n − I_p| / ((σ_p + 1e-8) w1))²)) + w2 · softmax_n(−(d_n / ((σ_d + 1e-8) w1))²)

    σ_p is the unbiased standard deviation of a colour over the neighbours without the pixel itself, d_n the
    distance of the neighbour in pixels and σ_d the unbiased standard deviation of these distances. The weights of a
    pixel sum to 1 + w2, so t iterations scale maps by (1 + w2)^t: 1.10 by default.

    Input, output, memory and errors: see ``LocalRefiner``.

    Examples:
        >>> refined = PAR()(torch.rand(2, 3, 64, 64), torch.rand(2, 5, 16, 16))
        >>> refined.shape
        torch.Size([2, 5, 64, 64])
    """

    def __init__(
        self, dilations: tuple[int, ...] = DILATIONS, iterations: int = 10, w1: float = 0.3, w2: float = 0.01
    ) -> None:
        super().__init__(dilations, iterations)
        if w1 <= 0:
            raise TagmaskError(f"PAR: w1 divides the colour differences and must be above 0, got {w1}.")
        self.w1 = w1
        self.w2 = w2

    def weights(self, padded: Tensor, out: Tensor, below: Tensor | None) -> None:
        scale = self.colour_std(padded).add_(EPS).mul_(self.w1).reciprocal_()
        softmin_(self.squared_differences(padded, scale, out))
        out += self._position().to(out)[:, None, None, None]

    def _position(self) -> Tensor:
        """w2 times the position softmax, (N,): the same for all pixels."""
        distance = torch.tensor([(y * y + x * x) ** 0.5 for y, x in self.offsets], dtype=torch.float64)
        return self.w2 * torch.softmax(-((distance / ((distance.std() + EPS) * self.w1)) ** 2), 0)
