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
from typing import Any

from filelock import FileLock, Timeout

from tagmask.errors import ConfigError, DataError
from tagmask.files import of_system, read_json, write_json

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system without locks answers; other errors of the system are other faults."""
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
"""Variables in which torchrun, Fabric and SLURM number the processes that they start."""
_leads = False
OURS: list[Path] = []
"""Folders that this process works on, in the order in which it took them."""


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """``with held(path) as mine:`` the lock on the file ``path``, for as long as the block runs; False where another
    has it.

    It is the operating system's lock, and goes with its process, however that ends. wait: until it is free, instead of
    False. Raises ConfigError where the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock would stay when its process is killed. One thread may take a lock and another let it go.
    lock = FileLock(path, fallback_to_soft=False, thread_local=False)
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


class Taken(ConfigError):
    """Another process works on the folder. work: what at, as it was given to ``alone``; None where nobody knows."""

    def __init__(self, text: str, work: Any = None) -> None:
        super().__init__(text)
        self.work = work


@contextmanager
def alone(folder: Path, work: Any = None) -> Iterator[None]:
    """Nobody else works on the folder while the block runs; this process may ask again within it.

    Raises Taken, which says who works on it, and DataError where the disk refuses. work: what is done, as JSON, for
    others that could help; without it the first one of processes that are launched together holds the folder for all.
    Where there are no locks a warning says so.
    """
    place = folder.resolve()
    if place in OURS or work is None and not first():
        yield
        return
    path, note, there = place / ".lock", place / ".lock.json", place.exists()
    with ExitStack() as stack:
        try:
            if not stack.enter_context(held(path)):
                who, theirs = _who(note)
                raise Taken(f"{folder}: {who} Wait until it ends, or use another folder (--out).", theirs)
        except NoLocks as error:
            warnings.warn(f"{error} Nothing keeps a second process from {folder}.", stacklevel=3)
            yield
            return
        except OSError as error:
            raise of_system(error, folder) from error
        OURS.append(place)
        try:
            about = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now(), "command": _command()}
            write_json(note, about | {"work": work})
            yield
        finally:
            OURS.remove(place)
            with suppress(OSError):
                note.unlink(missing_ok=True)
                path.unlink(missing_ok=True)  # whoever waits for this very file sees that it is gone, and asks again
                if not there:
                    place.rmdir()  # where nothing was made


def left(folder: Path) -> bool | None:
    """Whether the process that held a folder is through with it: None while it works, False where it was killed."""
    place = folder.resolve()
    if not place.is_dir():
        return True
    with held(place / ".lock") as mine:
        if not mine:
            return None
        (place / ".lock").unlink(missing_ok=True)
        return not (place / ".lock.json").exists()


def first() -> bool:
    """Whether this process is the first of those that were launched together, or the only one."""
    return all(os.environ.get(name, "") in ("", "0") for name in RANKS)


def speak() -> None:
    """From now on this process speaks, whatever its number: it leads the others."""
    global _leads
    _leads = True


def speaks() -> bool:
    """Whether this process prints what people read: of those that are launched together, one does."""
    return _leads or first()


def launch() -> str | None:
    """Which launch of several processes this one belongs to; None where it was started alone."""
    env = os.environ
    if int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in env:
        return f"{env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}"
    if int(env.get("WORLD_SIZE", 1)) > 1 and "TORCHELASTIC_RUN_ID" in env:
        name = env["TORCHELASTIC_RUN_ID"]  # 'none' where the user named none
        return f"{socket.gethostname()}.{os.getppid()}" if name == "none" else f"{name}.{env.get('MASTER_PORT')}"
    return None


def _who(note: Path) -> tuple[str, Any]:
    try:
        who = read_json(note)
        text = f"'{who['command']}' (process {who['pid']} on {who['host']}) works on it since {who['since']}."
        return text, who["work"]
    except (DataError, KeyError, TypeError):  # it has only just begun
        return "another process works on it.", None


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _command() -> str:
    program = Path(sys.argv[0])  # of 'python -m tagmask' it is tagmask/__main__.py
    return shlex.join([program.parent.name if program.name == "__main__.py" else program.name, *sys.argv[1:]])
