"""``supervised``: a segmenter trained on masks, true ones or those that another run made.

The fully supervised twin that weak methods are measured against, and the last stage of every staged method.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch.nn import functional as F

from tagmask.encoders import Encoder
from tagmask.errors import TrainingError
from tagmask.losses import balanced_cross_entropy
from tagmask.methods.base import SegmenterConfig, SegmenterMethod, build_head
from tagmask.registry import METHODS
from tagmask.types import IGNORE, Batch, Losses


class SupervisedConfig(SegmenterConfig):
    """Settings of ``supervised``."""

    name: Literal["supervised"] = "supervised"
    balanced: bool = Field(False, description="background and foreground are halves of the loss")


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
        logits = self.segment(batch.images)
        labels = batch.masks.long()
        if self.config.balanced:
            seg = balanced_cross_entropy(logits, labels)
        else:
            count = (labels != IGNORE).sum().clamp(min=1)
            seg = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / count
        return Losses({"seg": seg}, seg)
