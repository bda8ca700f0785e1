"""Errors that users can act on: each names the file or setting, what is wrong and the way out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST = 2000
"""Bytes of a message, at most."""
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""Terminal sequences and control characters, but for the line's end."""


class TagmaskError(Exception):
    """Base of all errors that tagmask raises on bad input; the CLI prints it without a traceback."""

    def __str__(self) -> str:
        return plain(super().__str__())


class ConfigError(TagmaskError):
    """A configuration key or value is wrong."""


class DataError(TagmaskError):
    """A file or folder of the user's data cannot be used as it is."""


class WeightsError(TagmaskError):
    """Pretrained weights could not be found or do not fit the encoder."""


class TrainingError(TagmaskError):
    """Training had to stop (non-finite loss, out of memory, a checkpoint that does not fit)."""


class Helped(TagmaskError):
    """This process only helped another one, which has the result. No fault: the CLI prints it and ends with 0."""


class Stopped(BaseException):
    """A signal (Ctrl-C, SIGTERM) stopped the work. It is no Exception: nothing takes it for a fault.

    number: of the signal. kept: what is done. again: the command that goes on.
    """

    def __init__(self, number: int, kept: str = "What is finished is kept.", again: str = "the same command") -> None:
        super().__init__(number)
        self.number, self.kept, self.again = number, kept, again

    def __str__(self) -> str:
        return f"stopped. {self.kept} To go on: {self.again}"


def plain(text: object) -> str:
    """A message as it may be shown: without control characters, at most 2 kB; what is longer loses its middle."""
    raw = CONTROLS.sub(" ", str(text)).encode("utf-8", "backslashreplace")
    if len(raw) > LONGEST:
        raw = raw[: LONGEST - 800] + " […] ".encode() + raw[-700:]
    return raw.decode("utf-8", "ignore")


def nearest(name: str, known: Iterable[str]) -> str:
    """Sentence that names the closest known spelling, or lists what is known. Starts with a blank."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(names)}." if names else ""
