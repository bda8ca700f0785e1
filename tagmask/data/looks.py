"""What was found in photos and masks before, by their content: a photo that was decoded once is not decoded again."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from types import TracebackType
from typing import Any

from PIL import __version__ as pillow

from tagmask.data.collection import ColourMap
from tagmask.files import cache_folder

FORMAT = 1
"""Version of what is kept; raise it with each change of what a look holds, or of how it is made."""
AT_ONCE = 1000


class Looks:
    """Looks at photos in one file of the user's cache folder, about 90 bytes a photo, for any data set that has them.

    Used as a context. Where the file cannot be used nothing is kept, and each photo is looked at again. ``get`` may be
    called from threads, ``put`` from one. Several processes may use the file at once.
    """

    def __init__(self) -> None:
        self._lock, self._new = threading.Lock(), dict[bytes, str]()
        self._file: sqlite3.Connection | None = None
        path = cache_folder() / f"looks-{FORMAT}.sqlite"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=30, check_same_thread=False)
            self._file.execute("CREATE TABLE IF NOT EXISTS looks (key BLOB PRIMARY KEY, look TEXT) WITHOUT ROWID")
        except (sqlite3.Error, OSError):
            self._close()

    def get(self, key: bytes) -> dict[str, Any] | None:
        """What was kept, or None."""
        with self._lock:
            if self._file is None:
                return None
            try:
                row = self._file.execute("SELECT look FROM looks WHERE key = ?", (key,)).fetchone()
                return json.loads(row[0]) if row is not None else None
            except (sqlite3.Error, ValueError):
                return None

    def put(self, key: bytes, look: dict[str, Any]) -> None:
        """Keep a look, which goes into JSON."""
        self._new[key] = json.dumps(look, separators=(",", ":"))
        if len(self._new) >= AT_ONCE:
            self._write()

    def _write(self) -> None:
        with self._lock:
            try:
                if self._file is not None:
                    with self._file:
                        self._file.executemany("INSERT OR REPLACE INTO looks VALUES (?, ?)", self._new.items())
            except sqlite3.Error:  # a full disk, another process that writes for long: it stays as it is
                pass
            self._new.clear()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Looks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._write()
        self._close()


def key_of(photo: bytes, mask: bytes | None, colours: ColourMap | None) -> bytes:
    """A hash of all that a look depends on."""
    about = json.dumps([pillow, len(photo), mask is None, colours and sorted(colours.items())])
    return hashlib.blake2b(about.encode() + photo + (mask or b""), digest_size=16).digest()
