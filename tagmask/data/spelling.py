"""Names in one form, however they are spelled: class names and paths from lists and tables."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from tagmask.data.names import CONTROL
from tagmask.errors import DataError

BLANKS = "\\s\u00ad\u200b-\u200f\u2060\ufeff"
UNSEEN = re.compile(f"^[{BLANKS}]+|[{BLANKS}]+$|[\u00ad\u200b\u2060\ufeff]")
"""Signs that nobody sees. Joiners within a word belong to some scripts."""


def clean_name(name: str, where: str) -> str:
    """A class name in one form: accents composed, without signs that nobody sees. Raises DataError on control signs."""
    refuse_control(name.strip(), where)
    return visible(name)


def refuse_control(text: str, where: str) -> None:
    """Raise DataError where a text holds a line's end or another control character."""
    found = CONTROL.search(text)
    if found is not None:
        raise DataError(
            f"{where}: {text[:60]!r} holds the control character {found[0]!r}. A quote that is not closed, or a "
            "table that is not UTF-8?"
        )


def visible(text: str) -> str:
    """A text with composed accents and plain blanks, without signs that nobody sees."""
    return UNSEEN.sub("", re.sub("[\u00a0\u2007\u202f]", " ", unicodedata.normalize("NFC", text)))


def plain_path(name: str) -> str:
    """A path as it is written, with slashes only: the signs between folders and '.' say nothing."""
    return "/".join(part for part in name.strip().replace("\\", "/").split("/") if part not in ("", "."))


def path_start(folder: Path) -> int:
    """Where the name of a path below the folder begins in its text: cutting there is far faster than relative_to."""
    return 0 if folder == Path() else len(os.path.join(folder, ""))


def normal_path(name: str) -> str:
    """``plain_path`` with composed accents: some systems store them decomposed, others not."""
    return plain_path(visible(name))


def folded_path(name: str) -> str:
    """``normal_path`` in one case."""
    return normal_path(name).casefold()
