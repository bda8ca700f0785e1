"""Label files of a staged run: confident labels from CAMs, and masks after the walk. One photo at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from tagmask.data import Item, tag_vector
from tagmask.label import Inference, Labelled, write_label_files
from tagmask.label.infer import best_labels
from tagmask.methods.common.walk_base import WalkMethod
from tagmask.refine import DenseCRF, label_probabilities
from tagmask.stage_config import CamsStage, MasksStage
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
    """Label files of tagged items by ``write_label_files``: kept where they are there, refused where others made them.

    A photo whose tags say that nothing is in it is background. soft: the tagged classes' scores, too, with the
    background's where ``make`` gives it.
    """

    def one(item: Item, photo: Tensor) -> tuple[Tensor, Tensor | None, list[str]]:
        present = torch.tensor(item.tags, dtype=torch.long)
        if not len(present):
            return torch.zeros(photo.shape[-2:], dtype=torch.uint8), None, []
        places, scores = make(photo, present)
        values = torch.full((256,), IGNORE, dtype=torch.uint8)
        values[: len(present) + 1] = torch.cat([torch.zeros(1), present + 1]).byte()
        background = ["background"] if len(scores) > len(present) else []
        return values[places.cpu().long()], scores, [*background, *(classes[i] for i in present.tolist())]

    return write_label_files(folder, items, classes, one, note, soft=soft, console=console)
