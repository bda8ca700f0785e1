"""``supervised``: a segmenter trained on masks, true ones or those that another run made.

The fully supervised twin that weak methods are measured against, and the last stage of every staged method.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch.nn import functional as F

from tagmask import comm
from tagmask.config import ShortSchedule
from tagmask.encoders import Encoder
from tagmask.errors import TrainingError
from tagmask.losses import balanced_cross_entropy
from tagmask.methods.base import SegmenterConfig, SegmenterMethod, build_head
from tagmask.registry import METHODS
from tagmask.strict import Few
from tagmask.tensors import full, resize
from tagmask.types import IGNORE, Batch, Losses


class SupervisedConfig(SegmenterConfig):
    """Settings of ``supervised``."""

    name: Literal["supervised"] = "supervised"
    loss_stride: Few = Field(1, description="the loss is taken on a grid that is so many times coarser than the crop")
    balanced: bool = Field(False, description="background and foreground are halves of the loss")

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """A head with group norm and few channels."""
        return super().short_schedule(schedule) | {
            "method.head": ("compact", "group norm and few channels, which learn fast"),
            "method.loss_stride": (2, "half the crop's grid says as much"),
        }


@METHODS.register("supervised")
class Supervised(SegmenterMethod):
    """Encoder and segmentation head, pixel-wise cross-entropy."""

    config_class = SupervisedConfig
    config: SupervisedConfig
    reads_masks = True
    default_for = "segmenter"

    def __init__(self, config: SupervisedConfig, encoder: Encoder, classes: int) -> None:
        super().__init__(config, encoder, classes)
        self.decoder = build_head(config.head, encoder, classes + 1, config.head_options)

    def losses(self, batch: Batch, step: int) -> Losses:
        """seg: mean cross-entropy over labelled pixels, or ``balanced``; 0 for a batch that has none."""
        if batch.masks is None:
            raise TrainingError("Method 'supervised' needs masks; set data.masks to their folder.")
        height, width = batch.masks.shape[-2:]
        grid = (max(1, height // self.config.loss_stride), max(1, width // self.config.loss_stride))
        logits = resize(full(self.decoder(self.encoder(batch.images))), grid)
        labels = F.interpolate(batch.masks[:, None].float(), size=grid, mode="nearest-exact")[:, 0].long()
        if self.config.balanced:
            seg = balanced_cross_entropy(logits, labels)
        else:
            count = comm.share((labels != IGNORE).sum())
            seg = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / count
        return Losses({"seg": seg}, seg)
