"""Where images, masks and class lists lie, the images' ids, and the image that a name in a list means."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from tagmask.config import DataConfig
from tagmask.data.collection import Problem
from tagmask.data.formats import is_image
from tagmask.data.walk import survey
from tagmask.errors import DataError
from tagmask.files import read_text
from tagmask.types import IGNORE

IMAGE_FOLDERS = ("images", "JPEGImages")
MASK_FOLDERS = ("masks", "SegmentationClass")


def data_root(config: DataConfig) -> Path:
    """The folder of the data set: ``data.root``, or else that of ``data.tags``. Raises DataError."""
    root = config.root if config.root is not None else config.tags and Path(config.tags).parent
    if root is None:
        raise DataError("No data given: set data.root to a folder of photos, or data.tags to a CSV of tags.")
    if not root.is_dir():
        what = "is a file; give its folder, or set data.tags to it" if root.is_file() else "no such folder"
        raise DataError(f"{root} (data.root): {what}.")
    return root


def resolve(path: Path, root: Path, setting: str) -> Path:
    """A configured path, taken from the working directory or from the data's root. Raises DataError."""
    for candidate in (path, root / path):
        if candidate.exists():
            return candidate
    raise DataError(f"{path} (data.{setting}): neither in the working directory nor in {root}.")


def without_suffix(name: str) -> str:
    """The name without its extension, if that is one of images; other dots are part of the name."""
    return name[: -len(Path(name).suffix)] if is_image(name) else name


def image_folder(config: DataConfig, root: Path) -> Path:
    """``data.images``, or else ``images`` or ``JPEGImages`` in the root, or else the root."""
    if config.images is not None:
        return resolve(config.images, root, "images")
    return next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), root)


def mask_folder(config: DataConfig, root: Path) -> Path | None:
    """``data.masks``, or else ``masks`` or ``SegmentationClass`` in the root, or else None."""
    if config.masks is not None:
        return resolve(config.masks, root, "masks")
    return next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), None)


def make_ids(paths: Sequence[Path], base: Path) -> list[str]:
    """One unique id an image: its stem; where stems collide its relative path; where those do, with extension."""
    stems = Counter(p.stem for p in paths)
    relative = [p.relative_to(base).as_posix() for p in paths]
    trimmed = Counter(without_suffix(r) for r in relative)
    ids = []
    for path, name in zip(paths, relative):
        short = without_suffix(name)
        ids.append(path.stem if stems[path.stem] == 1 else short if trimmed[short] == 1 else name)
    # A stem can equal another image's relative name only across folders of different depth; say so, never merge.
    clash = [id for id, count in Counter(ids).items() if count > 1]
    if clash:
        raise DataError(f"{base}: two images would both be called '{clash[0]}'; rename one of them.")
    return ids


class NameIndex:
    """Finds the image that a list or table means: by relative path or by name, with or without extension.

    A name with a folder must match that folder, unless all images lie in one folder; then any folder is accepted.
    """

    def __init__(self, paths: Sequence[Path], bases: Sequence[Path], where: str) -> None:
        self.where = where
        self._flat = len({p.parent for p in paths}) == 1
        self._exact: dict[str, set[int]] = defaultdict(set)
        self._short: dict[str, set[int]] = defaultdict(set)
        for i, path in enumerate(paths):
            names = {path.name}
            for base in bases:
                if path.is_relative_to(base):
                    names.add(path.relative_to(base).as_posix())
            for name in names:
                self._exact[_normal(name)].add(i)
                self._short[_normal(without_suffix(name))].add(i)
        self._paths = paths

    def find(self, name: str) -> int | None:
        """Position of the image, or None. Raises DataError when several images bear the name."""
        wanted = _normal(name)
        tries = [wanted]
        if self._flat and "/" in wanted:
            tries.append(wanted.rsplit("/", 1)[1])
        for text in tries:
            for table in (self._exact, self._short):
                hits = table.get(text, ())
                if len(hits) > 1:
                    two = " and ".join(str(self._paths[i]) for i in sorted(hits)[:2])
                    raise DataError(f"{self.where}: '{name}' may mean {two}; write the folder, too.")
                if hits:
                    return next(iter(hits))
        return None


def _normal(name: str) -> str:
    # Some systems store accents decomposed, others not: compare in one form.
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/")).removeprefix("./").lstrip("/")


def pair_masks(
    paths: Sequence[Path], base: Path, folder: Path | None, explicit: bool
) -> tuple[list[Path | None], list[Problem]]:
    """The mask of each image, by relative path without extension or by name, and the masks that fit no image.

    Raises DataError when masks lie among the images, and when the user named the folder (``explicit``) and it fits
    no image at all.
    """
    if folder is None:
        return [None] * len(paths), []
    if folder.resolve() == base.resolve():
        raise DataError(f"{folder} (data.masks): masks lie among the images; give them a folder of their own.")
    found = survey(folder, masks=True)
    masks = found.images
    relative = {_normal(without_suffix(m.relative_to(folder).as_posix())): m for m in masks}
    stems = Counter(p.stem for p in paths)
    result: list[Path | None] = []
    for path in paths:
        mask = relative.get(_normal(without_suffix(path.relative_to(base).as_posix())))
        if mask is None and stems[path.stem] == 1:
            mask = relative.get(_normal(path.stem))
        result.append(mask)
    used = set(result)
    if masks and explicit and used == {None}:
        raise DataError(
            f"{folder} (data.masks): no mask is named like an image (mask '{masks[0].name}', image '{paths[0].name}')."
        )
    return result, [*found.problems, *(Problem(str(m), "mask without an image") for m in masks if m not in used)]


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of the lines that are not blank. Raises DataError naming the file."""
    return [(i, line.strip()) for i, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]


def given_classes(config: DataConfig, root: Path) -> list[str] | None:
    """Class names from ``data.classes``, or else ``classes.txt`` in the root, or else None."""
    if isinstance(config.classes, list):
        return check_classes(config.classes, "data.classes")
    path = resolve(config.classes, root, "classes") if config.classes is not None else root / "classes.txt"
    if config.classes is None and not path.is_file():
        return None
    return check_classes([name for _, name in read_lines(path)], str(path))


def check_classes(names: Sequence[str], where: str) -> list[str]:
    """The foreground classes: a leading 'background' is dropped. Raises DataError on none, doubles, too many."""
    names = [name.strip() for name in names]
    names = names[1:] if names and names[0].lower() == "background" else names
    ground = [name for name in names if name.lower() == "background"]
    if ground:
        raise DataError(
            f"{where}: '{ground[0]}' is no class; it is what no class covers. For a photo with none of the classes "
            "leave the tags empty."
        )
    double = [name for name, count in Counter(names).items() if count > 1]
    if double:
        raise DataError(f"{where}: class '{double[0]}' is listed twice.")
    if not names or "" in names:
        raise DataError(f"{where}: {'an empty class name' if names else 'no class'}; one name a line is needed.")
    if len(names) >= IGNORE:
        raise DataError(f"{where}: {len(names)} classes; masks of 8 bits hold {IGNORE - 1} and the background.")
    return names
