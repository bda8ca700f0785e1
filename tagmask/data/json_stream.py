"""Large JSON files, such as COCO's annotations, a value at a time: memory does not grow with the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tagmask.errors import DataError
from tagmask.files import of_system

CHUNK = 1 << 20
"""Characters that are read at a time."""
LARGEST = 64 << 20
"""Characters of one value; a longer one is taken for a broken file."""
BLANKS = re.compile(r"[ \t\r\n]*")


def stream_json(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(key, element) for each element of the lists that a file's object has under ``keys``.

    Key by key in the order of ``keys``, with one pass over the file for each; what lies under other keys is skipped.
    Numbers may be NaN or infinite, as Python writes them. Raises DataError that names the file where it cannot be read,
    is not valid JSON, is nested too deeply, or lacks one of the lists.
    """
    if path.exists() and not path.is_file():  # reading a pipe would never end
        raise DataError(f"{path}: not a regular file.")
    for key in keys:
        try:
            with path.open(encoding="utf-8-sig") as file:
                reader = _Reader(file)
                for value in reader.elements(key):
                    yield key, value
        except OSError as error:
            raise of_system(error, path) from error
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]
            place = f", after entry {reader.done} of '{reader.key}'" if reader.key else ""
            raise DataError(
                f"{path}: not valid JSON ({what}{place}). A download may have broken off: get it again."
            ) from error
        if not reader.found:
            raise DataError(f"{path}: there is no list '{key}' in it. Are these COCO's instance annotations?")


class _Reader:
    """The object that a JSON file holds, part by part. Raises ValueError and RecursionError.

    key, done: of the list that is being read, and how many of its elements are.
    """

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.at = file, "", 0
        self.key, self.done, self.found = "", 0, False
        self.decode = json.JSONDecoder().raw_decode

    def elements(self, wanted: str) -> Iterator[Any]:
        """The elements of the list under the key ``wanted``."""
        self.take("{")
        more = self.peek() != "}" or self.take("}") == ","
        while more:
            self.key, self.done = self.name(), 0
            self.take(":")
            if self.peek() != "[":
                self.value()
            else:
                for value in self.list():
                    if self.key == wanted:
                        yield value
                self.found = self.found or self.key == wanted
            more = self.take(",}") == ","
        if self.peek():
            raise ValueError("something follows its end")

    def name(self) -> str:
        value = self.value()
        if not isinstance(value, str):
            raise ValueError("a key is expected")
        return value

    def list(self) -> Iterator[Any]:
        self.take("[")
        more = self.peek() != "]" or self.take("]") == ","
        while more:
            yield self.value()
            self.done += 1
            more = self.take(",]") == ","

    def peek(self) -> str:
        """The next character that is no blank, '' at the end of the file; it stays where it is."""
        while True:
            blanks = BLANKS.match(self.text, self.at)
            self.at = blanks.end() if blanks else self.at
            if self.at < len(self.text) or not self.read():
                return self.text[self.at : self.at + 1]

    def take(self, signs: str) -> str:
        """The next character, which has to be one of ``signs``."""
        sign = self.peek()
        if not sign or sign not in signs:
            raise ValueError(f"'{signs[0]}' is expected" if sign else "it ends too early")
        self.at += 1
        return sign

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError:
                # A broken value and one that was read in part look alike.
                if len(self.text) - self.at > LARGEST or not self.read():
                    raise
            else:
                # A number may go on in what is not read yet, as 1e of 1e5 does.
                if end + 2 < len(self.text) or not self.read():
                    self.at = end
                    return value

    def read(self) -> bool:
        """Read on and drop what was used; False at the end of the file."""
        # As much again as is left over: a long value is then parsed from its start a few times only.
        part = self.file.read(max(CHUNK, len(self.text) - self.at))
        if part:
            self.text, self.at = self.text[self.at :] + part, 0
        return bool(part)
