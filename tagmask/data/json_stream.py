"""Large JSON files a value at a time: memory does not grow with the file."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tagmask.errors import DataError

CHUNK = 1 << 20
"""Bytes that are read at a time."""
LARGEST = 64 << 20
"""Characters of one value; a longer one is taken for a broken file."""
BLANKS = " \t\r\n"


def stream_json(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, value) pairs of the object that a file holds; of a list each element comes by itself, under its key.

    Values come in the file's order. Raises DataError that names the file and the position where it is not valid.
    """
    try:
        with path.open("rb") as file:
            yield from _Reader(path, file).pairs()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.text, self.at, self.before, self.ended = "", 0, 0, False
        self.utf8 = codecs.getincrementaldecoder("utf-8")()
        self.decode = json.JSONDecoder().raw_decode

    def pairs(self) -> Iterator[tuple[str, Any]]:
        self.expect("{")
        if self.peek() == "}":
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise self.error("a key is expected")
            self.expect(":")
            if self.peek() == "[":
                self.at += 1
                while self.peek() != "]":
                    yield key, self.value()
                    if self.peek() != "]":
                        self.expect(",")
                        if self.peek() == "]":
                            raise self.error("a value is expected after a comma")
                self.at += 1
            else:
                yield key, self.value()
            if self.peek() == "}":
                return
            self.expect(",")

    def peek(self) -> str:
        """The next character that is no blank; it stays where it is."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in BLANKS:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                raise self.error("the file ends too early, as of a download that broke off")

    def expect(self, sign: str) -> None:
        if self.peek() != sign:
            raise self.error(f"'{sign}' is expected")
        self.at += 1

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
                # A number at the end of what was read may go on in the next chunk.
                if end < len(self.text) or not self.more():
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                # The parser cannot tell a broken value from one that was read in part.
                if len(self.text) - self.at > LARGEST or not self.more():
                    raise self.error(error.msg) from error

    def more(self) -> bool:
        """Read on; False at the end of the file. What was used is dropped."""
        if self.ended:
            return False
        # As much again as is left over: a long value is then parsed from its start a few times only.
        data = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not data
        try:
            text = self.utf8.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 ({error})") from error
        self.before += self.at
        self.text, self.at = self.text[self.at :] + text, 0
        return bool(data)

    def error(self, what: str) -> DataError:
        return DataError(f"{self.path}: not valid JSON at character {self.before + self.at}: {what}.")
