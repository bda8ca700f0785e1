"""Worker processes that do not outlive the process that started them."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import parent_process


def end_with_parent() -> None:
    """Let this worker end when the process that started it does, by whatever signal. Called first in the worker.

    Ctrl-C, which reaches all processes of a terminal, is left to the parent: it stops the workers after their part.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
