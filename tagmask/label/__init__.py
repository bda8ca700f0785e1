"""Masks from a trained method: with tags (``label``) and without (``predict``)."""

from tagmask.label.engine import Labelled, describe_missing, label_note, read_missing, write_label_files, write_masks
from tagmask.label.infer import Inference
from tagmask.label.segmenter import Prediction, Segmenter, load

__all__ = [
    "Inference",
    "Labelled",
    "Prediction",
    "Segmenter",
    "describe_missing",
    "label_note",
    "load",
    "read_missing",
    "write_label_files",
    "write_masks",
]
