"""Base of PAR, PAMR and VARM: a kernel over dilated 3×3 neighbours, applied to maps iteratively."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagmask.errors import TagmaskError
from tagmask.refine.threads import cut, for_each, worker_count
from tagmask.tensors import check_shapes, resize

DILATIONS = (1, 2, 4, 8, 12, 24)
EPS = 1e-8
"""Added to a standard deviation before dividing by it; in colours of [0,1]."""

CPU_BLOCK = 2**16
GPU_BLOCK = 2**21
"""Pixels refined together (measured): fewer cost more calls, more do not fit in the cache."""
CPU_BAND = 2**20
SMALL_BAND = 2**15
"""Map values in one operation (measured): more do not fit in the cache, fewer are not worth a thread."""


class LocalRefiner(nn.Module):
    """Replaces each map value by a weighted sum of its neighbours' values, ``iterations`` times.

    The neighbours are the 8 of a 3×3 window at each dilation; beyond the border the border's value is repeated.
    The weights depend on the image alone; a subclass computes them in ``weights``, once for all maps and iterations.

    Call: images (B,3,H,W), RGB in [0,1]; maps (B,K,h,w), any K and any size, are first resized to H×W (bilinear,
    align_corners=False) → (B,K,H,W) in the maps' dtype. Computed in float32 for all dtypes, without gradient.

    Memory besides the result: the weights, 8·len(dilations)·H·W floats an image (12.6 MB at 256×256 and six
    dilations), and the maps twice, padded by the largest dilation. Blocks of about 65,000 pixels (two million on a
    GPU), at least one image, are processed one after another, so that memory does not grow with the batch.

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

    def weights(self, padded: Tensor, out: Tensor, below: Tensor | None) -> None:
        """Write the weights of the N ``offsets`` for a band of rows.

        padded: the band's rows, padded by the radius r, (3,B,h+2r,w+2r), float32. out: (N,B,h,w). below: the next
        padded row, (3,B,1,w+2r), or None where the band's last row is the images' last.
        """
        raise NotImplementedError

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, images: Tensor, maps: Tensor) -> Tensor:
        check_shapes("Refinement", "images (B,3,H,W) and maps (B,K,h,w)", images, maps)
        count, _, height, width = images.shape
        result = maps.new_empty(count, maps.shape[1], height, width)
        if result.numel() == 0:
            return result
        budget = CPU_BLOCK if images.device.type == "cpu" else GPU_BLOCK
        step = max(1, budget // (height * width))
        with torch.autocast(images.device.type, enabled=False):
            for start in range(0, count, step):
                block = slice(start, start + step)
                self._iterate(*self._prepare(images[block], maps[block]), result[block])
        return result

    def _prepare(self, images: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """The padded maps (B,K,H+2r,W+2r) and the weights (N,B,H,W), float32."""
        r, device = self.radius, images.device
        count, _, height, width = images.shape
        colours = torch.empty(3, count, height + 2 * r, width + 2 * r, device=device)
        source = torch.empty(count, maps.shape[1], height + 2 * r, width + 2 * r, device=device)
        weights = source.new_empty(len(self.offsets), count, height, width)

        def prepare(part: slice) -> None:
            check_values("Refinement", images[part], "maps", maps[part])
            colours[:, part] = _pad(images[part].float(), r).transpose(0, 1)
            source[part] = _pad(resize(maps[part].float(), (height, width)), r)

        def weigh(band: slice) -> None:
            rows, rest = colours[..., band.start :, :].tensor_split([band.stop - band.start + 2 * r], -2)
            self.weights(rows, weights[..., band, :], rest[..., :1, :] if rest.shape[-2] else None)

        for_each(prepare, cut(count, worker_count(device)), device)
        if self.iterations > 0:
            for_each(weigh, _bands(height, count * maps.shape[1] * height * width, device), device)
        return source, weights

    def _iterate(self, source: Tensor, weights: Tensor, result: Tensor) -> None:
        """Apply the weights ``iterations`` times and write the maps into result (B,K,H,W)."""
        r, device = self.radius, source.device
        height, width = result.shape[-2:]
        target = torch.empty_like(source)
        bands = _bands(height, result.numel(), device)

        def update(band: slice) -> None:
            rows = source[..., band.start : band.stop + 2 * r, :]
            out = target[..., r + band.start : r + band.stop, :]
            values = out[..., r : r + width]
            for n, neighbour in enumerate(self.views(rows, values)):
                weight = weights[n, :, None, band]
                if n == 0:
                    torch.mul(neighbour, weight, out=values)
                else:
                    values.addcmul_(neighbour, weight)
            out[..., :r] = values[..., :1]
            out[..., r + width :] = values[..., -1:]
            if band.start == 0:
                target[..., :r, :] = out[..., :1, :]
            if band.stop == height:
                target[..., r + height :, :] = out[..., -1:, :]

        for _ in range(self.iterations):
            for_each(update, bands, device)
            source, target = target, source
        result.copy_(self.centre(source))

    def views(self, padded: Tensor, like: Tensor) -> Iterator[Tensor]:
        """The padded tensor (...,h+2r,w+2r) shifted to each neighbour: N views (...,h,w) of the size of ``like``."""
        height, width = like.shape[-2:]
        for y, x in self.offsets:
            top, left = self.radius + y, self.radius + x
            yield padded[..., top : top + height, left : left + width]

    def centre(self, padded: Tensor) -> Tensor:
        """The padded tensor without its padding, a view."""
        r = self.radius
        return padded[..., r : padded.shape[-2] - r, r : padded.shape[-1] - r]

    def colour_std(self, padded: Tensor, centre: int = 0) -> Tensor:
        """Unbiased standard deviation of each colour over the neighbours: (3,B,h+2r,w+2r) → (3,B,h,w).

        The pixel itself counts ``centre`` times. Two passes, because E[x²] − E[x]² loses all digits in nearly constant
        neighbourhoods.
        """
        own = self.centre(padded)
        samples = len(self.offsets) + centre
        mean = own * centre
        for values in self.views(padded, own):
            mean += values
        mean /= samples
        delta = own - mean
        total = delta.square().mul_(centre)
        for values in self.views(padded, own):
            torch.sub(values, mean, out=delta)
            total.addcmul_(delta, delta)
        return total.div_(samples - 1).sqrt_()

    def squared_differences(self, padded: Tensor, scale: Tensor, out: Tensor) -> Tensor:
        """Mean over RGB of (scale · |neighbour − pixel|)² into out (N,B,h,w). scale: (3,B,h,w)."""
        own = self.centre(padded)
        scale = scale / math.sqrt(3)
        delta = torch.empty_like(scale)
        for energy, values in zip(out, self.views(padded, own)):
            torch.sub(values, own, out=delta)
            delta.mul_(scale)
            torch.mul(delta[0], delta[0], out=energy)
            energy.addcmul_(delta[1], delta[1]).addcmul_(delta[2], delta[2])
        return out


def _pad(x: Tensor, radius: int) -> Tensor:
    return F.pad(x, (radius,) * 4, mode="replicate")


def _bands(height: int, values: int, device: torch.device) -> list[slice]:
    """Rows 0..height cut into bands that fit in the cache: at least one a thread, unless the maps are small."""
    if device.type != "cpu":
        return [slice(0, height)]
    return cut(height, max(1, math.ceil(values / CPU_BAND), min(worker_count(device), values // SMALL_BAND)))


def softmin_(energies: Tensor) -> Tensor:
    """Softmax of −energy along the first dimension, in place: no second tensor of the weights' size."""
    torch.sub(energies.amin(0), energies, out=energies)
    energies.exp_()
    return energies.mul_(energies.sum(0).reciprocal_())


def check_values(what: str, images: Tensor, name: str, maps: Tensor) -> None:
    """Raise TagmaskError for images or maps, called ``name``, that are not finite floating-point numbers, and for
    images that cannot be RGB in [0,1]; overshoot of resizing passes."""
    for kind, x in (("images", images), (name, maps)):
        if not x.is_floating_point():
            raise TagmaskError(f"{what} takes floating-point {kind}, got {x.dtype}; from 0..255: images.float() / 255.")
        if not torch.isfinite(x).all():
            raise TagmaskError(f"{what}: the {kind} hold NaN or infinite values; look for where they came from.")
    low, high = (float(x) for x in images.detach().aminmax()) if images.numel() else (0.0, 0.0)
    if low < -0.5 or high > 1.5:
        raise TagmaskError(f"{what} takes images with colours in [0,1], got {low:g} to {high:g}; divide them by 255.")
