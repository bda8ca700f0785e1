"""Locks on the rows of a table, so that several processes and machines can work on one output folder."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, SoftFileLock, Timeout

from tagmask.errors import ConfigError

BEAT = 20.0
"""Seconds between two signs of life in a lock's note."""
SILENCE = 120.0
"""Seconds without a sign of life after which a process of another machine is taken for dead."""
SETTLE = 1.0
"""Seconds after which a new note is read again: who wrote it at the same time on another machine is seen by then."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system without locks answers; other errors of the system are other faults."""


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """``with held(path) as mine:`` the lock of a row, for as long as the block runs; False where another has it.

    The operating system's lock on the file ``path``.lock decides: it goes with its process, however that ends. On file
    systems where locks do not reach other machines the file ``path``, a note, tells: a holder on another machine renews
    it every 20 seconds, and counts as alive for two minutes. wait: until it is free, instead of False. Raises
    ConfigError where the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    note = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
    while not _take(path, lock, note):
        if not wait:
            yield False
            return
        time.sleep(0.1)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        # A process that slept for minutes may have been taken for dead: the note is another's then.
        if _read(path) == note:
            with suppress(OSError):
                path.write_text("", encoding="utf-8")
        lock.release()


def holder(path: Path) -> str:
    """Who has a lock, or had it last when it was killed, as 'host, process 12'; '' for nobody."""
    note = _read(path)
    return f"{note['host']}, process {note['pid']}" if note else ""


def sign_of_life(path: Path) -> float | None:
    """When a process of another machine last renewed its note on a lock, in seconds since 1970; None without one."""
    note = _read(path)
    with suppress(OSError):
        if note and note["host"] != socket.gethostname():
            return path.stat().st_mtime
    return None


def _take(path: Path, lock: Any, note: dict[str, Any]) -> bool:
    """Whether the lock is ours now: the operating system's, and the note, which is then in the file."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        raise _no_locks(path, str(error)) from error
    if isinstance(lock, SoftFileLock):
        # filelock's way out where there are no locks: a file that stays when its process is killed.
        lock.release()
        raise _no_locks(path, "flock is missing")
    try:
        mine = _write(path, note)
    except BaseException:
        lock.release()
        raise
    if not mine:
        lock.release()
    return mine


def _write(path: Path, note: dict[str, Any]) -> bool:
    """Write the note unless another machine's is alive; False where there is one, or came at the same time."""
    seen = sign_of_life(path)
    if seen is not None and time.time() - seen < SILENCE:
        return False
    path.write_text(json.dumps(note), encoding="utf-8")
    time.sleep(SETTLE)
    return _read(path) == note


def _no_locks(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path}: this file system has no locks ({why}), which keep processes from working on one row. Write to "
        "another one (--out)."
    )


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with suppress(OSError):  # a file system that is away for a moment must not end the signs of life
            os.utime(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nobody's, or just being written
        return {}
