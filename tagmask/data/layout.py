"""What folders are called that hold splits, photos or masks, not a class; and masks that lie among photos."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

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
MARKED = re.compile(
    r"(.+?)[ _.-]+(?:mask|seg|segm|segmentation|label|gt|groundtruth|annotation|ann)s?(?:[ _-]?\d+)?", re.I
)
"""A stem that ends as those of masks do; its group is the photo's."""


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
    """The folders right in a folder, sorted, links to folders too; hidden ones are left out."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
    # Of links a Path is asked: it says no where they lead in a circle, an entry raises an error.
    return sorted(Path(e.path) for e in found if (Path(e.path) if e.is_symlink() else e).is_dir())


def masks_among(photos: Sequence[Path], base: Path) -> dict[Path, Path]:
    """Photos that look like the mask of another one, which is the value.

    'x_mask.png' or 'x.png' beside 'x.jpg', and 'labels/x.png' beside 'images/x.jpg' or 'x.jpg'.
    """
    beside = {path.parent / path.stem: path for path in photos if path.suffix.lower() != ".png"}
    beside = {path.parent / path.stem: path for path in photos} | beside
    roots = _by_roots(photos, base) if any(role(name) == "masks" for name in _folder_names(photos, base)) else {}
    found = {}
    for path in photos:
        marked = MARKED.fullmatch(path.stem)
        stems = [path.stem, *([marked[1]] if marked else [])]
        near = stems if path.suffix.lower() == ".png" else stems[1:]
        twins = [beside.get(path.parent / stem) for stem in near]
        parts = path.relative_to(base).parts[:-1]
        above = [base.joinpath(*parts[:i]) for i, name in enumerate(parts) if role(name) == "masks"]
        twins += [roots.get((folder, stem)) for folder in above for stem in stems]
        twin = next((twin for twin in twins if twin is not None and twin != path), None)
        if twin is not None:
            found[path] = twin
    return found


def _folder_names(photos: Sequence[Path], base: Path) -> set[str]:
    return {name for parent in {path.parent for path in photos} for name in parent.relative_to(base).parts}


def _by_roots(photos: Sequence[Path], base: Path) -> dict[tuple[Path, str], Path]:
    """Photos by stem and by each folder that they lie in at once, or in a subfolder of photos or of a split."""
    result = {}
    for path in photos:
        parts = path.relative_to(base).parts[:-1]
        result[path.parent, path.stem] = path
        for i, name in enumerate(parts):
            if role(name) not in (None, "masks"):
                result[base.joinpath(*parts[:i]), path.stem] = path
    return result
