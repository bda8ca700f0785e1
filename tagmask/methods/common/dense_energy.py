"""The dense energy regulariser as methods use it (AFA, TSCD, CoSA)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from tagmask.cam.maps import resize
from tagmask.config import Strict
from tagmask.losses.dense_energy import DenseEnergy
from tagmask.strict import Factor, Positive
from tagmask.types import Batch


class EnergyConfig(Strict):
    """Settings of ``tagmask.losses.DenseEnergy``; the defaults are those of the AFA family."""

    weight: Factor = Field(1e-7, description="factor of the energy, which weight_reg multiplies again")
    sigma_rgb: Positive = Field(15.0, description="of colours of 0 to 255")
    sigma_xy: Positive = Field(100.0, description="pixels of the batch's images")
    scale: float = Field(0.5, gt=0, le=1, description="of the grid that it is computed on")
    gradient: Literal["exact", "release"] = Field("exact", description="release: as the released codes have it")


def dense_energy(config: EnergyConfig, batch: Batch, logits: Tensor, labels: Tensor) -> Tensor:
    """Dense energy of the segmentation logits (B,C+1,h,w) on the images; full weight where labels (B,H,W) are 255.

    The logits go to the energy's own grid before the softmax, where the release takes probabilities to the images' size
    and back: a softmax of means for means of softmaxes, nearly the same values for a fraction of the pixels.
    """
    height, width = batch.images.shape[-2:]
    size = (max(1, int(height * config.scale)), max(1, int(width * config.scale)))
    probabilities = resize(logits.float(), size).softmax(1)
    return DenseEnergy(**config.model_dump())(batch.images, probabilities, batch.boxes, labels)
