"""The verbs as functions: what the command line and the Python interface call."""

from __future__ import annotations

from tagmask.registry import METHODS
from tagmask.workflow.labels_of import labels_of
from tagmask.workflow.pipeline import demo, run
from tagmask.workflow.report_run import report
from tagmask.workflow.runs import open_run, prepare, reopen
from tagmask.workflow.score_run import evaluate
from tagmask.workflow.staged_run import staged_run
from tagmask.workflow.stages import run_stages
from tagmask.workflow.train_run import resumed, train, training_items
from tagmask.workflow.use_run import label, predict


def list_methods(pattern: str = "*") -> list[str]:
    """Names of the methods that match a shell wildcard."""
    return METHODS.names(pattern)


__all__ = [
    "demo",
    "evaluate",
    "label",
    "labels_of",
    "list_methods",
    "open_run",
    "predict",
    "prepare",
    "reopen",
    "report",
    "resumed",
    "run",
    "run_stages",
    "staged_run",
    "train",
    "training_items",
]
