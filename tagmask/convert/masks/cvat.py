"""CVAT for images 1.1 (https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/): XML with masks and polygons.

Written: ``annotations.xml``, a mask for each part of a class, of 255 as label 'unsure'; ``labels.json``, the labels of
a new task. Read: masks and polygons; of those that overlap the later or the one of greater ``z_order`` is on top.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from tagmask.convert.masks.common import (
    Drawn,
    Labelled,
    Names,
    Size,
    Target,
    check_declared,
    find_file,
    hex_colour,
)
from tagmask.convert.shapes import draw, inside_runs
from tagmask.errors import DataError
from tagmask.files import write_text, written
from tagmask.parts import parts, run_lengths

FILE = "annotations.xml"
Shape = tuple[str, dict[str, str]]
"""Kind and attributes of an element."""


def write(target: Target, photos: Iterator[Labelled]) -> None:
    names = target.names
    task = [{"name": name, "color": hex_colour(label), "attributes": []} for label, name in names.items()]
    write_text(target.out / "labels.json", json.dumps(task, indent=1, ensure_ascii=False) + "\n")
    with written(target.out / FILE) as place, place.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        file.write("<meta><task><labels>\n")
        for label, name in names.items():
            file.write(f"<label><name>{escape(name)}</name><color>{hex_colour(label)}</color></label>\n")
        file.write("</labels></task></meta>\n")
        for number, photo in enumerate(photos):
            height, width = photo.labels.shape
            file.write(f'<image id="{number}" name={quoteattr(photo.name)} width="{width}" height="{height}">\n')
            for part in parts(photo.labels):
                runs = run_lengths(np.flatnonzero(part.inside), part.inside.size)
                box = zip(("left", "top", "width", "height"), part.box)
                given = {"label": names[part.label], "source": "auto", "occluded": "0", "z_order": "0"}
                given |= {"rle": ", ".join(map(str, runs)), **{key: str(value) for key, value in box}}
                file.write("<mask " + " ".join(f"{key}={quoteattr(value)}" for key, value in given.items()) + "/>\n")
            file.write("</image>\n")
        file.write("</annotations>\n")


def read(source: Path, names: Names) -> Iterator[Drawn]:
    """Photos of the file in its order; those without a shape are background."""
    path = find_file(source, FILE)
    try:
        with path.open("rb") as file:
            top = None
            for event, element in ElementTree.iterparse(file, ("start", "end")):
                if event == "start":
                    top = element if top is None else top
                    continue
                if element.tag == "track":
                    raise DataError(f"{path}: 'CVAT for video'. Export the task as 'CVAT for images 1.1'.")
                if element.tag == "image":
                    shapes = [(shape.tag, dict(shape.attrib)) for shape in element if shape.tag != "tag"]
                    image = dict(element.attrib)
                    name = image.get("name", f"image {image.get('id')}")
                    yield Drawn((name,), partial(_draw, path, image, shapes, names))
                    top.clear()  # type: ignore[union-attr]
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not valid XML ({error}). A download may have broken off: get it again.") from error


def _draw(path: Path, image: dict[str, str], shapes: list[Shape], names: Names, size: Size) -> np.ndarray:
    where = f"{path}: image '{image['name']}'"
    check_declared(image["width"], image["height"], size, where)
    labels = np.zeros(size, np.uint8)
    for kind, given in sorted(shapes, key=lambda shape: int(shape[1].get("z_order", 0))):
        label = names.label(given["label"], where)
        if kind == "polygon":
            draw(labels, [[point.split(",") for point in given["points"].split(";")]], label)
        elif kind == "mask":
            left, top, width, height = (int(given[key]) for key in ("left", "top", "width", "height"))
            if min(left, top) < 0 or min(width, height) < 1 or left + width > size[1] or top + height > size[0]:
                raise DataError(f"{where}: a mask that does not lie on the photo.")
            runs = [int(length) for length in given["rle"].split(",")]
            inside = inside_runs(runs, width * height).reshape(height, width)
            labels[top : top + height, left : left + width][inside] = label
        else:
            raise DataError(f"{where}: a '{kind}', which is no mask. Draw masks or polygons.")
    return labels
