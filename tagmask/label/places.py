"""Masks at URIs, such as s3://bucket/masks, through fsspec; and the manifest of masks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tagmask.data.stored import as_uri, file_system, is_uri, reached
from tagmask.errors import ConfigError, DataError
from tagmask.files import cache_folder, csv_text, read_csv, write_text, written

MANIFEST = "manifest.csv"
"""Beside masks: a line for each with its photo, the file's bytes and their SHA-256."""
COLUMNS = ("image", "photo", "bytes", "sha256")


class Place:
    """A URI that masks go to, and a temporary folder that stands for it. Methods raise DataError.

    A process that is sent a place has another folder, an empty one. known: the manifest that ``fetch`` found.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._temporary = TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self.known: dict[str, list[str]] = {}
        self._there: set[str] = set()

    def __reduce__(self) -> Any:
        return Place, (self.uri,)

    def fetch(self, notes: Iterable[str]) -> None:
        """Get what is there: notes on masks, the masks that no manifest knows, and for other masks empty files."""
        with reached(self.uri):
            files, root = file_system(self.uri)
            found = files.find(root) if files.exists(root) else []
        self._there = {path[len(root.rstrip("/")) + 1 :] for path in found}
        self._get(self._there & {*notes, MANIFEST})
        self.known = read_manifest(self.folder)
        masks = {name for name in self._there if name.endswith(".png")}
        known = {name for name in masks if name[:-4] in self.known}
        for name in masks:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        for name in known:
            (self.folder / name).touch()
        self._get(masks - known)

    def _get(self, names: Iterable[str]) -> None:
        with reached(self.uri):
            files, root = file_system(self.uri)
            pairs = [(f"{root}/{name}", str(self.folder / name)) for name in sorted(names)]
            if pairs:
                files.get(*map(list, zip(*pairs, strict=True)))

    def send(self, name: str) -> None:
        """Put a file of the folder there, whole or not at all."""
        from fsspec.implementations.local import LocalFileSystem

        data = (self.folder / name).read_bytes()
        with reached(f"{self.uri}/{name}", "written"):
            files, root = file_system(self.uri)
            if isinstance(files, LocalFileSystem):
                with written(Path(root, name)) as part:
                    part.write_bytes(data)
            else:  # a store takes a file at once
                files.pipe_file(f"{root}/{name}", data)

    def move(self, name: str) -> None:
        """``send`` a file, if there is one, and delete it in the folder."""
        if (self.folder / name).is_file():
            self.send(name)
            (self.folder / name).unlink()

    def remove(self, names: Iterable[str]) -> None:
        """Delete there those that ``fetch`` saw."""
        with reached(self.uri, "written"):
            files, root = file_system(self.uri)
            for name in self._there.intersection(names):
                files.rm_file(f"{root}/{name}")


def worked_at(out: str | Path) -> Path:
    """The folder whose lock is that of masks in ``out``: itself, or for a URI one in this user's cache."""
    if not is_uri(out):
        return Path(out)
    return cache_folder() / "at" / hashlib.sha256(as_uri(out).encode()).hexdigest()[:16]


def absolute(place: str | Path) -> str:
    """A path or URI, for processes that work elsewhere."""
    return as_uri(place) if is_uri(place) else os.path.abspath(place)


def check_overlay(overlay: bool, out: str | Path) -> None:
    """Raise ConfigError where pictures of masks are wanted beside masks at a URI."""
    if overlay and is_uri(out):
        raise ConfigError(
            f"{as_uri(out)}: --overlay is for masks in a folder. Leave it away, or name a folder (--out)."
        )


def read_manifest(folder: Path) -> dict[str, list[str]]:
    """Lines of a folder's manifest by the photo's id; {} without one. Raises DataError for a changed one."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    head, *rows = read_csv(path) or [[]]
    if tuple(head) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
        raise DataError(f"{path}: not the columns {', '.join(COLUMNS)}. Delete it to get it anew.")
    return {row[0]: row for row in rows}


def write_manifest(folder: Path, rows: Mapping[str, list[str]]) -> None:
    """Write a folder's manifest, sorted by the photo's id."""
    write_text(folder / MANIFEST, csv_text([COLUMNS, *(rows[id] for id in sorted(rows))]))


def digest(path: Path) -> list[str]:
    """Bytes of a file and their SHA-256, as the manifest has them."""
    data = path.read_bytes()
    return [str(len(data)), hashlib.sha256(data).hexdigest()]
