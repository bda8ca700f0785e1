"""Label files of a staged run: confident labels from CAMs, and masks after the walk. One photo at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from tagmask.data import Item, read_ahead, tag_vector, write_mask
from tagmask.errors import ConfigError, DataError
from tagmask.label import Inference, Labelled
from tagmask.label.infer import best_labels
from tagmask.methods.walking import WalkMethod
from tagmask.refine import DenseCRF, label_probabilities
from tagmask.stage_config import CamsStage, MasksStage
from tagmask.training import read_json, write_json
from tagmask.types import IGNORE

Make = Callable[[Tensor, Tensor], "tuple[Tensor, Tensor]"]
"""A photo uint8 (3,H,W) and the indices of its K ≥ 1 classes → label map uint8 (H,W) whose values 1..K are places in
that list, and the scores (n,h,w) to save where soft maps are asked for."""


class ConfidentLabels:
    """Labels to learn affinities from: made twice, against much and against little background.

    A pixel is of a class where that class wins against much background (``high``, or (1 − strongest CAM)^power_high),
    background where that wins although there is little of it, and 255 otherwise; also where the two contradict each
    other, which only a CRF can bring about. AffinityNet (CVPR 2018), section 3.2; IRN (CVPR 2019), section 4.1.
    """

    def __init__(self, inference: Inference, stage: CamsStage) -> None:
        self.inference, self.stage = inference, stage
        self.crf = None if stage.crf == "none" else DenseCRF.preset(stage.crf)

    def __call__(self, photo: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        cams, images = present_cams(self.inference, photo, present)
        stage, rest = self.stage, (1 - cams.amax(0, keepdim=True)).clamp(min=0)
        if stage.rule == "power":
            much, little = rest.pow(stage.power_high), rest.pow(stage.power_low)
        else:
            much, little = torch.full_like(rest, stage.high), torch.full_like(rest, stage.low)
        strict, lenient = self._labelling(images, cams, much), self._labelling(images, cams, little)
        labels = torch.full_like(strict, IGNORE)
        labels = torch.where((strict > 0) & (lenient > 0), strict, labels)
        labels = labels.masked_fill((strict == 0) & (lenient == 0), 0).byte()
        return F.interpolate(labels[None, None], size=photo.shape[-2:], mode="nearest-exact")[0, 0], cams

    def _labelling(self, images: Tensor, cams: Tensor, background: Tensor) -> Tensor:
        """long (h,w): 0 or 1..K."""
        scores = torch.cat([background, cams])
        labels = scores.max(0).indices
        if self.crf is None:
            return labels
        probs = scores[None]
        if self.stage.confidence is not None:
            probs = label_probabilities(labels[None], len(scores), self.stage.confidence)
        return self.crf((images * 255).round().byte(), probs)[0].max(0).indices


class WalkedMasks:
    """Masks from CAMs that are made again and walk over a network's affinities; without one they are refined."""

    def __init__(self, inference: Inference, stage: MasksStage, walker: WalkMethod | None) -> None:
        self.inference, self.walker = inference, walker
        self.crf = None if stage.crf == "none" else DenseCRF.preset(stage.crf)

    @torch.inference_mode()
    def __call__(self, photo: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        if self.walker is None:
            classes = self.inference.method.classes
            tags = tag_vector(present.tolist(), classes)
            refined = self.inference.refine(photo, self.inference.cams(photo, tags), tags)
            scores = refined[[0, *(present + 1).tolist()]]
            images = self.inference.batch(photo, self.inference.config.max_side)
        else:
            cams, images = present_cams(self.inference, photo, present)
            with self.inference._autocast():
                scores = self.walker.propagate(images, cams).float()
        if self.crf is not None:
            probs = scores.clamp(min=0) / scores.clamp(min=0).sum(0).clamp(min=1e-8)
            scores = self.crf((images * 255).round().byte(), probs[None])[0]
        return best_labels(scores, photo), scores


def present_cams(inference: Inference, photo: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """(K,h,w) CAMs of a photo's classes and the image (1,3,h,w) on the same grid."""
    tags = tag_vector(present.tolist(), inference.method.classes)
    cams = inference.cams(photo, tags)[present.to(inference.device)]
    return cams, inference.batch(photo, inference.config.max_side)


def write_labels(
    folder: Path,
    items: Sequence[Item],
    classes: Sequence[str],
    make: Make,
    note: dict[str, Any],
    soft: bool = False,
    console: Console | None = None,
) -> Labelled:
    """Write ``<id>.png`` of each tagged item into ``folder``, and ``note`` as classes.json; what is there is kept.

    A photo whose tags say that nothing is in it is background. soft: ``<id>.npz`` with 'scores' in half precision,
    compressed, and their 'classes'. A photo that cannot be read is counted in ``failed``. Raises ConfigError when the
    folder holds labels that were made in another way.
    """
    about = folder / "classes.json"
    if about.is_file() and read_json(about) != note:
        raise ConfigError(
            f"{folder}: holds labels of another model or other settings; delete the folder to make them again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(about, note)
    result = Labelled(folder)
    todo = [item for item in items if not _made(folder, item, soft)]
    result.skipped = len(items) - len(todo)
    console = console or Console(stderr=True)
    pixels = unsure = 0
    shown = track(read_ahead(todo), folder.name, len(todo), console=console, disable=not console.is_terminal)
    for item, photo in shown:
        if isinstance(photo, DataError):
            result.failed.append((str(item.image), str(photo)))
            continue
        present = torch.tensor(item.tags or (), dtype=torch.long)
        labels = torch.zeros(photo.shape[-2:], dtype=torch.uint8)
        path = folder / f"{item.id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(present):
            places, scores = make(photo, present)
            table = torch.full((256,), IGNORE, dtype=torch.uint8)
            table[: len(present) + 1] = torch.cat([torch.zeros(1), present + 1]).byte()
            labels = table[places.cpu().long()]
            if soft:
                names = ["background", *classes] if len(scores) > len(present) else list(classes)
                kept = [*([0] if len(scores) > len(present) else []), *(present + len(names) - len(classes)).tolist()]
                about_scores = json.dumps([names[i] for i in kept])
                np.savez_compressed(path.with_suffix(".npz"), scores=scores.half().cpu().numpy(), classes=about_scores)
        write_mask(path, labels)  # last: a label map that is there says that all of its photo's files are
        result.written += 1
        pixels += labels.numel()
        unsure += int((labels == IGNORE).sum())
    result.unsure = unsure / pixels if pixels else 0.0
    return result


def _made(folder: Path, item: Item, soft: bool) -> bool:
    path = folder / f"{item.id}.png"
    return path.is_file() and (not soft or not item.tags or path.with_suffix(".npz").is_file())
