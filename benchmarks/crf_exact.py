"""How far the lattice is from the Gaussian that it approximates: mean field both ways on small images.

    python benchmarks/crf_exact.py                        # drawn scenes
    TAGMASK_MSRC=<photos> python benchmarks/crf_exact.py  # pieces of real photos

Positions scale with the image: a piece of 64 pixels stands for a photo of 500, with the standard deviations in
proportion (--side), or as published on a piece cut out at full resolution (--cut).
"""

from __future__ import annotations

import argparse
from unittest.mock import patch

import torch
from alternatives.crf import WIDTH, inputs
from torch import Tensor

from tagmask.refine import PRESETS, DenseCRF
from tagmask.refine import crf as module


class ExactKernel:
    """The symmetrically normalised Gaussian kernel as a matrix, in the place of a lattice."""

    def __init__(self, features: Tensor) -> None:
        features = features.double()
        kernel = torch.exp(-0.5 * torch.cdist(features, features).square())
        scale = kernel.sum(1).rsqrt()
        self.matrix = scale[:, None] * kernel * scale

    def add_rows(self, values: Tensor, result: Tensor, factor: float) -> None:
        result.add_((self.matrix @ values.double()).to(result.dtype), alpha=factor)


def exact(crf: DenseCRF, images: Tensor, probs: Tensor) -> Tensor:
    """What the CRF gives with exact Gaussians."""
    uncached = module.spatial_kernel.__wrapped__
    with patch.object(module, "_lattice", ExactKernel), patch.object(module, "spatial_kernel", uncached):
        return crf(images, probs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--side", type=int, default=64, help="longest side of the small images")
    parser.add_argument("--cut", action="store_true", help="cut pieces out instead of reducing the whole")
    args = parser.parse_args()
    images, probs = inputs(args.images)
    if args.cut:
        images, probs = (x[..., 100 : 100 + args.side, 100 : 100 + args.side] for x in (images, probs))
        factor = 1.0
    else:
        size = (round(args.side * images.shape[2] / WIDTH), args.side)
        resized = torch.nn.functional.interpolate(images.float(), size=size, mode="bilinear", antialias=True)
        images = resized.round().byte()
        probs = torch.nn.functional.interpolate(probs, size=size, mode="bilinear", antialias=True)
        factor = args.side / WIDTH
    print(f"{args.images} images of {images.shape[3]}x{images.shape[2]}, {probs.shape[1]} classes")
    print(f"{'preset':<10}{'labels that differ':>20}{'mean |difference|':>20}{'changed by the CRF':>20}")
    for name in PRESETS:
        crf = DenseCRF.preset(name)
        crf.bilateral_sxy *= factor
        lattice, gaussian = crf(images, probs), exact(crf, images, probs)
        differing = (lattice.argmax(1) != gaussian.argmax(1)).float().mean()
        changed = (gaussian.argmax(1) != probs.argmax(1)).float().mean()
        difference = (lattice - gaussian).abs().mean()
        print(f"{name:<10}{100 * differing:>18.2f} %{difference:>20.1e}{100 * changed:>18.1f} %")


if __name__ == "__main__":
    main()
