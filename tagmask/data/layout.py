"""What folders are called that hold splits, photos or masks, not a class; and masks that lie among photos."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tagmask.data.formats import MASK_COLOURS, png_colour

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What splits are called, in lower case: folders, and cells of a table's split column."""
PHOTOS = "image images img imgs photo photos picture pictures imgdir imagedir jpegimages leftimg8bit imagestr imagests"
MASKS = """
mask masks label labels annotation annotations ann anns anndir maskdir labeldir gt gts gtfine groundtruth segmentation
segmentations segmentationclass segmentationclassaug segmentationclasspng segmentationclassvisualization
segmentationobject segmentationobjectpng segmentationobjectvisualization labelstr labelsts
"""
KINDS = {**dict.fromkeys(PHOTOS.split(), "photos"), **dict.fromkeys(MASKS.split(), "masks")}
THUMBNAILS = frozenset(
    ("@eadir", "@synoeadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", ".thumbnails", ".thumbs", ".trashes")
)
"""Folders, in lower case, in which servers and systems keep small or deleted copies of photos."""
MARKED = re.compile(
    r"(.+?)[ _.-]+(?:mask|seg|segm|segmentation|label|gt|groundtruth|annotation|ann)s?(?:[ _-]?\d+)?", re.I
)
"""A stem that ends as those of masks do; its group is the photo's."""


@cache
def role(name: str) -> str | None:
    """'train', 'val', 'test', 'photos' or 'masks' for a folder of such a name, in any case; None for any other.

    'train_images' and 'labelsTest' hold photos and masks.
    """
    key = re.sub(r"[\W_]+", "", name.lower())
    if key in SPLITS or key in KINDS:
        return SPLITS.get(key) or KINDS[key]
    parts = (part for word in SPLITS for part in (key.removeprefix(word), key.removesuffix(word)))
    return next((KINDS[part] for part in parts if part in KINDS), None)


def subfolders(folder: Path) -> list[Path]:
    """The folders right in a folder, sorted, links to folders too; hidden ones and thumbnails are left out."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in THUMBNAILS]
    # Of links a Path is asked: it says no where they lead in a circle, an entry raises an error.
    return sorted(Path(e.path) for e in found if (Path(e.path) if e.is_symlink() else e).is_dir())


def masks_among(photos: Sequence[Path], base: Path) -> dict[Path, Path]:
    """Photos that look like the mask of another one, which is the value.

    'x_mask.png' beside 'x.jpg', a grey or palette 'x.png' beside it, and 'labels/x.png' beside 'images/x.jpg' or
    'x.jpg'.
    """
    beside: dict[tuple[str, str], Path] = {}
    by_folder: dict[str, list[Path]] = {}
    for path in photos:
        folder, stem, suffix = _pieces(path)
        by_folder.setdefault(folder, []).append(path)
        if suffix != ".png" or (folder, stem) not in beside:
            beside[folder, stem] = path
    parents = {folder: Path(folder).relative_to(base).parts for folder in by_folder}
    marks = any("masks" in map(role, names) for names in parents.values())
    roots = _by_roots(by_folder, parents, base) if marks else {}
    found = {}
    for folder, own in by_folder.items():
        above = [place for place, kind in _with_role(parents[folder], base) if kind == "masks"]
        for path in own:
            _, stem, suffix = _pieces(path)
            marked = MARKED.fullmatch(stem)
            twins = [beside.get((folder, marked[1])) if marked else None]
            twins += [roots.get((place, name)) for place in above for name in (stem, *([marked[1]] if marked else []))]
            if suffix == ".png" and beside[folder, stem] != path and png_colour(path) in MASK_COLOURS:
                twins.append(beside[folder, stem])
            twin = next((twin for twin in twins if twin is not None and twin != path), None)
            if twin is not None:
                found[path] = twin
    return found


def _pieces(path: Path) -> tuple[str, str, str]:
    """Folder, stem and extension in lower case."""
    folder, name = os.path.split(path)
    stem, suffix = os.path.splitext(name)
    return folder, stem, suffix.lower()


def _with_role(names: Sequence[str], base: Path) -> list[tuple[str, str]]:
    """The folder that holds each one with a role, and the role. names: from ``base`` down."""
    return [(str(base.joinpath(*names[:i])), kind) for i, name in enumerate(names) if (kind := role(name)) is not None]


def _by_roots(
    by_folder: Mapping[str, Sequence[Path]], parents: Mapping[str, Sequence[str]], base: Path
) -> dict[tuple[str, str], Path]:
    """Photos by stem and by each folder that they lie in at once, or in a subfolder of photos or of a split."""
    result = {}
    for folder, own in by_folder.items():
        places = [str(Path(folder)), *(place for place, kind in _with_role(parents[folder], base) if kind != "masks")]
        for path in own:
            for place in places:
                result[place, path.stem] = path
    return result
