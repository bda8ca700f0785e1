"""The report of a run."""

from __future__ import annotations

from tagmask.report.page import Panel, write_report

__all__ = ["Panel", "write_report"]
