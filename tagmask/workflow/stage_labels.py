"""Label files of a staged run: confident labels from CAMs, and masks after the walk. One photo at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tagmask.data import Item, read_mask
from tagmask.label import Inference, Look
from tagmask.label.infer import best_labels, times, values_in
from tagmask.label.writer import Make
from tagmask.methods.common.walk_base import WalkMethod
from tagmask.refine import DenseCRF, label_probabilities
from tagmask.stage_config import CamsStage, MasksStage
from tagmask.types import IGNORE

MakePlaces = Callable[[Look, Tensor], "tuple[Tensor, Tensor]"]
"""A photo's Look and the indices of its K ≥ 1 classes → label map uint8 (H,W) whose values 1..K are places in
that list, and the scores (n,h,w) to save where soft maps are asked for."""


class ConfidentLabels:
    """Labels to learn affinities from: made twice, against much and against little background.

    A pixel is of a class where that class wins against much background (``high``, or (1 − strongest CAM)^power_high),
    background where that wins although there is little of it, and 255 otherwise; also where the two contradict each
    other, which only a CRF can bring about. AffinityNet (CVPR 2018), section 3.2; IRN (CVPR 2019), section 4.1.
    """

    def __init__(self, stage: CamsStage) -> None:
        self.stage = stage
        self.crf = None if stage.crf == "none" else DenseCRF.preset(stage.crf)

    def __call__(self, look: Look, present: Tensor) -> tuple[Tensor, Tensor]:
        cams, images = present_cams(look, present)
        stage, rest = self.stage, (1 - cams.amax(0, keepdim=True)).clamp(min=0)
        if stage.rule == "power":
            much, little = rest.pow(stage.power_high), rest.pow(stage.power_low)
        else:
            much, little = torch.full_like(rest, stage.high), torch.full_like(rest, stage.low)
        much, little = (times(score, look.background_factor).clamp(max=1) for score in (much, little))
        strict, lenient = self._labelling(images, cams, much), self._labelling(images, cams, little)
        labels = torch.full_like(strict, IGNORE)
        labels = torch.where((strict > 0) & (lenient > 0), strict, labels)
        labels = labels.masked_fill((strict == 0) & (lenient == 0), 0).byte()
        return F.interpolate(labels[None, None], size=look.photo.shape[-2:], mode="nearest-exact")[0, 0], cams

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
    """Masks from CAMs that walk over a network's affinities; without such a network they are refined."""

    def __init__(self, inference: Inference, stage: MasksStage, walker: WalkMethod | None) -> None:
        self.inference, self.walker = inference, walker
        self.crf = None if stage.crf == "none" else DenseCRF.preset(stage.crf)

    @torch.inference_mode()
    def __call__(self, look: Look, present: Tensor) -> tuple[Tensor, Tensor]:
        if look.inference is not self.inference:  # another background score than that of the run's own masks
            look = look.under(self.inference)
        if self.walker is None:
            scores = look.refined[[0, *(present + 1).tolist()]]
            images = self.inference.batch(look.photo, self.inference.config.max_side)
        else:
            cams, images = present_cams(look, present)
            with self.inference.running():
                scores = self.walker.propagate(images, cams).float()
            scores = torch.cat([times(scores[:1], look.background_factor), scores[1:]])
        if self.crf is not None:
            probs = scores.clamp(min=0) / scores.clamp(min=0).sum(0).clamp(min=1e-8)
            scores = self.crf((images * 255).round().byte(), probs[None])[0]
        return best_labels(scores, look.photo), scores


def present_cams(look: Look, present: Tensor) -> tuple[Tensor, Tensor]:
    """(K,h,w) CAMs of a photo's classes and the image (1,3,h,w) on the same grid."""
    inference = look.inference
    return look.cams[present.to(inference.device)], inference.batch(look.photo, inference.config.max_side)


def kept_classes(make: Make, before: Path) -> Make:
    """``make``, but a tagged class that is nowhere in a photo's labels keeps its pixels in the label files ``before``.

    It gets those that are background or unsure now. A photo without such a file stays as it is.
    """

    def one(item: Item, look: Look) -> tuple[Tensor, Tensor | None, Sequence[str]]:
        labels, scores, names = make(item, look)
        lacking = {tag + 1 for tag in item.tags or ()} - values_in(labels)
        file = before / f"{item.id}.png"
        if not lacking or not file.is_file():
            return labels, scores, names
        old = read_mask(file, look.inference.method.classes).to(labels)
        taken = torch.isin(old, torch.tensor(sorted(lacking)).to(labels)) & ((labels == 0) | (labels == IGNORE))
        return torch.where(taken, old, labels), scores, names

    return one


def of_tagged(make: MakePlaces, classes: Sequence[str]) -> Make:
    """``make`` as a ``LabelWriter`` takes it. A photo whose tags say that nothing is in it is background.

    Soft maps are the tagged classes' scores, with the background's where ``make`` gives it.
    """

    def one(item: Item, look: Look) -> tuple[Tensor, Tensor | None, list[str]]:
        present = torch.tensor(item.tags, dtype=torch.long)
        if not len(present):
            return torch.zeros(look.photo.shape[-2:], dtype=torch.uint8), None, []
        places, scores = make(look, present)
        values = torch.full((256,), IGNORE, dtype=torch.uint8)
        values[: len(present) + 1] = torch.cat([torch.zeros(1), present + 1]).byte()
        background = ["background"] if len(scores) > len(present) else []
        return values[places.cpu().long()], scores, [*background, *(classes[i] for i in present.tolist())]

    return one
