"""The verbs as functions: what the command line and the Python interface call. One file a verb."""

from __future__ import annotations

from tagmask.registry import METHODS
from tagmask.workflow.analyse import analyse
from tagmask.workflow.check import check
from tagmask.workflow.compare import compare
from tagmask.workflow.evaluate import evaluate
from tagmask.workflow.label import label, labels_of
from tagmask.workflow.opened import Run, opened
from tagmask.workflow.predict import predict
from tagmask.workflow.report import report
from tagmask.workflow.reviewed import corrected_masks, gain, import_masks, print_gain, reviewed_settings
from tagmask.workflow.run import demo, run
from tagmask.workflow.suggest import suggest
from tagmask.workflow.train import resumed, train


def list_methods(pattern: str = "*") -> list[str]:
    """Names of the methods that match a shell wildcard."""
    return METHODS.names(pattern)


__all__ = [
    "Run",
    "analyse",
    "check",
    "compare",
    "corrected_masks",
    "demo",
    "evaluate",
    "gain",
    "import_masks",
    "label",
    "labels_of",
    "list_methods",
    "opened",
    "predict",
    "print_gain",
    "report",
    "resumed",
    "reviewed_settings",
    "run",
    "suggest",
    "train",
]
