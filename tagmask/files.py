"""Files read and written whole: an error names the file and the way out, and a crash leaves the old file."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import socket
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    place = path if path is not None else error.filename2 or error.filename or "Input or output"
    way = WAYS.get(error.errno or 0, "")
    return DataError(f"{place}: {error.strerror or error}.{' ' if way else ''}{way}")


def cache_folder() -> Path:
    """Where this user's caches lie. What is in there may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tagmask"


def check_regular(path: str | Path) -> None:
    """Raise DataError for a folder, a pipe or a device, which may never end, and where the system refuses."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise of_system(error, path) from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: no file, but a folder, a pipe or a device. Give a file, or remove it.")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary file's path beside ``path``. It takes the place of ``path`` at the end, and goes if an error comes.

    Links are followed, and pipes and devices such as /dev/null are written to as they are. Missing folders are made.
    Raises DataError where the disk is full or refuses.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    # Short, as names may be as long as the file system allows. Processes of two machines may have one number.
    name, host = (zlib.crc32(os.fsencode(text)) for text in (path.name, socket.gethostname()))
    part = path.with_name(f".{name:08x}.{os.getpid()}-{host:08x}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.touch()
            mode = part.stat().st_mode
            yield part
            if part.stat().st_mode != mode:  # some libraries write files that only their owner may read
                part.chmod(mode)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise of_system(error, path) from error


def sweep(folder: Path, older: float = OLD) -> None:
    """Delete the temporary files that killed processes left in a folder, not those in its subfolders.

    older: seconds; 0 where nobody else writes.
    """
    for part in folder.glob(".????????.*.part"):
        try:
            if time.time() - part.stat().st_mtime >= older:
                part.unlink()
        except OSError:  # another process was quicker, or it is not ours to delete
            continue


FORMULA = re.compile(r"^'*[=+\-@\t]")
"""A cell that spreadsheets may take for a formula, with apostrophes that stand before it."""


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Rows as CSV. An apostrophe goes before a cell that a spreadsheet would take for a formula."""
    text = io.StringIO(newline="")
    safe = ([f"'{cell}" if FORMULA.match(cell) else cell for cell in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(safe)
    return text.getvalue()


def read_csv(path: Path) -> list[list[str]]:
    """The rows that ``csv_text`` was given. Raises DataError."""
    try:
        rows = list(csv.reader(io.StringIO(read_text(path, newline=""), newline="")))
    except csv.Error as error:
        raise DataError(f"{path}: not a table ({error}).") from error
    return [[cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell for cell in row] for row in rows]


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing. What UTF-8 cannot hold (odd bytes of a name) is escaped. Raises DataError."""
    with written(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_json(path: Path, value: Any) -> None:
    """``write_text`` of readable JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_text(path: Path, newline: str | None = None) -> str:
    """A text file in UTF-8, with or without a mark. newline: as ``open`` takes it. Raises DataError that names it."""
    check_regular(path)
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            return file.read()
    except OSError as error:
        raise of_system(error, path) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from error


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """A JSON file. Raises DataError when it is missing or broken."""
    try:
        return json.loads(read_text(path), object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}).") from error


class Fields(dict[str, Any]):
    """A JSON object out of a file, which knows the file: a key that lacks raises DataError."""

    file: Path

    def __missing__(self, key: str) -> Any:
        raise DataError(f"{self.file}: has no '{key}': it was changed or damaged. Restore it, or make it anew.")


def read_record(path: Path) -> dict[str, Any]:
    """A JSON file that tagmask wrote, an object. Raises DataError, also for each key that lacks later."""

    def fields(pairs: dict[str, Any]) -> Fields:
        found = Fields(pairs)
        found.file = path
        return found

    record = read_json(path, fields)
    if not isinstance(record, Fields):
        raise DataError(f"{path}: not a JSON object: it was changed or damaged. Restore it, or make it anew.")
    return record
