"""``open_data``: which source fits the data, its collection, and the final splits."""

from __future__ import annotations

from pathlib import Path

from tagmask.config import DataConfig
from tagmask.data.collection import Collection
from tagmask.data.find import data_root, image_folder
from tagmask.data.source_coco import coco_lists
from tagmask.data.source_cub import is_cub
from tagmask.data.source_folders import class_folders
from tagmask.data.source_table import TABLE_NAMES, table_path
from tagmask.data.source_voc import is_voc
from tagmask.data.splits import assign_splits
from tagmask.data.walk import find_images, none_found
from tagmask.errors import DataError
from tagmask.registry import SOURCES


def open_data(config: DataConfig, seed: int = 0) -> Collection:
    """Read the data set that a configuration names and fix its train, val and test lists.

    ``source='auto'`` takes the layouts of VOC, COCO and CUB, then a table of tags, then class folders, whichever is
    there first. ``seed`` decides which share is held out where there is no val list. Raises DataError.
    """
    source = detect(config, data_root(config)) if config.source == "auto" else config.source
    collection = SOURCES.get(source)(config)
    bases = [image_folder(config, collection.root), collection.root]
    return assign_splits(collection, config, seed, bases)


def detect(config: DataConfig, root: Path) -> str:
    """Name of the source that fits a folder. Raises DataError that says what was looked for."""
    if is_voc(root):
        return "voc"
    if config.tags is None and coco_lists(root):
        return "coco"
    if config.tags is None and is_cub(root):
        return "cub"
    if table_path(config, root) is not None:
        return "table"
    if class_folders(config, root)[1]:
        return "folders"
    have = "There are images, but no tags" if find_images(root) else none_found(root)
    raise DataError(
        f"{root}: {have}. Looked for {' or '.join(TABLE_NAMES)} (columns image,tags), for one folder a class, and for "
        "the layouts of VOC (JPEGImages with ImageSets/Segmentation or Annotations), COCO "
        "(annotations/instances_train2014.json) and CUB-200-2011 (images.txt)."
    )
