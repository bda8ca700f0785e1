"""What PAR, PAMR and VARM share: a kernel over dilated 3×3 neighbours, applied to maps again and again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagmask.errors import TagmaskError

DILATIONS = (1, 2, 4, 8, 12, 24)
EPS = 1e-8
"""Added to a standard deviation before dividing by it; in colours of [0,1]."""

CPU_BLOCK = 2**16
GPU_BLOCK = 2**21
"""Pixels refined together. Few are slow by the cost of each call, many by falling out of the cache; measured."""
CPU_BAND = 3 * 2**19
"""Map values that one pass over the neighbours works on: larger maps are cut into bands of rows, for the cache."""


class LocalRefiner(nn.Module):
    """Replaces each map value by a weighted sum of its neighbours' values, ``iterations`` times.

    The neighbours are the 8 of a 3×3 window at each dilation; beyond the border the border's value is repeated.
    The weights depend on the image alone: ``weights`` of a subclass computes them, once for all maps and iterations.

    Call: images (B,3,H,W), RGB in [0,1]; maps (B,K,h,w), any K and any size, are first resized to H×W (bilinear,
    align_corners=False) → (B,K,H,W) in the maps' dtype. Computed in float32 whatever the dtypes, without gradient.

    Memory besides the result, for as many images as make about 65,000 pixels (on a GPU two million), one at least:
    the weights, 8·len(dilations)·H·W floats an image (12.6 MB at 256×256 and six dilations), and the maps twice,
    once padded by the largest dilation. It does not grow with the batch beyond that.

    Raises TagmaskError when shapes do not fit or images or maps hold NaN or infinite values.
    """

    def __init__(self, dilations: Sequence[int] = DILATIONS, iterations: int = 10) -> None:
        super().__init__()
        self.dilations = tuple(int(d) for d in dilations)
        self.iterations = int(iterations)
        if not self.dilations or min(self.dilations) < 1:
            raise TagmaskError(f"Refinement: dilations are one or more integers from 1 up, got {tuple(dilations)}.")
        if self.iterations < 0:
            raise TagmaskError(f"Refinement: iterations cannot be negative, got {iterations}.")
        self.radius = max(self.dilations)
        ring = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
        self.offsets = sorted((d * y, d * x) for d in self.dilations for y, x in ring)  # by row, for the cache

    def extra_repr(self) -> str:
        return f"dilations={self.dilations}, iterations={self.iterations}"

    def weights(self, padded: Tensor, height: int, width: int) -> Tensor:
        """Weights (N,B,height,width) of the N ``offsets``, from images (3,B,height+2r,width+2r) in float32."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, images: Tensor, maps: Tensor) -> Tensor:
        _check(images, maps)
        count, _, height, width = images.shape
        result = maps.new_empty(count, maps.shape[1], height, width)
        if result.numel() == 0:
            return result
        budget = CPU_BLOCK if images.device.type == "cpu" else GPU_BLOCK
        step = max(1, budget // (height * width))
        with torch.autocast(images.device.type, enabled=False):
            for start in range(0, count, step):
                block = slice(start, start + step)
                result[block] = self._refine(images[block].float(), maps[block].float())
        return result

    def _refine(self, images: Tensor, maps: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if maps.shape[-2:] != images.shape[-2:]:
            maps = F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
        if self.iterations == 0:
            return maps
        weights = self.weights(self._pad(images).transpose(0, 1).contiguous(), height, width)
        bands = math.ceil(maps.numel() / CPU_BAND) if maps.device.type == "cpu" else 1
        rows = math.ceil(height / min(bands, height))
        result = torch.empty_like(maps, memory_format=torch.contiguous_format)
        for _ in range(self.iterations):
            padded = self._pad(maps)
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                band = padded[..., top : bottom + 2 * self.radius, :]
                _weighted_sum(
                    weights[..., top:bottom, :],
                    self.views(band, bottom - top, width),
                    result[..., top:bottom, :],
                )
            maps = result
        return result

    def _pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (self.radius,) * 4, mode="replicate")

    def views(self, padded: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """The padded tensor (...,height+2r,width+2r) seen from each neighbour: N views (...,height,width)."""
        for y, x in self.offsets:
            top, left = self.radius + y, self.radius + x
            yield padded[..., top : top + height, left : left + width]

    def centre(self, padded: Tensor, height: int, width: int) -> Tensor:
        """The padded tensor without its padding, a view."""
        r = self.radius
        return padded[..., r : r + height, r : r + width]

    def colour_std(self, padded: Tensor, height: int, width: int, centre: int = 0) -> Tensor:
        """Unbiased standard deviation of each colour (3,B,height,width) over the neighbours.

        The pixel itself is one of the samples ``centre`` times. Two passes: in one, E[x²] − E[x]² would lose all
        digits where a neighbourhood is nearly flat.
        """
        own = self.centre(padded, height, width)
        samples = len(self.offsets) + centre
        mean = own * centre
        for values in self.views(padded, height, width):
            mean += values
        mean /= samples
        delta = own - mean
        total = delta.square().mul_(centre)
        for values in self.views(padded, height, width):
            torch.sub(values, mean, out=delta)
            total.addcmul_(delta, delta)
        return total.div_(samples - 1).sqrt_()

    def squared_differences(self, padded: Tensor, height: int, width: int, scale: Tensor) -> Tensor:
        """Mean over RGB of (scale · |neighbour − pixel|)²: (N,B,height,width). scale: (3,B,height,width)."""
        own = self.centre(padded, height, width)
        scale = scale / math.sqrt(3)
        result = padded.new_empty(len(self.offsets), *own.shape[1:])
        delta = torch.empty_like(scale)
        for n, values in enumerate(self.views(padded, height, width)):
            torch.sub(values, own, out=delta)
            delta.mul_(scale)
            torch.mul(delta[0], delta[0], out=result[n])
            result[n].addcmul_(delta[1], delta[1]).addcmul_(delta[2], delta[2])
        return result


def _weighted_sum(weights: Tensor, neighbours: Iterable[Tensor], out: Tensor) -> None:
    """out = Σ_n weights[n] · neighbours[n], for N weights (B,H,W) and N views (B,K,H,W)."""
    for n, values in enumerate(neighbours):
        weight = weights[n].unsqueeze(1)
        if n == 0:
            torch.mul(values, weight, out=out)
        else:
            out.addcmul_(values, weight)


def softmin_(energies: Tensor) -> Tensor:
    """exp(−energy) over its sum along the first dimension, in place: no second tensor of the weights' size."""
    torch.sub(energies.amin(0), energies, out=energies)
    energies.exp_()
    return energies.mul_(energies.sum(0).reciprocal_())


def _check(images: Tensor, maps: Tensor) -> None:
    if images.dim() != 4 or images.shape[1] != 3 or maps.dim() != 4 or maps.shape[0] != images.shape[0]:
        raise TagmaskError(
            f"Refinement takes images (B,3,H,W) and maps (B,K,h,w), got {tuple(images.shape)} and {tuple(maps.shape)}."
        )
    for name, x in (("images", images), ("maps", maps)):
        if not torch.isfinite(x).all():
            raise TagmaskError(f"Refinement: the {name} hold NaN or infinite values; look for where they came from.")
