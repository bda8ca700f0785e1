"""Photos and masks that are no files of their own: members of a tar shard, and what lies at a URI.

``Stored`` is a path that opens itself, so that all code which reads a photo by ``path.open`` reads these, too. Nothing
stays open between two reads, and a path may go to other processes.
"""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tagmask.data.formats import is_image
from tagmask.errors import DataError
from tagmask.files import of_system

URI = re.compile(r"^((?:[A-Za-z][\w+.-]+::)*[A-Za-z][\w+.-]+):/+")
"""The beginning of a URI, also of one whose second slash a Path has dropped."""
BLOCK = tarfile.BLOCKSIZE
SHORT = 90
"""Length up to which a name stands whole in a tar's header."""
if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # what can be derived from before Python 3.12


class Stored(_Path):
    """A path to a photo or mask in a tar shard, or at a URI that fsspec knows (``s3://``, ``gs://``, ``https://``).

    shard: the shard's path or URI, None for what lies at a URI by itself. offset, size: of the content, in bytes. A
    path that is derived from one (``parent``) has none of the three: it can be named, not opened.
    """

    __slots__ = ("offset", "shard", "size")
    shard: str | None
    offset: int
    size: int

    @classmethod
    def of(cls, place: str, shard: str | None = None, offset: int = 0, size: int = -1) -> Stored:
        """The path ``place``. size: -1 where it is not known yet."""
        path = cls(place)
        path.shard, path.offset, path.size = shard, offset, size
        return path

    @property
    def member(self) -> str:
        """The name in the shard, as a Path writes it."""
        assert self.shard is not None
        return str(self)[len(str(Stored(self.shard))) + 1 :]

    def __str__(self) -> str:
        return URI.sub(_start, super().__str__())

    def __fspath__(self) -> str:
        return str(self)

    def __reduce__(self) -> Any:
        if not hasattr(self, "size"):
            return Stored, (str(self),)
        return Stored.of, (str(self), self.shard, self.offset, self.size)

    def open(self, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        """The content, from memory. Raises DataError where it cannot be read whole or is not where the index says."""
        if mode != "rb":
            raise ValueError(f"{self}: can only be opened with 'rb'.")
        shard = getattr(self, "shard", None)
        if shard is None:
            return io.BytesIO(read_uri(str(self)))
        found = read_span(shard, self.offset - BLOCK, self.offset + self.size)
        try:
            header = tarfile.TarInfo.frombuf(found[:BLOCK], "utf-8", "surrogateescape")
            # Of a long name, and of one that is not ASCII, a header may hold anything.
            plain = len(self.member) <= SHORT and self.member.isascii()
            whole = header.size == self.size and (not plain or str(PurePosixPath(header.name)) == self.member)
        except tarfile.HeaderError:
            whole = False
        if not whole or len(found) != BLOCK + self.size:
            raise DataError(f"{self}: is no longer where it was in its shard, which has changed. Open the data again.")
        return io.BytesIO(memoryview(found)[BLOCK:])

    def stat(self, **_: Any) -> os.stat_result:
        """Of a file that can be read. Only its size means something."""
        size = getattr(self, "size", None)
        if size is None:
            return super().stat()
        if size < 0:
            with reached(str(self)):
                files, path = file_system(str(self))
                self.size = size = int(files.size(path) or 0)
        return os.stat_result((stat.S_IFREG | 0o444, 0, 0, 1, 0, 0, size, 0, 0, 0))

    def is_file(self, **_: Any) -> bool:
        """True of what can be opened."""
        return hasattr(self, "size")


def is_uri(place: str | Path) -> bool:
    """Whether a place is a URI, not a path of this machine."""
    return URI.match(str(place)) is not None


def as_uri(place: str | Path) -> str:
    """A URI as it was written, though a Path may have dropped a slash."""
    return URI.sub(_start, str(place))


def _start(found: re.Match[str]) -> str:
    return f"{found[1]}:///" if found[1].endswith("file") else f"{found[1]}://"


def file_system(uri: str) -> tuple[Any, str]:
    """fsspec's file system of a URI, and the path in it. A new one in each process and thread. Raises DataError."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{uri}: cannot be opened ({error}). 'pip install tagmask[remote]' brings s3, gs and https."
        ) from error


@contextmanager
def reached(uri: str, what: str = "read") -> Iterator[None]:
    """Errors of a file system as DataErrors that name the URI. They have no common base. what: is done there."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{uri}: is not there. Check the address.") from error
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), "no message")
        raise DataError(
            f"{uri}: cannot be {what} ({type(error).__name__}: {said}). Check the address, your access and the "
            "connection, then go on with the same command."
        ) from error


def read_span(place: str, begin: int, end: int) -> bytes:
    """The bytes ``begin`` to ``end`` of a file or URI; fewer where it is shorter. Raises DataError."""
    if is_uri(place):
        with reached(place):
            files, path = file_system(place)
            return files.cat_file(path, start=begin, end=end)
    try:
        with open(place, "rb") as file:
            file.seek(begin)
            return file.read(end - begin)
    except OSError as error:
        raise of_system(error, place) from error


def read_uri(uri: str) -> bytes:
    """All that lies at a URI. Raises DataError."""
    with reached(uri):
        files, path = file_system(uri)
        return files.cat_file(path)


def listed(place: str | Path) -> list[str]:
    """The URIs that one with ``*`` means, or else all below it, or else itself; sorted. Raises DataError."""
    uri = as_uri(place)
    with reached(uri):
        files, path = file_system(uri)
        if re.search(r"[*?\[]", path):
            found = files.glob(path)
        elif is_image(path) or path.endswith(".tar"):
            return [uri]
        else:
            found = files.find(path)
        return sorted(files.unstrip_protocol(name) for name in found)
