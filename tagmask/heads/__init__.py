"""``Features`` to segmentation logits, and feature maps to class scores. Importing this registers all heads."""

from __future__ import annotations

from tagmask.heads.affinity import AffinityHead
from tagmask.heads.classifier import Classifier
from tagmask.heads.largefov import LargeFOV
from tagmask.heads.segformer import SegFormer

__all__ = ["AffinityHead", "Classifier", "LargeFOV", "SegFormer"]
