"""COCO's panoptic format (https://cocodataset.org/#format-data): a PNG of segments for each photo, and their classes.

Written: ``panoptic.json`` and ``panoptic/<id>.png``, where a pixel's segment is red + 256 green + 65536 blue. Each part
of a class is a segment; the background is one of a category of its own, 'background' (isthing 0); 255 is
segment 0, as COCO has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tagmask.convert.masks.common import (
    BACKGROUND,
    Drawn,
    Labelled,
    Names,
    Size,
    Target,
    colour,
    find_file,
    name_of,
    relabel,
    write_coco,
)
from tagmask.data.json_stream import stream_json
from tagmask.data.names import check_name
from tagmask.data.pixels import open_picture
from tagmask.errors import DataError
from tagmask.files import written
from tagmask.parts import parts
from tagmask.types import IGNORE

FILE = "panoptic.json"
STUFF = 255
"""Id of the category 'background'."""


def write(target: Target, photos: Iterator[Labelled]) -> None:
    images: list[dict[str, Any]] = []

    def annotations() -> Iterator[dict[str, Any]]:
        for image, photo in enumerate(photos, 1):
            height, width = photo.labels.shape
            images.append({"id": image, "file_name": photo.name, "height": height, "width": width})
            segments, found = _segments(photo.labels)
            _write_segments(target.out / "panoptic" / f"{photo.id}.png", segments)
            yield {"image_id": image, "file_name": f"{photo.id}.png", "segments_info": found}

    categories = [{"id": STUFF, "name": BACKGROUND, "isthing": 0, "color": colour(0)}]
    for label, name in enumerate(target.classes, 1):
        categories.append({"id": label, "name": name, "isthing": 1, "color": colour(label)})
    write_coco(target.out / FILE, annotations(), categories, images)


def _segments(labels: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The segment of each pixel, and what they are."""
    segments = np.zeros(labels.shape, np.uint32)
    found: list[dict[str, Any]] = []
    for part in parts(labels, leave_out=(0, IGNORE)):
        number, (x, y, width, height) = len(found) + 1, part.box
        segments[y : y + height, x : x + width][part.inside] = number
        found.append({"id": number, "category_id": part.label, "bbox": part.box, "area": int(part.inside.sum())})
    ground = labels == 0
    if ground.any():
        rows, columns = (np.flatnonzero(ground.any(axis=axis)) for axis in (1, 0))
        x, y, size = int(columns[0]), int(rows[0]), np.ptp(columns) + 1
        box = (x, y, int(size), int(np.ptp(rows)) + 1)
        segments[ground] = len(found) + 1
        found.append({"id": len(found) + 1, "category_id": STUFF, "bbox": box, "area": int(ground.sum())})
    return segments, [segment | {"iscrowd": 0} for segment in found]


def _write_segments(path: Path, segments: np.ndarray) -> None:
    pixels = np.stack([segments >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    with written(path) as part:
        Image.fromarray(pixels).save(part, format="PNG")


def read(source: Path, names: Names) -> Iterator[Drawn]:
    """The PNG files lie in a folder that is named like the JSON file, as COCO's do."""
    path = find_file(source, FILE)
    categories: dict[Any, Any] = {}
    photos: dict[Any, Any] = {}
    for key, entry in stream_json(path, ("categories", "images", "annotations")):
        if key == "categories":
            categories[entry["id"]] = entry["name"]
        elif key == "images":
            photos[entry["id"]] = entry["file_name"]
        else:
            image = entry.get("image_id")
            yield Drawn((photos.get(image, f"image {image}"),), partial(_draw, path, entry, categories, names))


def _draw(path: Path, entry: dict[str, Any], categories: dict[Any, Any], names: Names, size: Size) -> np.ndarray:
    picture = path.with_suffix("") / check_name(entry["file_name"], path)
    with open_picture(picture, "a mask") as opened:
        if opened.mode != "RGB":
            raise DataError(f"{picture}: in mode {opened.mode}, not in colours, which are the numbers of segments.")
        pixels = np.asarray(opened).astype(np.uint32)
    table = {0: IGNORE}
    for segment in entry["segments_info"]:
        where = f"{path}: segment {segment['id']} of {entry['file_name']}"
        name = name_of(segment["category_id"], categories, where, "'categories'")
        table[segment["id"]] = names.label(name, where)
    return relabel(pixels[..., 0] | pixels[..., 1] << 8 | pixels[..., 2] << 16, table, picture)
