"""Masks from a trained method: with tags (``label``) and without (``predict``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tagmask.label.writer import Labelled, LabelWriter, describe_missing, read_missing
from tagmask.lazy import lazy

if TYPE_CHECKING:
    from tagmask.label.infer import Inference
    from tagmask.label.look import Look, go_over
    from tagmask.label.mask import Mask, Prediction
    from tagmask.label.segmenter import Segmenter, load

__all__ = [
    "Inference",
    "LabelWriter",
    "Labelled",
    "Look",
    "Mask",
    "Prediction",
    "Segmenter",
    "describe_missing",
    "go_over",
    "load",
    "read_missing",
]

__getattr__ = lazy(
    __name__,
    {
        "infer": ["Inference"],
        "look": ["Look", "go_over"],
        "mask": ["Mask", "Prediction"],
        "segmenter": ["Segmenter", "load"],
    },
)
