"""Errors that users can act on: each names the file or setting, what is wrong and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TagmaskError(Exception):
    """Base of all errors that tagmask raises on bad input; the CLI prints it without a traceback."""


class ConfigError(TagmaskError):
    """A configuration key or value is wrong."""


class DataError(TagmaskError):
    """A file or folder of the user's data cannot be used as it is."""


class WeightsError(TagmaskError):
    """Pretrained weights could not be found or do not fit the encoder."""


class TrainingError(TagmaskError):
    """Training had to stop (non-finite loss, out of memory, a checkpoint that does not fit)."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Sentence that names the closest known spelling, or lists what is known. Starts with a blank."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(names)}." if names else ""
