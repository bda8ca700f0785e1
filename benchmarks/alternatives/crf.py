"""Dense CRF beside pydensecrf2: images of VOC's size, 21 classes.

What it costs depends on the photo: set $TAGMASK_MSRC to time real ones instead of drawn scenes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alternatives import Case, Form, with_optional
from tagmask.data.scenes import scene
from tagmask.refine import PRESETS, DenseCRF
from tagmask.refine.crf import spatial_kernel

HEIGHT, WIDTH, CLASSES, BATCH = 375, 500, 21, 4


@cache
def photos(count: int) -> Tensor:
    """uint8 (count,3,H,W): real photos, enlarged, where $TAGMASK_MSRC has them, else drawn scenes with noise."""
    if "TAGMASK_MSRC" in os.environ:
        paths = sorted((Path(os.environ["TAGMASK_MSRC"]) / "JPEGImages").iterdir())[::140][:count]
        opened = [Image.open(path).convert("RGB") for path in paths]
        lying = [photo if photo.width > photo.height else photo.rotate(90, expand=True) for photo in opened]
        arrays = [np.array(photo.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) for photo in lying]
    else:
        rng = np.random.default_rng(0)
        drawn = [scene(rng, HEIGHT, WIDTH)[0] for _ in range(count)]
        arrays = [(image + rng.normal(0, 1.5, image.shape)).clip(0, 255).astype(np.uint8) for image in drawn]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


@cache
def inputs(count: int) -> tuple[Tensor, Tensor]:
    """``photos``, and blobs of probabilities."""
    coarse = torch.randn(count, CLASSES, 12, 16, generator=torch.Generator().manual_seed(0)) * 3
    probs = torch.nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear").softmax(1)
    return photos(count), probs


def ours(name: str, count: int = 1, new_size: bool = False) -> Form:
    """``new_size``: as for the first image of its size, whose spatial kernel is not at hand."""

    def form(device: torch.device) -> Callable[[], Tensor]:
        images, probs = (x.to(device) for x in inputs(count))
        crf = DenseCRF.preset(name)
        crf(images[..., :8, :8], probs[..., :8, :8])

        def run() -> Tensor:
            if new_size:
                spatial_kernel.cache_clear()
            return crf(images, probs)

        return run

    return form


def pydensecrf(name: str, count: int = 1) -> Form:
    def form(device: torch.device) -> Callable[[], Tensor]:
        from pydensecrf.densecrf import DenseCRF2D

        images, probs = inputs(count)
        crf = DenseCRF.preset(name)
        writable = [np.array(image.permute(1, 2, 0), order="C") for image in images]
        unaries = [np.ascontiguousarray(-p.clamp(1e-5, 1).log().flatten(1).numpy()) for p in probs]

        def run() -> Tensor:
            results = []
            for photo, unary in zip(writable, unaries):
                model = DenseCRF2D(WIDTH, HEIGHT, CLASSES)
                model.setUnaryEnergy(unary)
                model.addPairwiseGaussian(sxy=crf.gaussian_sxy, compat=crf.gaussian_weight)
                model.addPairwiseBilateral(
                    sxy=crf.bilateral_sxy, srgb=crf.bilateral_srgb, rgbim=photo, compat=crf.bilateral_weight
                )
                results.append(torch.from_numpy(np.array(model.inference(crf.iterations))))
            return torch.stack(results).view(count, CLASSES, HEIGHT, WIDTH)

        return run

    return form


def cases() -> list[Case]:
    counts = dict.fromkeys(PRESETS, 1) | {"batch": BATCH}
    return [
        Case(
            operator="crf",
            name=name,
            shape=f"{count}x{CLASSES} {HEIGHT}x{WIDTH}",
            target=">= 1.5x pydensecrf2" if count == 1 else "scales with cores",
            **with_optional(
                {
                    "ours": ours("afa" if name == "batch" else name, count),
                    "new-size": ours("afa" if name == "batch" else name, count, new_size=True),
                },
                {"pydensecrf2": ("pydensecrf", pydensecrf("afa" if name == "batch" else name, count))},
            ),
        )
        for name, count in counts.items()
    ]
