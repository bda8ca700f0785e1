"""Scores of label maps, CAMs, image tags and boxes, each with a stamp that says how it was made."""

from __future__ import annotations

from tagmask.evaluate.bootstrap import bootstrap_miou
from tagmask.evaluate.boundary import BoundaryIoU
from tagmask.evaluate.by_value import AccuracyByValue
from tagmask.evaluate.confusion import ConfusionMatrix, LabelError
from tagmask.evaluate.curve import ThresholdCurve
from tagmask.evaluate.localization import Localization
from tagmask.evaluate.ranking import average_precision, chance_precision
from tagmask.evaluate.scores import ScoreStream, print_classes, print_scores
from tagmask.evaluate.stamp import difference

__all__ = [
    "AccuracyByValue",
    "BoundaryIoU",
    "ConfusionMatrix",
    "LabelError",
    "Localization",
    "ScoreStream",
    "ThresholdCurve",
    "average_precision",
    "bootstrap_miou",
    "chance_precision",
    "difference",
    "print_classes",
    "print_scores",
]
