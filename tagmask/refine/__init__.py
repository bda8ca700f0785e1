"""Refinement of maps by the image: PAR, PAMR, VARM."""

from __future__ import annotations

from tagmask.refine.neighbours import LocalRefiner
from tagmask.refine.pamr import PAMR
from tagmask.refine.par import PAR
from tagmask.refine.varm import VARM

__all__ = ["PAMR", "PAR", "VARM", "LocalRefiner"]
