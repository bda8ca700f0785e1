"""Names that come from data: which of them may name a photo, and so the file of its mask."""

from __future__ import annotations

import re
from pathlib import Path

from tagmask.errors import DataError

LONGEST = 251
"""Bytes of a part of a name: with .png it fits the 255 of file systems."""
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""A control character or a line's end, which no name of a photo or class holds."""
ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")


def flaw(name: str) -> str:
    """What is wrong with a photo's relative name or id; empty where nothing is."""
    try:
        parts = [part.encode() for part in re.split(r"[/\\]", name)]
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if not name.strip():
        return "its name is empty"
    if CONTROL.search(name):
        return "its name holds a control character"
    if ABSOLUTE.match(name) or b".." in parts:
        return "its name leads out of its folder"
    if max(map(len, parts)) > LONGEST:
        return f"its name is longer than {LONGEST} bytes"
    return ""


def bare_flaw(name: str) -> str:
    """What is wrong with a name that should have no folder; empty where nothing is."""
    return flaw(name) or ("it names a folder" if re.search(r"[/\\]", name) or not name.strip(". ") else "")


def check_name(name: str, where: str | Path) -> str:
    """The name, where it may name a photo. Raises DataError, which begins with ``where`` (file and line)."""
    wrong = flaw(name)
    if wrong:
        shown = name if len(name) <= 100 else f"{name[:100]}…"
        raise DataError(f"{where}: '{shown}': {wrong}. Rename it.")
    return name
