"""Source 'masks': photos with true masks and no tags. And tags that are read from true masks, for any source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from tagmask.config import DataConfig
from tagmask.data.agreement import mask_warnings
from tagmask.data.collection import Collection, ColourMap, Item, Problem
from tagmask.data.find import check_classes, data_root, given_classes, image_folder, mask_folder, resolve
from tagmask.data.layout import SPLITS
from tagmask.data.pixels import colour_names, raw_mask
from tagmask.data.source_table import assemble
from tagmask.data.spelling import path_start
from tagmask.data.splits import column_splits
from tagmask.data.walk import none_found, survey
from tagmask.errors import DataError
from tagmask.registry import SOURCES
from tagmask.types import IGNORE


@SOURCES.register("masks")
def masks(config: DataConfig) -> Collection:
    """Photos and the masks in ``data.masks``, or in a folder of a usual name; no tags yet (see ``tagged_by_masks``).

    Classes are ``data.classes``, or else ``classes.txt`` in the root, or else the names in ``data.colour_map``; where
    there are none of these, none yet. Photos in folders called train, val or test are of these splits, unless there
    are lists. Raises DataError without photos, without a folder of masks, and where ``data.tags_from`` is not 'masks'.
    """
    root = data_root(config)
    if config.tags_from != "masks":
        raise DataError(f"{root}: data.source=masks has no tags. To learn from the masks, set data.tags_from=masks.")
    base, folder = image_folder(config, root), mask_folder(config, root)
    if folder is None:
        raise DataError(f"{root}: there is no folder of masks to learn from. Set data.masks to it.")
    photos = survey(base, folder)
    if not photos.images:
        raise DataError(f"{base}: {none_found(photos)}. Set data.images to the folder of the photos.")
    classes = given_classes(config, root)
    if classes is None and config.colour_map is not None:
        path = resolve(config.colour_map, root, "colour_map")
        classes = check_classes(colour_names(path), str(path))
    collection = assemble("masks", config, root, photos, [None] * len(photos.images), classes or [], [])
    start = path_start(base)
    parts = [image.as_posix()[start:].split("/") for image in photos.images]
    roles = [SPLITS.get(names[0].lower()) if len(names) > 1 else None for names in parts]
    return replace(collection, splits=collection.splits or column_splits(collection.items, roles))


def tagged_by_masks(collection: Collection) -> Collection:
    """The collection with the classes in each photo's mask as its tags, whatever tags it had.

    A photo is unlabelled where its mask is missing, cannot be read, holds nothing but 255, or has values that are no
    class; the last are listed. A collection without classes takes the masks' values 1 to their largest, and names them
    so. Reads all masks. Raises DataError where no mask shows a class, and where most values up to the largest are in
    no mask.
    """
    with ThreadPoolExecutor(2) as pool:  # Pillow decodes outside Python's lock
        found = list(pool.map(partial(_values, colours=collection.colour_map), collection.items))
    seen = Counter(value for values in found for value in values)
    classes = collection.classes or _numbered(collection, seen)
    tags: list[tuple[int, ...] | None] = []
    problems = list(collection.problems)
    for item, values in zip(collection.items, found):
        wrong = sorted(value for value in values - {IGNORE} if not 0 <= value <= len(classes))
        if wrong:
            what = f"value {wrong[0]} in a mask of {len(classes)} classes: the photo stays without tags"
            problems.append(Problem(str(item.mask), what))
        known = values - {IGNORE} and not wrong
        tags.append(tuple(sorted(value - 1 for value in values - {0, IGNORE})) if known else None)
    if not any(tags):
        raise _none_shown(collection, seen, len(classes))
    items = [replace(item, tags=own) for item, own in zip(collection.items, tags)]
    return replace(collection, items=items, classes=classes, problems=problems, tags_of_masks=True)


def _values(item: Item, colours: ColourMap | None) -> set[int]:
    """The values in a photo's mask; none where there is no mask that can be read, as the fingerprint then says."""
    if item.mask is None:
        return set()
    try:
        return set(np.unique(raw_mask(item.mask, colours)).tolist())
    except DataError:
        return set()


def _numbered(collection: Collection, seen: Counter[int]) -> list[str]:
    """Classes called by their values, 1 to the largest one."""
    used = {value for value in seen if 0 < value < IGNORE}
    if not used or min(seen) < 0 or max(seen) > IGNORE:
        raise _none_shown(collection, seen, 0)
    if 2 * len(used) < max(used):
        raise DataError(
            f"{_place(collection)}: masks hold values up to {max(used)}, and only {len(used)} of them. Write all class "
            "names in the order of their values into classes.txt (or data.classes), or save classes as 1, 2, …"
        )
    return [str(value) for value in range(1, max(used) + 1)]


def _none_shown(collection: Collection, seen: Counter[int], classes: int) -> DataError:
    """What is wrong with masks of which none shows a class."""
    if not seen:
        bad = next((item.mask for item in collection.items if item.mask is not None), None)
        why = f"no photo has a mask that can be read{f' (such as {bad.name})' if bad else ''}"
        way = "Masks are named as their photos; those in colours need data.colour_map."
    else:
        values = ", ".join(map(str, sorted(seen)[:8]))
        why = f"no mask shows a class (values {values}{', …' if len(seen) > 8 else ''})"
        way = " ".join(mask_warnings(seen, classes)) or "Masks hold 0 for the background, 1, 2, … for classes."
    return DataError(f"{_place(collection)}: {why}, and tags were to be read from masks. {way}")


def _place(collection: Collection) -> Path:
    """The folder of the first mask, or else the root."""
    paths: Sequence[Path] = [item.mask for item in collection.items if item.mask is not None]
    return paths[0].parent if paths else collection.root
