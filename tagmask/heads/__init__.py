"""``Features`` to segmentation logits, and feature maps to class scores. Importing this registers all heads."""

from __future__ import annotations

from tagmask.heads.affinity import AffinityHead
from tagmask.heads.aspp import ASPP
from tagmask.heads.classifier import Classifier
from tagmask.heads.compact import Compact
from tagmask.heads.largefov import LargeFOV
from tagmask.heads.segformer import SegFormer
from tagmask.heads.upernet import UPerNet

__all__ = ["ASPP", "AffinityHead", "Classifier", "Compact", "LargeFOV", "SegFormer", "UPerNet"]
