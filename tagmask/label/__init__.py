"""Masks from a trained method: with tags (``label``) and without (``predict``)."""

from tagmask.label.infer import Inference
from tagmask.label.look import Look, go_over
from tagmask.label.segmenter import Prediction, Segmenter, load
from tagmask.label.writer import Labelled, LabelWriter, describe_missing, read_missing

__all__ = [
    "Inference",
    "LabelWriter",
    "Labelled",
    "Look",
    "Prediction",
    "Segmenter",
    "describe_missing",
    "go_over",
    "load",
    "read_missing",
]
