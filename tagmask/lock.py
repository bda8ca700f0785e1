"""Locks: a run folder and a table's row are worked on by one process at a time. They go with their process."""

from __future__ import annotations

import errno
import os
import shlex
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tagmask.errors import ConfigError, DataError
from tagmask.files import of_system, read_json, write_json

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system without locks answers; other errors of the system are other faults."""
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
"""Variables in which torchrun, Fabric and SLURM number the processes that they start."""
OURS: set[Path] = set()
"""Run folders that this process works on."""


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """``with held(path) as mine:`` the lock on the file ``path``, for as long as the block runs; False where another
    has it.

    It is the operating system's lock, and goes with its process, however that ends. wait: until it is free, instead of
    False. Raises ConfigError where the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would stay when its process is killed
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise NoLocks(
            f"{path}: this file system has no locks ({error}), which keep processes from working on the same files. "
            "Write to another one (--out)."
        ) from error
    try:
        yield True
    finally:
        lock.release()


class NoLocks(ConfigError):
    """The file system has no locks."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else works on the run folder while the block runs; this process may ask again within it.

    Raises ConfigError that says who works on it, and DataError where the disk refuses. Of processes that are launched
    together the first one holds the folder for all. Where there are no locks a warning says so.
    """
    place = folder.resolve()
    if place in OURS or not first():
        yield
        return
    path, note, there = place / ".lock", place / ".lock.json", place.exists()
    with ExitStack() as stack:
        try:
            if not stack.enter_context(held(path)):
                raise ConfigError(f"{folder}: {_who(note)} Wait until it ends, or use another folder (--out).")
        except NoLocks as error:
            warnings.warn(f"{error} Nothing keeps a second process from {folder}.", stacklevel=3)
            yield
            return
        except OSError as error:
            raise of_system(error, folder) from error
        OURS.add(place)
        try:
            about = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now(), "command": _command()}
            write_json(note, about)
            yield
        finally:
            OURS.discard(place)
            with suppress(OSError):
                note.unlink(missing_ok=True)
                path.unlink(missing_ok=True)  # whoever waits for this very file sees that it is gone, and asks again
                if not there:
                    place.rmdir()  # where nothing was made


def first() -> bool:
    """Whether this process is the first of those that were launched together, or the only one."""
    return all(os.environ.get(name, "") in ("", "0") for name in RANKS)


def _who(note: Path) -> str:
    try:
        who = read_json(note)
        return f"'{who['command']}' (process {who['pid']} on {who['host']}) works on it since {who['since']}."
    except (DataError, KeyError, TypeError):  # it has only just begun
        return "another process works on it."


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _command() -> str:
    program = Path(sys.argv[0])  # of 'python -m tagmask' it is tagmask/__main__.py
    return shlex.join([program.parent.name if program.name == "__main__.py" else program.name, *sys.argv[1:]])
