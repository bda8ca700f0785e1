"""Ctrl-C and SIGTERM: the first one ends the work at a good place, a second one ends the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tagmask.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def on_signal(act: Callable[[int], None]) -> Iterator[None]:
    """While the block runs, the first SIGINT or SIGTERM calls ``act`` with its number; one more kills the process.

    Signals that are ignored stay so. Threads other than the main one get no signals: there the block just runs.
    """

    def handle(number: int, frame: Any) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        act(number)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {s: signal.getsignal(s) for s in SIGNALS if signal.getsignal(s) not in (signal.SIG_IGN, None)}
    for each in before:
        signal.signal(each, handle)
    try:
        yield
    finally:
        for each, old in before.items():
            signal.signal(each, old)


def at_once(number: int) -> None:
    """End the work here."""
    raise Stopped(number)


class Later:
    """Takes a signal, as ``act`` of ``on_signal``, for somebody to look. number: of the signal, 0 for none."""

    def __init__(self) -> None:
        self.number = 0
        self._kept: str | None = None

    def __call__(self, number: int) -> None:
        self.number = number
        if self._kept is not None:
            raise Stopped(number, self._kept)

    @contextmanager
    def interruptible(self, kept: str) -> Iterator[None]:
        """Within the block a signal raises Stopped at once. kept: what is done by then."""
        self._kept = kept
        try:
            if self.number:
                raise Stopped(self.number, kept)
            yield
        finally:
            self._kept = None
