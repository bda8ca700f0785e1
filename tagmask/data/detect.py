"""``open_data``: which source fits the data, its collection, and the final splits."""

from __future__ import annotations

import shlex
from pathlib import Path

from tagmask.config import DataConfig
from tagmask.data.collection import Collection
from tagmask.data.find import data_root, image_folder, mask_folder
from tagmask.data.layout import role, subfolders
from tagmask.data.review import Journal, reviewed
from tagmask.data.shards import ENDING
from tagmask.data.source_coco import coco_lists
from tagmask.data.source_cub import is_cub
from tagmask.data.source_folders import class_folders
from tagmask.data.source_masks import tagged_by_masks
from tagmask.data.source_voc import is_voc
from tagmask.data.splits import assign_splits
from tagmask.data.table_file import TABLE_NAMES, WORKBOOKS, table_path
from tagmask.data.walk import holds_images, none_found, survey
from tagmask.errors import DataError
from tagmask.registry import SOURCES


def open_data(config: DataConfig, seed: int = 0) -> Collection:
    """Read the data set that a configuration names and fix its train, val and test lists.

    ``source='auto'`` takes the layouts of VOC, COCO and CUB, then tar shards where no photos are beside them, then a
    table of tags, then class folders, whichever is there first. With ``data.tags_from`` 'masks' tags are the classes in
    the masks, and no table or class folder is looked for. ``seed`` decides which share is held out where there is no
    val list. The decisions of a review come last (``data.reviewed``). Raises DataError.
    """
    source = config.source
    if source == "auto":
        source = "shards" if config.shards is not None else detect(config, data_root(config))
    collection = SOURCES.get(source)(config)
    if config.tags_from == "masks":
        collection = tagged_by_masks(collection)
    bases = [image_folder(config, collection.root), collection.root]
    collection = assign_splits(collection, config, seed, bases)
    if config.reviewed is None:
        return collection
    journal = Journal(config.reviewed)
    if not journal.path.is_file():
        raise DataError(f"{journal.path} (data.reviewed): there is no review; 'tagmask view RUN' makes one.")
    return reviewed(collection, journal.decisions(), journal.path)


def detect(config: DataConfig, root: Path) -> str:
    """Name of the source that fits a folder. Raises DataError that says what was looked for."""
    if is_voc(root):
        return "voc"
    if config.tags is None and coco_lists(root):
        return "coco"
    if config.tags is None and is_cub(root):
        return "cub"
    if any(root.glob(f"*{ENDING}")) and config.images is None and not holds_images(root):
        return "shards"
    if config.tags_from == "masks":
        return "masks"
    if table_path(config, root) is not None:
        return "table"
    if class_folders(config, root).names:
        return "folders"
    raise DataError(
        f"{root}: {_what_is_there(config, root)}. Write {TABLE_NAMES[0]} there (columns image,tags). Looked for "
        f"{' and '.join(TABLE_NAMES)}, for one folder a class, and for the layouts of VOC (JPEGImages with "
        "ImageSets/Segmentation or Annotations), COCO (annotations/instances_train2014.json) and CUB-200-2011 "
        f"(images.txt).{_other_places(config, root)}{_masks_to_learn_from(config, root)}"
    )


def _what_is_there(config: DataConfig, root: Path) -> str:
    if not holds_images(root):
        return none_found(survey(root))
    images, masks = image_folder(config, root), mask_folder(config, root)
    where = f" in {images.name} and masks in {masks.name}" if masks is not None and images != root else ""
    return f"There are images{where}, but no tags"


def _masks_to_learn_from(config: DataConfig, root: Path) -> str:
    masks = mask_folder(config, root)
    if masks is None or not holds_images(root):
        return ""
    return f" To learn from the masks in {masks} instead of tags, set data.tags_from=masks."


def _other_places(config: DataConfig, root: Path) -> str:
    """A sentence that names another table in the folder, or folders in that of the photos that may be classes."""
    suffixes = (".csv", ".tsv", ".jsonl", *WORKBOOKS)
    table = next((path for path in sorted(root.iterdir()) if path.suffix.lower() in suffixes), None)
    if table is not None:
        return f" Are the tags in {table.name}? Set {shlex.quote(f'data.tags={table}')}."
    images = image_folder(config, root)
    if images != root and any(role(f.name) is None and holds_images(f) for f in subfolders(images)):
        return f" Are the folders in {images.name} classes? Set {shlex.quote(f'data.root={images}')}."
    return ""
