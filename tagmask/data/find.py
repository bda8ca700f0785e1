"""Where images, masks and class lists lie, and the images' ids."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tagmask.config import DataConfig
from tagmask.data.collection import Problem
from tagmask.data.formats import is_image
from tagmask.data.layout import role, subfolders
from tagmask.data.spelling import clean_name, normal_path, path_start
from tagmask.data.stored import Stored, is_uri
from tagmask.data.walk import holds_images, survey
from tagmask.errors import DataError
from tagmask.files import read_text
from tagmask.types import IGNORE

IMAGE_FOLDERS = ("images", "JPEGImages")
MASK_FOLDERS = ("masks", "SegmentationClass")
BACKGROUND = frozenset(("background", "_background_", "__background__", "bg"))
"""Names of what no class covers, in lower case; the second is labelme's."""
IGNORED = "__ignore__"
"""Stands first in labelme's lists, for pixels that are 255."""
LONGEST_CLASS = 200
INSTANCES = re.compile("object|visual")
"""In names of folders whose masks tell objects apart, or are pictures to look at."""


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
    """A configured path, taken from the working directory or from the data's root, or a URI. Raises DataError."""
    if is_uri(path):
        return Stored(path)
    for candidate in (path, root / path):
        if candidate.exists():
            return candidate
    raise DataError(f"{path} (data.{setting}): neither in the working directory nor in {root}.")


def without_suffix(name: str) -> str:
    """The name without its extension, if that is one of images; other dots are part of the name."""
    return os.path.splitext(name)[0] if is_image(name) else name


def image_folder(config: DataConfig, root: Path) -> Path:
    """``data.images``, or else ``images`` or ``JPEGImages`` in the root, or else the root.

    A folder of another usual name for photos (``img``) counts, too, if it is the only one and a folder of masks lies
    beside it.
    """
    if not root.is_dir():  # shards at a URI
        return root
    if config.images is not None:
        return resolve(config.images, root, "images")
    named = _named(root, IMAGE_FOLDERS)
    if named is not None:
        return named
    found = [folder for folder in subfolders(root) if role(folder.name) == "photos"]
    return found[0] if len(found) == 1 and mask_folder(config, root) is not None else root


def mask_folder(config: DataConfig, root: Path) -> Path | None:
    """``data.masks``, or else ``masks`` or ``SegmentationClass`` in the root, or else None.

    A folder of another usual name for masks (``labels``) counts, too, if it holds images and a folder of photos or of
    a split lies beside it. A folder that the list of classes names does not count.
    """
    if config.masks is not None:
        return resolve(config.masks, root, "masks")
    roles = {folder: role(folder.name) for folder in subfolders(root)}
    if "masks" not in roles.values():
        return None
    classes = given_classes(config, root) or ()
    found = [f for f, kind in roles.items() if kind == "masks" and f.name not in classes and holds_images(f)]
    named = _named(root, MASK_FOLDERS)
    if named in found:
        return named
    beside = {"photos", "train", "val", "test"}.intersection(filter(None, roles.values()))
    return next((f for f in found if not INSTANCES.search(f.name.lower())), None) if beside else None


def _named(root: Path, names: Sequence[str]) -> Path | None:
    """The first folder of one of the names, in any case; a name as it is written goes first."""
    there = {folder.name: folder for folder in subfolders(root)}
    lower = {name.lower(): folder for name, folder in there.items()}
    return next((there.get(name) or lower[name.lower()] for name in names if name.lower() in lower), None)


def make_ids(paths: Sequence[Path], base: Path) -> list[str]:
    """One unique id an image: its stem; where stems collide its relative path; where those do, with extension."""
    stems = Counter(p.stem for p in paths)
    start = path_start(base)
    relative = [p.as_posix()[start:] for p in paths]
    shorts = [without_suffix(name) for name in relative]
    trimmed = Counter(shorts)
    ids = []
    for path, name, short in zip(paths, relative, shorts):
        ids.append(path.stem if stems[path.stem] == 1 else short if trimmed[short] == 1 else name)
    # A stem can equal another image's relative name only across folders of different depth; say so, never merge.
    clash = [id for id, count in Counter(ids).items() if count > 1]
    if clash:
        raise DataError(f"{base}: two images would both be called '{clash[0]}'; rename one of them.")
    return ids


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
    start = path_start(folder)
    relative = {normal_path(without_suffix(m.as_posix()[start:])): m for m in masks}
    stems = Counter(p.stem for p in paths)
    result: list[Path | None] = []
    start = path_start(base)
    for path in paths:
        mask = relative.get(normal_path(without_suffix(path.as_posix()[start:])))
        if mask is None and stems[path.stem] == 1:
            mask = relative.get(normal_path(path.stem))
        result.append(mask)
    used = set(result)
    if masks and used == {None}:
        what = f"no mask is named like an image (mask '{masks[0].name}', image '{paths[0].name}')"
        if explicit:
            raise DataError(f"{folder} (data.masks): {what}.")
        return result, [*found.problems, Problem(str(folder), f"no masks are read from this folder: {what}")]
    return result, [*found.problems, *(Problem(str(m), "mask without an image") for m in masks if m not in used)]


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of the lines that are not blank. Raises DataError naming the file."""
    lines = re.split(r"\r\n|\r|\n", read_text(path))
    return [(i, line.strip()) for i, line in enumerate(lines, 1) if line.strip()]


def given_classes(config: DataConfig, root: Path) -> list[str] | None:
    """Class names from ``data.classes``, or else ``classes.txt`` in the root, or else None."""
    if isinstance(config.classes, list):
        return check_classes(config.classes, "data.classes")
    path = resolve(config.classes, root, "classes") if config.classes is not None else root / "classes.txt"
    if config.classes is None and not path.is_file():
        return None
    return check_classes([name for _, name in read_lines(path)], str(path))


def check_classes(names: Sequence[str], where: str) -> list[str]:
    """The foreground classes: a leading 'background' is dropped, labelme's '__ignore__' before it, too.

    Raises DataError on none, doubles, too many.
    """
    names = [clean_name(name, where) for name in names]
    for leading in ({IGNORED}, BACKGROUND):
        names = names[1:] if names and names[0].lower() in leading else names
    ground = [name for name in names if name.lower() in BACKGROUND]
    if ground:
        raise DataError(
            f"{where}: '{ground[0]}' is no class; it is what no class covers. For a photo with none of the classes "
            "leave the tags empty."
        )
    if IGNORED in names:
        raise DataError(f"{where}: '{IGNORED}' is no class; it stands first, as labelme writes it, or not at all.")
    double = [name for name, count in Counter(names).items() if count > 1]
    if double:
        raise DataError(f"{where}: class '{double[0]}' is listed twice.")
    if not names or "" in names:
        raise DataError(f"{where}: {'an empty class name' if names else 'no class'}; one name a line is needed.")
    long = next((name for name in names if len(name) > LONGEST_CLASS), None)
    if long is not None:
        raise DataError(
            f"{where}: a class name of {len(long)} letters ('{long[:40]}…'). Several tags? Set data.separator to "
            "what stands between them."
        )
    if len(names) >= IGNORE:
        raise DataError(f"{where}: {len(names)} classes; masks of 8 bits hold {IGNORE - 1} and the background.")
    return names
