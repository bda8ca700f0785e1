"""COCO's instances (https://cocodataset.org/#format-data): an object for each part of a class, as packed run lengths.

Written: ``annotations.json``. 255 becomes objects of the category 'unsure' with ``iscrowd`` 1, which COCO's own
evaluation leaves out of account. Read: run lengths and polygons of any tool; a later object lies over an earlier one,
crowds under all objects as 255.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tagmask.convert.coco import decode
from tagmask.convert.masks.common import (
    Drawn,
    Labelled,
    Names,
    Size,
    Spill,
    Target,
    check_declared,
    find_file,
    name_of,
    write_coco,
)
from tagmask.data.json_stream import stream_json
from tagmask.errors import DataError
from tagmask.parts import coco_objects
from tagmask.types import IGNORE

FILE = "annotations.json"


def write(target: Target, photos: Iterator[Labelled]) -> None:
    """Raises DataError without pycocotools, which packs the run lengths."""
    images: list[dict[str, Any]] = []

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for image, photo in enumerate(photos, 1):
            height, width = photo.labels.shape
            images.append({"id": image, "file_name": photo.name, "height": height, "width": width})
            for entry in coco_objects(photo.labels):
                number += 1
                crowd = int(entry["category_id"] == IGNORE)
                yield {"id": number, "image_id": image, **entry, "iscrowd": crowd}

    categories = [{"id": label, "name": name} for label, name in target.names.items()]
    write_coco(target.out / FILE, annotations(), categories, images)


def read(source: Path, names: Names) -> Iterator[Drawn]:
    """Photos of the file in its order; those without an object are background."""
    path = find_file(source, FILE)
    categories: dict[Any, Any] = {}
    images: list[dict[str, Any]] = []
    objects = Spill()
    for key, entry in stream_json(path, ("categories", "images", "annotations")):
        if key == "categories":
            categories[entry["id"]] = entry["name"]
        elif key == "images":
            images.append({name: entry[name] for name in ("id", "file_name", "width", "height")})
        else:
            objects.add(entry["image_id"], entry)
    lost = objects.keys() - {image["id"] for image in images}
    if lost:
        raise DataError(f"{path}: there are annotations of image {min(map(str, lost))}, which is not in its list.")
    for image in images:
        yield Drawn((image["file_name"],), partial(_draw, path, image, objects, categories, names))


def _draw(
    path: Path, image: dict[str, Any], objects: Spill, categories: dict[Any, Any], names: Names, size: Size
) -> np.ndarray:
    check_declared(image["width"], image["height"], size, f"{path}: image {image['id']}")
    labels = np.zeros(size, np.uint8)
    for entry in sorted(objects.take(image["id"]), key=lambda entry: not entry.get("iscrowd")):
        where = f"{path}: annotation {entry.get('id')}"
        label = names.label(name_of(entry["category_id"], categories, where, "'categories'"), where)
        labels[decode(entry["segmentation"], size, where)] = IGNORE if entry.get("iscrowd") else label
    return labels
