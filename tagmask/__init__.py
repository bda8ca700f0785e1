"""tagmask: from image tags to pixel masks.

``tagmask.run(photos, tags)``, ``tagmask.open_run(path)``, ``tagmask.train(config, out)``,
``tagmask.load(run).predict(photo)``, ``tagmask.list_methods()`` and ``tagmask.list_encoders(pattern)`` are the Python
interface; the command line calls the same. Operators can be imported alone: ``tagmask.refine``, ``tagmask.cam``,
``tagmask.losses``, ``tagmask.evaluate``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tagmask.config import load_config
    from tagmask.encoders import list_encoders
    from tagmask.label import load
    from tagmask.workflow import list_methods
    from tagmask.workflow.result import open_run, run
    from tagmask.workflow.train import train

__all__ = ["list_encoders", "list_methods", "load", "load_config", "open_run", "run", "train"]

_HOMES = {
    "list_encoders": "tagmask.encoders",
    "list_methods": "tagmask.workflow",
    "load": "tagmask.label",
    "load_config": "tagmask.config",
    "open_run": "tagmask.workflow.result",
    "run": "tagmask.workflow.result",
    "train": "tagmask.workflow",
}


def __getattr__(name: str) -> Any:
    """Import on first use: ``import tagmask`` alone does not load torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tagmask' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
