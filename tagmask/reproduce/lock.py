"""Locks on the rows of a table, so that several processes and machines can work on one output folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tagmask.errors import ConfigError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system without locks answers; other errors of the system are other faults."""


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """``with held(path) as mine:`` the lock of a row, for as long as the block runs; False where another has it.

    It is the operating system's lock on the file ``path``, and goes with its process, however that ends. wait: until
    it is free, instead of False. Raises ConfigError where the file system has no locks.
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
        raise ConfigError(
            f"{path}: this file system has no locks ({error}), which keep processes from working on one row. Write to "
            "another one (--out)."
        ) from error
    try:
        yield True
    finally:
        lock.release()
