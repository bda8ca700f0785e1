"""Whether an exported segmenter gives the labels of its run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tagmask.data import read_image
from tagmask.errors import DataError
from tagmask.label import Inference, Look
from tagmask.workflow.opened import Run, opened

DIFFER = 0.001
"""Share of pixels that may have another label than by the run."""
MANY = 0.05
"""The same in fp16 and int8, from where on it is said."""
SIDES = (192, 320, 512)
"""Long sides of the photos that an export is compared on."""


def to_export(run: Run | str | Path, overrides: Sequence[str]) -> Run:
    """The run whose segmenter counts. Raises DataError at once where its photos, to compare on, are not there."""
    found = opened((run if isinstance(run, Run) else Run(run)).last, overrides)
    photos_of(found, len(SIDES))
    return found


def compare(run: Run, exported: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """Share of pixels whose labels differ from the run's own in fp32 without CRF, by the photos' sizes.

    exported: labels uint8 (H,W) of a photo uint8 (H,W,3).
    """
    config = run.config.model_copy(deep=True)
    config.label = run.inference.config.model_copy(update={"crf": "none", "tile": None})
    config.train = config.train.model_copy(update={"precision": "fp32"})
    plain = Inference(run.method.float(), config)
    found = {}
    for side, photo in zip(SIDES, photos_of(run, len(SIDES)), strict=True):
        seen = shown(photo, side)
        wanted = Look(plain, torch.from_numpy(seen).permute(2, 0, 1)).prediction[0].cpu().numpy()
        found["{}x{}".format(*seen.shape)] = round(float((exported(seen) != wanted).mean()), 6)
    return found


def photos_of(run: Run, count: int) -> list[Tensor]:
    """That many photos uint8 (3,H,W) that the run learned from; some twice where it has fewer."""
    items = run.collection.split("train")
    step = max(1, len(items) // count)
    return [read_image(items[i * step % len(items)].image) for i in range(count)]


def shown(photo: Tensor, side: int) -> np.ndarray:
    """uint8 (h,w,3) of a photo (3,H,W), the long side brought to ``side``."""
    image = Image.fromarray(photo.permute(1, 2, 0).numpy())
    factor = side / max(image.size)
    return np.array(image.resize([max(1, round(length * factor)) for length in image.size]))


def check(differ: dict[str, float], out: Path) -> None:
    """Raise DataError where more labels differ than may."""
    worst = max(differ.values())
    if worst > DIFFER:
        raise DataError(
            f"{out}: not written, since {worst:.2%} of the labels differ from PyTorch's (at most {DIFFER:.1%}). "
            "This is a fault of the exporter or of onnxruntime: try other versions of them."
        )


def summary(run: Run, out: Path, size: int, differ: dict[str, float]) -> dict[str, Any]:
    """What an export reports: file, megabytes, differ, and notes on what the file leaves out or costs."""
    config = run.inference.config
    notes = []
    if config.crf != "none":
        notes.append("The dense CRF (label.crf) is left out: 'tagmask predict' with the run has it.")
    passes = len(config.scales) * (2 if config.flip else 1)
    if passes > 1:
        notes.append(
            f"The network looks at each photo {passes} times (label.scales, label.flip). label.scales=[1.0] "
            "label.flip=false writes one that looks once."
        )
    if max(differ.values()) > MANY:
        notes.append("Many labels differ: score this file before you use it, or take fp32.")
    return {"file": str(out), "megabytes": round(size / 1e6, 1), "differ": differ, "notes": notes}
