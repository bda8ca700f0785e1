"""Locks on the rows of a table, so that several processes and machines can work on one output folder."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tagmask.errors import ConfigError

BEAT = 20.0
"""Seconds between two signs of life in a lock's file."""
SILENCE = 120.0
"""Seconds without a sign of life after which a process of another machine is taken for dead."""


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """``with held(path) as mine:`` the lock of a row, for as long as the block runs; False where another has it.

    The operating system's lock on the file ``path``.lock decides: it goes with its process, however that ends. On file
    systems where locks do not reach other machines the file ``path`` tells: a holder on another machine renews it every
    20 seconds, and counts as alive for two minutes. wait: until it is free, instead of False. Raises ConfigError where
    the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    while not _take(path, lock):
        if not wait:
            yield False
            return
        time.sleep(0.1)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    try:
        path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}), encoding="utf-8")
        beat.start()
        yield True
    finally:
        stop.set()
        if beat.ident is not None:
            beat.join()
        path.write_text("", encoding="utf-8")
        lock.release()


def holder(path: Path) -> str:
    """Who has a lock, or had it last when it was killed, as 'host, process 12'; '' for nobody."""
    note = _read(path)
    return f"{note['host']}, process {note['pid']}" if note else ""


def _take(path: Path, lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        raise ConfigError(
            f"{path}: this file system has no locks ({error}), which keep processes from working on one row. Write to "
            "another one (--out)."
        ) from error
    note = _read(path)
    if note and note["host"] != socket.gethostname() and time.time() - path.stat().st_mtime < SILENCE:
        lock.release()
        return False
    return True


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        os.utime(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nobody's, or just being written
        return {}
