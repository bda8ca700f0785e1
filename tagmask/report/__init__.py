"""The report of a run, and pictures of label maps and activations."""

from __future__ import annotations

from tagmask.report.overlay import heat, overlay
from tagmask.report.page import Panel, write_report

__all__ = ["Panel", "heat", "overlay", "write_report"]
