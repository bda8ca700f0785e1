"""Scores of label maps, CAMs, image tags and boxes, each with the protocol that it was made by."""

from __future__ import annotations

from tagmask.evaluate.bootstrap import bootstrap_miou
from tagmask.evaluate.boundary import BoundaryIoU
from tagmask.evaluate.confusion import ConfusionMatrix, LabelError
from tagmask.evaluate.curve import ThresholdCurve
from tagmask.evaluate.localization import Localization, localization
from tagmask.evaluate.protocol import THRESHOLD_SOURCES, Protocol
from tagmask.evaluate.ranking import average_precision, mean_average_precision
from tagmask.evaluate.scores import ScoreStream, jsonable, print_classes, print_scores, score

__all__ = [
    "THRESHOLD_SOURCES",
    "BoundaryIoU",
    "ConfusionMatrix",
    "LabelError",
    "Localization",
    "Protocol",
    "ScoreStream",
    "ThresholdCurve",
    "average_precision",
    "bootstrap_miou",
    "jsonable",
    "localization",
    "mean_average_precision",
    "print_classes",
    "print_scores",
    "score",
]
