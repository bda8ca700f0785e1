"""Cells of tables: tags, lists of tags as other programs write them, splits; what looks odd about the classes."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence

from tagmask.data.collection import Problem
from tagmask.data.layout import SPLITS
from tagmask.data.spelling import clean_name
from tagmask.errors import DataError

NOTHING = frozenset(("nan", "none", "null", "na", "n/a", "<na>"))
"""What programs write into a cell that is empty, in lower case."""
NO_YES = {**dict.fromkeys(("0", "0.0", "false", "no"), False), **dict.fromkeys(("1", "1.0", "true", "yes"), True)}
"""Cells of a column that is a class, in lower case."""
TEXT = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
LIST = re.compile(rf"\[\s*(?:{TEXT}\s*(?:,\s*{TEXT}\s*)*,?\s*)?\]")
"""A list of texts, as Python and JSON write it."""
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def cell_tags(cell: str, separator: str, where: str) -> tuple[str, ...]:
    """The tags in one cell: a list as Python or JSON write it, or else names with ``separator`` between them.

    Blanks around them and empty ones are dropped. Raises DataError on a list that cannot be read.
    """
    cell = cell.strip()
    if cell.startswith("[") and cell.endswith("]") and (cell == "[]" or re.search(r"[,;'\"\s]", cell)):
        parts = _list(cell, where)
    else:
        parts = cell.split(separator) if separator else [cell]
    return clean_tags(parts, where)


def clean_tags(tags: Iterable[str], where: str) -> tuple[str, ...]:
    """Tags in one form, without empty ones."""
    return tuple(name for name in (clean_name(tag, where) for tag in tags) if name)


def _list(cell: str, where: str) -> list[str]:
    # Python joins texts that have no comma between them: such a list, which numpy prints, is refused.
    for read in (json.loads, ast.literal_eval) if LIST.fullmatch(cell) else ():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of '\d' in a text
                return read(cell)
        except (ValueError, SyntaxError):
            continue
    raise DataError(f"{where}: '{cell[:60]}' is no list of names that can be read. Write the tags as red;blue.")


def split_roles(cells: Sequence[str], wheres: Sequence[str], column: str) -> tuple[list[str | None], list[str]]:
    """'train', 'val' or 'test' of each row, None for an empty cell; and a sentence where no cell names a split.

    Raises DataError on a word that is no split where other cells name one.
    """
    words = [cell.strip().lower() for cell in cells]
    words = ["" if word in NOTHING else word for word in words]
    if not SPLITS.keys() & set(words):
        odd = f"column '{column}' holds none of train, val and test: it is not read."
        return [None] * len(words), [odd] if any(words) else []
    wrong = next((i for i, word in enumerate(words) if word and word not in SPLITS), None)
    if wrong is not None:
        raise DataError(
            f"{wheres[wrong]}: the split is '{cells[wrong][:60]}'. Write train, val or test, or remove the column."
        )
    return [SPLITS.get(word) for word in words], []


def odd_classes(classes: list[str], separator: str) -> Iterator[Problem]:
    """Classes that differ in case only, that are several tags, or that were an empty cell."""
    seen: dict[str, str] = {}
    for name in classes:
        twin = seen.setdefault(name.lower(), name)
        if twin != name:
            yield Problem(name, f"class '{name}' differs from '{twin}' in upper and lower case only")
        if name.lower() in NOTHING:
            yield Problem(name, f"class '{name}' is what programs write into empty cells; if it is none, empty them")
    for sign in ";,|":
        found = [name for name in classes if sign in name and sign != separator]
        if found:
            more = f", as in {len(found) - 1} more" if len(found) > 1 else ""
            what = f"class '{found[0]}' holds a '{sign}'{more}; if these are several tags, set data.separator='{sign}'"
            yield Problem(found[0], what)


def odd_tags(tags: Iterable[str], column: str) -> Iterator[str]:
    """What is odd about all tags of a table's column: that they are numbers, or yes and no."""
    found = set(tags)
    numbers, no_yes = all(NUMBER.fullmatch(tag) for tag in found), all(tag.lower() in NO_YES for tag in found)
    if found and (numbers or no_yes):
        names = ", ".join(f"'{name}'" for name in sorted(found)[:4])
        what = "numbers" if numbers else "yes and no"
        way = " If they say whether one class is there, name the column by the class." if no_yes else ""
        yield f"column '{column}' holds {what} only: they were read as classes called {names}.{way}"
