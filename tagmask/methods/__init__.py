"""Methods: one paper a file. Every module of this folder is imported, so a new file registers itself."""

from __future__ import annotations

import importlib
import pkgutil

from tagmask.errors import ConfigError
from tagmask.methods.base import Method, build_method
from tagmask.registry import METHODS

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def default_method(stage: str) -> str:
    """Name of the method that 'classifier', 'affinity' or 'segmenter' has where none is named (``default_for``).

    Raises ConfigError where not exactly one method is the default.
    """
    names = [name for name in METHODS.names() if METHODS.get(name).default_for == stage]
    if len(names) != 1:
        found = " and ".join(names) or "no method"
        raise ConfigError(f"Stage '{stage}': {found} declares default_for='{stage}'; exactly one method does.")
    return names[0]


__all__ = ["Method", "build_method", "default_method"]
