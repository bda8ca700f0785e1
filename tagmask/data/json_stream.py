"""Large JSON files, such as COCO's annotations, a value at a time: memory does not grow with the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import numpy as np

from tagmask.errors import DataError
from tagmask.files import check_regular, of_system

DEEPEST = 1000
"""Brackets that may be open at once."""
LARGEST = 64 << 20
"""Bytes without a comma."""
NO_NUMBER = re.compile(rb"(?:\A|(?<=[\s\[:,]))-?(?:NaN|Infinity)(?=[\s\]},])")
STEPS = np.zeros(256, np.int8)
STEPS[[ord("["), ord("{")]], STEPS[[ord("]"), ord("}")]] = 1, -1


def stream_json(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(key, element) for each element of the lists that a file's object has under ``keys``.

    Key by key in the order of ``keys``, with one pass over the file for each; what lies under other keys is skipped.
    The key '' is that of a file that is a list itself.
    NaN and infinity, which Python writes and JSON does not have, are None. Raises DataError that names the file where
    it cannot be read, is not valid JSON, is nested deeply, or lacks one of the lists.
    """
    check_regular(path)
    for key in keys:
        done = 0
        try:
            with path.open("rb") as file:
                for value in ijson.items(_Guarded(file), f"{key}.item".lstrip("."), use_float=True, buf_size=1 << 16):
                    yield key, value
                    done += 1
            if done == 0:
                with path.open("rb") as file:
                    events = ijson.parse(_Guarded(file), use_float=True)
                    if not any(prefix == key and event == "start_array" for prefix, event, _ in events):
                        what = f"there is no list '{key}' in it" if key else "it is no list"
                        raise DataError(f"{path}: {what}. Is it a file of another format?")
        except OSError as error:
            raise of_system(error, path) from error
        except (ijson.JSONError, ValueError) as error:
            what = " ".join(str(error).split())
            raise DataError(
                f"{path}: not valid JSON ({what}). A download may have broken off: get it again."
            ) from error


class _Guarded:
    """A file for ijson, which takes gigabytes where brackets are nested deeply or one value goes on for long.

    Raises ValueError there.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.depth, self.rest, self.first = file, 0, b"", True

    def read(self, size: int = -1) -> bytes:
        while size != 0:
            chunk = self.file.read(size)
            if self.first:
                chunk, self.first = chunk.removeprefix(b"\xef\xbb\xbf"), False
            if chunk:
                depths = self.depth + np.cumsum(STEPS[np.frombuffer(chunk, np.uint8)], dtype=np.int64)
                self.depth = int(depths[-1])
                if depths.max() > DEEPEST:
                    raise ValueError(f"more than {DEEPEST} brackets are open at once")
            text = self.rest + chunk
            # Behind a comma no word is cut in two.
            cut = text.rfind(b",") + 1 if chunk else len(text)
            self.rest = text[cut:]
            if len(self.rest) > LARGEST:
                raise ValueError(f"a value of more than {LARGEST} bytes")
            if cut or not chunk:
                return NO_NUMBER.sub(b"null", text[:cut])
        return b""
