"""Methods: one paper a file. Every module of this folder is imported, so a new file registers itself."""

from __future__ import annotations

import importlib
import pkgutil

from tagmask.methods.base import Method, build_method

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Method", "build_method"]
