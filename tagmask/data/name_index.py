"""The image that a name in a list or table means."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import NamedTuple

from tagmask.data.collection import Problem
from tagmask.data.find import without_suffix
from tagmask.data.spelling import folded_path, normal_path, plain_path
from tagmask.errors import DataError


class Form(NamedTuple):
    """One way to compare: what both sides become, and which of them lose their extension."""

    of: Callable[[str], str]
    short_file: bool = False
    short_name: bool = False

    def key(self, text: str, short: bool) -> str:
        return without_suffix(self.of(text)) if short else self.of(text)


EXACT = (Form(plain_path), Form(plain_path, short_file=True))
FORMS = (*EXACT, Form(normal_path), Form(folded_path), Form(normal_path, True, True), Form(folded_path, True, True))
"""How the names of files and those in lists are compared, the strictest first."""


class NameIndex:
    """Finds the image that a list or table means: by relative path or by name, with or without extension.

    A name that fits no image may still differ in the form of accents, in case, in the extension, or by folders in
    front ('C:\\old\\a\\1.jpg' is a/1.jpg): such a match is loose, and ``notes`` tells of it. A name's own folder must
    match, unless all images lie in one folder; then any folder is accepted.
    """

    def __init__(self, paths: Sequence[Path], bases: Sequence[Path], where: str) -> None:
        self.where = where
        self._paths, self._bases = paths, bases
        prefixes = ["" if base == Path() else os.path.join(base, "") for base in dict.fromkeys(bases)]
        self._names = [
            {path.name, *(text[len(prefix) :] for prefix in prefixes if text.startswith(prefix))}
            for path, text in ((path, str(path)) for path in paths)
        ]
        self._depth = max((name.count("/") + 1 for names in self._names for name in names), default=1)
        flat = len({path.parent for path in paths}) == 1
        self._top = {i for i, path in enumerate(paths) if flat or path.parent in bases}
        self._flat = flat
        self._tables: list[dict[str, list[int]]] = []
        self._loose: dict[str, int] = {}

    def exact(self, name: str) -> int | None:
        """Position of the image, or None. Raises DataError when several images bear the name."""
        for base in self._bases:
            name = name.removeprefix(f"{base.absolute()}{os.sep}")
        return self._lookup(name, name, EXACT, (), None)

    def find(self, name: str, taken: Container[int] = ()) -> int | None:
        """As ``exact``, or else by a loose match, for which images that are ``taken`` do not count."""
        hit = self.exact(name)
        if hit is not None:
            return hit
        parts = plain_path(name).split("/")
        last = len(parts) - 1
        # Folders of another machine may be dropped, those below the root may not.
        whole_path = self._flat or re.match(r"[A-Za-z]:|[/\\]", name.strip()) is not None
        for start in (0, *range(max(1, len(parts) - self._depth), len(parts) if whole_path else last)):
            only = self._top if 0 < start == last else None
            hit = self._lookup(name, "/".join(parts[start:]), FORMS, taken, only)
            if hit is not None:
                self._loose[name] = hit
                return hit
        return None

    def notes(self) -> list[Problem]:
        """How many names were matched loosely, with an example; nothing where none was."""
        if not self._loose:
            return []
        name, hit = next(iter(self._loose.items()))
        what = f"{len(self._loose)} names differ from the files in folder, extension, case or accents only"
        return [Problem(self.where, f"{what}, and were matched: '{name}' is {self._paths[hit]}")]

    def _lookup(
        self, name: str, text: str, forms: Sequence[Form], taken: Container[int], only: Container[int] | None
    ) -> int | None:
        for level, form in enumerate(forms):
            hits = self._table(level).get(form.key(text, form.short_name), ())
            hits = [i for i in hits if i not in taken and (only is None or i in only)]
            if len(hits) > 1:
                two = " and ".join(str(self._paths[i]) for i in hits[:2])
                raise DataError(f"{self.where}: '{name}' may mean {two}; write the folder, too.")
            if hits:
                return hits[0]
        return None

    def _table(self, level: int) -> dict[str, list[int]]:
        """Positions by name in one form; made when it is first asked for."""
        while len(self._tables) <= level:
            form, table = FORMS[len(self._tables)], defaultdict(list)
            for i, names in enumerate(self._names):
                for key in {form.key(name, form.short_file) for name in names}:
                    table[key].append(i)
            self._tables.append(dict(table))
        return self._tables[level]
