"""GeoJSON (RFC 7946) in pixels of the photo, as QuPath reads and writes it: x to the right, y downwards from the top.

Written: ``<id>.geojson`` with the photo's width and height, and a polygon with its holes for each part of a class, of
255 as 'unsure'; ``properties`` have the class, its label, and QuPath's classification with a colour. The outlines pass
half-way between the centres of pixels. Read: polygons of these and of QuPath, the later ones on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tagmask.convert.masks.common import (
    Drawn,
    Labelled,
    Names,
    Size,
    Target,
    check_declared,
    colour,
    find_masks,
    id_of,
    write_list,
)
from tagmask.convert.shapes import draw, outlines, straightened
from tagmask.errors import DataError
from tagmask.files import read_json, written
from tagmask.parts import Part, parts

SUFFIX = ".geojson"


def write(target: Target, photos: Iterator[Labelled]) -> None:
    for photo in photos:
        features = (_feature(part, target.names[part.label]) for part in parts(photo.labels))
        with written(target.out / f"{photo.id}{SUFFIX}") as place, place.open("w", encoding="utf-8") as file:
            height, width = photo.labels.shape
            file.write(f'{{"type": "FeatureCollection", "width": {width}, "height": {height}, "features": ')
            write_list(file, features)
            file.write("}\n")


def _feature(part: Part, name: str) -> dict[str, Any]:
    rings = [straightened(ring) for ring in outlines(part)]
    kind = {"name": name, "color": colour(part.label)}
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[*ring.tolist(), ring[0].tolist()] for ring in rings]},
        "properties": {"objectType": "annotation", "class": name, "label": part.label, "classification": kind},
    }


def read(source: Path, names: Names) -> Iterator[Drawn]:
    for path in find_masks(source, f"*{SUFFIX}"):
        yield Drawn((id_of(path, source, SUFFIX),), partial(_draw, path, names))


def _draw(path: Path, names: Names, size: Size) -> np.ndarray:
    content = read_json(path)
    content = content if isinstance(content, dict) else {"features": content}
    check_declared(content.get("width", size[1]), content.get("height", size[0]), size, str(path))
    labels = np.zeros(size, np.uint8)
    for number, feature in enumerate(content["features"], 1):
        where = f"{path}: feature {number}"
        given, shape = (feature.get(key) for key in ("properties", "geometry"))
        for key, value in (("properties", given), ("geometry", shape)):
            if not isinstance(value, dict):
                raise DataError(f"{where}: has no {key}. Export it again.")
        label = names.label((given.get("classification") or {}).get("name", given.get("class")), where)
        if shape["type"] not in ("Polygon", "MultiPolygon"):
            raise DataError(f"{where}: a {shape['type']}, and no polygon. Make polygons of it.")
        for rings in [shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"]:
            draw(labels, rings, label)
    return labels
