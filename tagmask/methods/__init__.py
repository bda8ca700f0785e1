"""Methods: one paper a file. Every module of this folder is imported, so a new file registers itself."""

from __future__ import annotations

import importlib
import pkgutil

from tagmask.methods.base import Method, build_method
from tagmask.registry import METHODS

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def default_method(stage: str) -> str:
    """Name of the method that a stage trains where none is named: 'classifier', 'affinity' or 'segmenter'."""
    return next(name for name in METHODS.names() if vars(METHODS.get(name)).get("default_for") == stage)


__all__ = ["Method", "build_method", "default_method"]
