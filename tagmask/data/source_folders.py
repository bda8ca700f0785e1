"""Source 'folders': one folder a class, whose name is the tag of the photos in it."""

from __future__ import annotations

from pathlib import Path

from tagmask.config import DataConfig
from tagmask.data.collection import Collection
from tagmask.data.find import check_classes, data_root, given_classes, mask_folder, resolve
from tagmask.data.names import flaw
from tagmask.data.source_table import assemble, tag_indices
from tagmask.data.walk import find_images
from tagmask.errors import DataError
from tagmask.registry import SOURCES

NO_CLASS = "background"
NO_TAGS = "unlabelled"
SPLIT_NAMES = frozenset(("train", "val", "valid", "validation", "test"))


def class_folders(config: DataConfig, root: Path) -> tuple[Path, list[str]]:
    """The folder that is looked in, and the class folders there that hold images, sorted; 'images' alone is none."""
    base = resolve(config.images, root, "images") if config.images is not None else root
    masks = mask_folder(config, root)
    found = [f for f in base.glob("*") if f.is_dir() and not (f.name.startswith(".") or flaw(f.name)) and f != masks]
    names = sorted(f.name for f in found if f.name not in (NO_CLASS, NO_TAGS) and find_images(f, masks))
    return base, names if names != ["images"] else []


@SOURCES.register("folders")
def folders(config: DataConfig) -> Collection:
    """Photos in ``root/<class>/``, at any depth below: one tag an image, the folder's name.

    A folder called 'background' holds images of none of the classes; one called 'unlabelled', and images right in
    the root, are unlabelled. Raises DataError when there is no class folder, or one that is not in ``data.classes``.
    """
    root = data_root(config)
    base, names = class_folders(config, root)
    if not names:
        raise DataError(f"{base}: no folders of images, one a class, are there.")
    if SPLIT_NAMES.issuperset(names):
        raise DataError(f"{base}: the folders are splits, not classes. Set data.root to '{base / names[-1]}', say.")
    classes = given_classes(config, root) or check_classes(names, str(base))
    position = {name: i for i, name in enumerate(classes)}
    by_folder = {name: tag_indices([name], position, str(base / name)) for name in names} | {NO_CLASS: ()}
    images = find_images(base, mask_folder(config, root))
    tags = [by_folder.get(image.relative_to(base).parts[0]) for image in images]
    return assemble("folders", config, root, base, images, tags, classes, [])
