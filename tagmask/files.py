"""Files read and written whole: an error names the file and the way out, and a crash leaves the old file."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tagmask.errors import DataError

WAYS = {
    errno.ENOSPC: "Make room on the disk, or write elsewhere.",
    errno.EDQUOT: "Make room on the disk, or write elsewhere.",
    errno.EROFS: "Write elsewhere: this disk is read-only.",
    errno.EACCES: "Change its permissions, or use another folder.",
    errno.EPERM: "Change its permissions, or use another folder.",
    errno.ENOTDIR: "A file is where a folder is needed: move it, or write elsewhere.",
    errno.EEXIST: "A file is where a folder is needed: move it, or write elsewhere.",
    errno.EISDIR: "A folder is where a file is needed: move it, or write elsewhere.",
    errno.ENAMETOOLONG: "Shorten the name.",
    errno.ELOOP: "Mend the link.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.ENOENT: "Check the path.",
}
"""What a user can do about an error of the system."""
OLD = 3600
"""Seconds after which a temporary file is taken to be left by a process that was killed."""


def of_system(error: OSError, path: str | Path | None = None) -> DataError:
    """The error of the system in one sentence, with file, cause and way out."""
    place = path if path is not None else error.filename2 or error.filename or "A file"
    way = WAYS.get(error.errno or 0, "")
    return DataError(f"{place}: {error.strerror or error}.{' ' if way else ''}{way}")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary file's path beside ``path``. It takes the place of ``path`` at the end, and goes if an error comes.

    Missing folders are made. Raises DataError where the disk is full or refuses.
    """
    part = path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:100])}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise of_system(error, path) from error


def sweep(folder: Path) -> None:
    """Delete the temporary files that killed processes left in a folder, not those in its subfolders."""
    for part in folder.glob(".*.part"):
        try:
            if time.time() - part.stat().st_mtime > OLD:
                part.unlink()
        except OSError:  # another process was quicker, or it is not ours to delete
            continue


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing. What UTF-8 cannot hold (odd bytes of a name) is escaped. Raises DataError."""
    with written(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_json(path: Path, value: Any) -> None:
    """``write_text`` of readable JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a mark. Raises DataError that names it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise of_system(error, path) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from error


def read_json(path: Path) -> Any:
    """A JSON file. Raises DataError when it is missing or broken."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}).") from error
