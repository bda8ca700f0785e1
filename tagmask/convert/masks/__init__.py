"""Masks to the files of other tools, and back: one format a file, each with ``write`` and ``read``."""

from __future__ import annotations

from tagmask.convert.masks.exchange import FORMATS, masks_from, masks_to

__all__ = ["FORMATS", "masks_from", "masks_to"]
