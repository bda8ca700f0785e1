"""Dense energy, forward and backward, beside one pydensecrf2 call on one photo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from alternatives import Case, Form, with_optional
from alternatives.crf import inputs, pydensecrf
from tagmask.losses import DenseEnergy

BATCH, SIZE, CLASSES = 4, 512, 21


def ours(gradient: Literal["exact", "release"]) -> Form:
    def form(device: torch.device) -> Callable[[], Tensor]:
        photos, probs = inputs(BATCH)
        size = {"size": (SIZE, SIZE), "mode": "bilinear"}
        images = torch.nn.functional.interpolate(photos.float() / 255, **size).to(device)
        probs = torch.nn.functional.interpolate(probs, **size).to(device).requires_grad_()
        boxes = torch.tensor([[0, 0, SIZE, SIZE]] * BATCH, device=device)
        energy = DenseEnergy(gradient=gradient)
        energy(images[..., :8, :8], probs[..., :8, :8], boxes.clamp(max=8)).backward()

        def run() -> Tensor:
            probs.grad = None
            loss = energy(images, probs, boxes)
            loss.backward()
            return loss.detach()

        return run

    return form


def cases() -> list[Case]:
    kinds: tuple[Literal["exact", "release"], ...] = ("exact", "release")
    return [
        Case(
            operator="energy",
            name=kind,
            shape=f"{BATCH}x{CLASSES} {SIZE}x{SIZE} at 1/2",
            target="<= 1.0x one pydensecrf2 call",
            compare=False,
            **with_optional({"ours": ours(kind)}, {"pydensecrf2 afa": ("pydensecrf", pydensecrf("afa"))}),
        )
        for kind in kinds
    ]
