"""Walking through folders: which files are pictures, and which look like pictures and are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tagmask.data.collection import Problem
from tagmask.data.formats import is_image, png_colour, why_not
from tagmask.data.layout import THUMBNAILS
from tagmask.data.names import flaw
from tagmask.data.spelling import path_start
from tagmask.data.stored import Stored, is_uri, listed
from tagmask.errors import DataError
from tagmask.files import read_json
from tagmask.types import IGNORE

OVERLAY = "_overlay.jpg"
"""How the names of pictures end that ``predict --overlay`` writes."""


@dataclass
class Survey:
    """What lies below a folder. images: sorted by path. lost: files that cannot be used, each with the reason.

    passed: what is no photo, though it looks like one: folders of thumbnails, masks that tagmask wrote. folder,
    without: what was looked through, and the folder in it that was not.
    """

    images: list[Path] = field(default_factory=list)
    lost: list[Problem] = field(default_factory=list)
    passed: list[Problem] = field(default_factory=list)
    folder: Path = Path()
    without: Path | None = None

    @property
    def problems(self) -> list[Problem]:
        """All that is not in ``images``."""
        return [*(Problem(problem.path, f"left out: {problem.what}") for problem in self.lost), *self.passed]


def survey(folder: Path, without: Path | None = None, masks: bool = False) -> Survey:
    """Look through ``folder`` to any depth, but not into hidden folders and ``without``.

    Links to folders are followed, and each folder is read once. Of a URI the file system there is asked. masks:
    pictures that tagmask wrote are wanted, too.
    """
    found = Survey(folder=folder, without=without)
    if is_uri(folder):
        found.images = [Stored.of(uri) for uri in listed(folder) if is_image(uri)]
        return found
    skip = os.path.realpath(without) if without is not None else None
    written: Counter[Path] = Counter()
    ours: set[str] = set()
    start = path_start(folder)
    for parent, names in _folders(folder, skip, found):
        if not masks and (os.path.dirname(parent) in ours or _holds_masks(parent, names)):
            ours.add(parent)
        for name in names:
            if name.startswith("."):
                continue
            path = Path(parent, name)
            if not is_image(name):
                if why := why_not(name):
                    found.lost.append(Problem(str(path), why))
            elif wrong := flaw(os.path.splitext(str(path)[start:])[0]):
                found.lost.append(Problem(str(path), f"{wrong}; rename it"))
            elif parent in ours and _is_written(path):
                written[path.parent] += 1
            else:
                found.images.append(path)
    found.images.sort(key=lambda path: path.parts)
    found.lost.sort(key=lambda problem: problem.path)
    for place, count in written.items():
        found.passed.append(Problem(str(place), f"{count} pictures that tagmask wrote are not read as photos"))
    return found


def none_found(found: Survey) -> str:
    """That there is no photo, and why, as a sentence without its full stop."""
    if not found.problems:
        return "There are no images"
    first = found.problems[0]
    return f"There are no images that can be read ({first.path}: {first.what})"


def holds_images(folder: Path) -> bool:
    """Whether an image lies in the folder or below, links to folders included."""
    return any(is_image(name) for _, names in _folders(folder, None, Survey()) for name in names if name[0] != ".")


def _folders(top: Path, skip: str | None, found: Survey) -> Iterator[tuple[str, list[str]]]:
    """Each folder below ``top`` with the names of its files. Folders that are links come after all real ones."""

    def refused(error: OSError) -> None:
        found.lost.append(Problem(str(error.filename), f"this folder cannot be opened ({error.strerror})"))

    waiting, seen = [str(top)], set()
    thumbnails: dict[str, str] = {}
    for start in waiting:
        for parent, folders, names in os.walk(start, onerror=refused):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                found.passed.append(Problem(parent, "a link to a folder that is read already"))
                continue
            seen.add(real)
            inner = []
            for name in sorted(folders):
                path = os.path.join(parent, name)
                if name.lower() in THUMBNAILS:
                    thumbnails.setdefault(name, path)
                elif name.startswith(".") or (skip and os.path.realpath(path) == skip):
                    continue
                elif os.path.islink(path):
                    waiting.append(path)
                else:
                    inner.append(name)
            folders[:] = inner
            yield parent, names
    for name, path in thumbnails.items():
        found.passed.append(Problem(path, f"folders called '{name}' hold copies; they are not read"))


def _holds_masks(folder: str, names: list[str]) -> bool:
    """Whether tagmask wrote masks into the folder: a note says so."""
    note = Path(folder, "classes.json")
    if note.name not in names or not note.is_file():
        return False
    try:
        value = read_json(note)
    except DataError:
        return False
    return isinstance(value, dict) and value.get("ignore") == IGNORE and "classes" in value


def _is_written(path: Path) -> bool:
    """Whether a picture in a folder of masks is one: a palette PNG, or a mask drawn on its photo."""
    return path.name.endswith(OVERLAY) or png_colour(path) == 3
