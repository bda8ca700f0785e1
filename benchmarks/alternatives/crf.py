"""Dense CRF beside pydensecrf2: photo-like scenes of VOC's size, 21 classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from alternatives import Case, Form, with_optional
from tagmask.data.scenes import scene
from tagmask.refine import PRESETS, DenseCRF

HEIGHT, WIDTH, CLASSES, BATCH = 375, 500, 21, 4


@cache
def inputs(count: int) -> tuple[Tensor, Tensor]:
    """Drawn scenes with a camera's noise, and blobs of probabilities."""
    rng = np.random.default_rng(0)
    drawn = np.stack([scene(rng, HEIGHT, WIDTH)[0] for _ in range(count)])
    noisy = (drawn + rng.normal(0, 3, drawn.shape)).clip(0, 255).astype(np.uint8)
    coarse = torch.from_numpy(rng.normal(0, 3, (count, CLASSES, 12, 16))).float()
    probs = torch.nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear").softmax(1)
    return torch.from_numpy(noisy).permute(0, 3, 1, 2).contiguous(), probs


def ours(name: str, count: int = 1) -> Form:
    def form(device: torch.device) -> Callable[[], Tensor]:
        images, probs = (x.to(device) for x in inputs(count))
        crf = DenseCRF.preset(name)
        crf(images[..., :8, :8], probs[..., :8, :8])
        return lambda: crf(images, probs)

    return form


def pydensecrf(name: str, count: int = 1) -> Form:
    def form(device: torch.device) -> Callable[[], Tensor]:
        from pydensecrf.densecrf import DenseCRF2D

        images, probs = inputs(count)
        crf = DenseCRF.preset(name)
        photos = [np.array(image.permute(1, 2, 0), order="C") for image in images]
        unaries = [np.ascontiguousarray(-p.clamp(1e-5, 1).log().flatten(1).numpy()) for p in probs]

        def run() -> Tensor:
            results = []
            for photo, unary in zip(photos, unaries):
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
                {"ours": ours("afa" if name == "batch" else name, count)},
                {"pydensecrf2": ("pydensecrf", pydensecrf("afa" if name == "batch" else name, count))},
            ),
        )
        for name, count in counts.items()
    ]
