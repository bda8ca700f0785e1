"""Source 'folders': one folder a class, whose name is the tag of the photos in it."""

from __future__ import annotations

from pathlib import Path

from tagmask.config import DataConfig
from tagmask.data.collection import Collection
from tagmask.data.find import IMAGE_FOLDERS, check_classes, data_root, find_images, given_classes, mask_folder, resolve
from tagmask.data.source_table import assemble, tag_indices
from tagmask.errors import DataError
from tagmask.registry import SOURCES

NO_CLASS = "background"
NO_TAGS = "unlabelled"
SPLIT_NAMES = frozenset(("train", "val", "valid", "validation", "test"))


def class_folders(base: Path, masks: Path | None) -> list[str]:
    """Folders in ``base`` that hold images, but for the masks' folder, sorted."""
    found = (f for f in base.iterdir() if f.is_dir() and not f.name.startswith(".") and f != masks)
    return sorted(f.name for f in found if find_images(f, masks))


@SOURCES.register("folders")
def folders(config: DataConfig) -> Collection:
    """Photos in ``root/<class>/``, at any depth below: one tag an image, the folder's name.

    A folder called 'background' holds images of none of the classes; one called 'unlabelled', and images right in
    the root, are unlabelled. Raises DataError when there is no class folder, or one that is not in ``data.classes``.
    """
    root = data_root(config)
    base = resolve(config.images, root, "images") if config.images is not None else root
    masks = mask_folder(config, root)
    names = class_folders(base, masks)
    wanted = [n for n in names if n not in (NO_CLASS, NO_TAGS)]
    if not wanted or wanted == list(IMAGE_FOLDERS[:1]):
        raise DataError(f"{base}: no folders of images, one a class, are there.")
    if SPLIT_NAMES.issuperset(wanted):
        raise DataError(f"{base}: the folders are splits, not classes. Set data.root to '{base / wanted[-1]}', say.")
    classes = given_classes(config, root) or check_classes(wanted, str(base))
    position = {name: i for i, name in enumerate(classes)}
    by_folder = {name: tag_indices([name], position, str(base / name)) for name in wanted} | {NO_CLASS: ()}
    images = find_images(base, masks)
    tags = [by_folder.get(image.relative_to(base).parts[0]) for image in images]
    return assemble("folders", config, root, base, images, tags, classes, [])
