"""``class_transfer``: CAMs of the classes that a network was pretrained on, matched to the tags. tagmask's own method.

A network that was trained on ImageNet knows 1,000 classes of objects, and its CAMs of these show the objects, as no tag
of the user's photos has taught it the ground that they stand on. The photos' tags say which of them a tag is made of.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tagmask import comm
from tagmask.cam.class_association import association, row_shares
from tagmask.config import ShortSchedule
from tagmask.encoders import Encoder
from tagmask.heads import Classifier
from tagmask.methods.base import CAM_SCALES, ClassifierConfig, ClassifierMethod
from tagmask.registry import METHODS
from tagmask.strict import Positive, Scales, Share
from tagmask.tensors import full
from tagmask.types import Batch, Losses


class ClassTransferConfig(ClassifierConfig):
    """Settings of ``class_transfer``."""

    name: Literal["class_transfer"] = "class_transfer"
    cam_scales: Scales = Field([1.0, 1.5], description=CAM_SCALES)
    photo: Share = Field(0.5, description="power of the photo's own probabilities in the weights of its classes")
    places: bool = Field(False, description="whether objects may be made of ImageNet's natural places, too")
    weight_cls: Positive = Field(1.0, description="of classification")

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """A sixth of the steps, as the network is not trained, and photos at the size that it was pretrained on."""
        steps = max(20, min(600, schedule.steps // 6))
        scales = sorted({min(4.0, round(side / schedule.short, 2)) for side in (224, 336)})
        return super().short_schedule(schedule) | {
            "encoder.output_stride": (32, "as the network was pretrained"),
            "train.steps": (steps, "to count what the network sees; it stays as it is"),
            "train.warmup": (min(steps, schedule.steps) // 20, "a twentieth of the steps"),
            "train.ema": (None, "so few steps are not averaged"),
            "label.cam_scales": (scales, "about the size of the photos that the network was pretrained on"),
            "label.threshold": (0.25, "background score that suits these CAMs"),
        }


@METHODS.register("class_transfer")
class ClassTransfer(ClassifierMethod):
    """A frozen network with its pretrained classes; tags are sums of them.

    Training counts which pretrained classes S the network sees in the photos of each tag C (``seen``, ``photos``), and
    learns a linear classifier of tags on their logits, for class scores. CAMs come from the counts alone: a tag is made
    of the classes that are more probable in photos with it than in photos without it (``association``).
    """

    config_class = ClassTransferConfig
    config: ClassTransferConfig
    default_for = "transfer"
    reads_classes = True
    seen: Tensor
    photos: Tensor

    def __init__(self, config: ClassTransferConfig, encoder: Encoder, classes: int) -> None:
        super().__init__(config, encoder, classes)
        encoder.freeze()
        self.classifier = Classifier(encoder.channels[-1], classes, pooling="avg")
        # The last row is of all photos, whatever their tags.
        self.register_buffer("seen", torch.zeros(classes + 1, encoder.channels[-1]))
        self.register_buffer("photos", torch.zeros(classes + 1))

    def losses(self, batch: Batch, step: int) -> Losses:
        """cls: of the linear classifier."""
        with torch.no_grad():
            logits = full(self.encoder(batch.images).maps[-1])
            rows = torch.cat([batch.tags, torch.ones_like(batch.tags[:, :1])], 1).to(logits)
            shown = logits.mean((-2, -1)).softmax(1)
            with torch.autocast(logits.device.type, enabled=False):
                self.seen += comm.all_sum(rows.T @ shown)
            self.photos += comm.all_sum(rows.sum(0))
        return self.weighted({"cls": self.tag_loss(self.classifier(logits), batch.tags)})

    def cam_maps(self, images: Tensor) -> Tensor:
        """(B,C,h,w): the classes' logits over their mean, weighted by ``association`` and what the photo shows."""
        logits = full(self.encoder(images).maps[-1])
        shown = logits.mean((-2, -1)).softmax(1).pow(self.config.photo)
        weights = row_shares(association(self.seen, self.photos, self.config.places) * shown[:, None])
        with torch.autocast(logits.device.type, enabled=False):
            return torch.einsum("bcs,bshw->bchw", weights, logits - logits.mean(1, keepdim=True))
