"""Ultralytics' text format for segmentation (https://docs.ultralytics.com/datasets/segment): a polygon a line.

Written: ``labels/<split>/<id>.txt``, ``images/<split>/<id>.<ext>`` (links to the photos) and ``data.yaml``. A line is a
part of a class: its number from 0, then x and y of the points in shares of width and height. Holes are joined
to the outline by a zero-width cut. The format knows no unsure pixels: 255 becomes background.

Points lie a quarter of a pixel outside the centres of a part's outermost pixels. So the mask comes back exactly by the
centres of pixels, and also where points are cut to whole pixels and filled with their border, as trainers do with
OpenCV.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tagmask.convert.masks.common import (
    REST,
    Drawn,
    Labelled,
    Names,
    Size,
    Target,
    find_file,
    find_masks,
    id_of,
    name_of,
)
from tagmask.convert.shapes import draw, joined, outlines, straightened
from tagmask.errors import DataError
from tagmask.files import read_text, write_text
from tagmask.parts import parts
from tagmask.types import IGNORE
from tagmask.yaml_text import read_yaml_file, to_yaml

FILE = "data.yaml"
OUTWARD = 0.75


def write(target: Target, photos: Iterator[Labelled]) -> None:
    splits: dict[str, None] = {}
    for photo in photos:
        splits[photo.split] = None
        height, width = photo.labels.shape
        lines = []
        for part in parts(photo.labels, leave_out=(0, IGNORE)):
            points = straightened(joined(outlines(part, OUTWARD))) / (width, height)
            lines.append(" ".join([str(part.label - 1), *(f"{share:.7f}" for share in points.ravel())]) + "\n")
        write_text(target.out / "labels" / photo.split / f"{photo.id}.txt", "".join(lines))
        target.place(photo.image, f"images/{photo.split}/{photo.id}{photo.image.suffix}")
    found = {split: f"images/{split}" for split in splits if split != REST}
    content = found | {"names": dict(enumerate(target.classes))}
    write_text(target.out / FILE, to_yaml(content))


def read(source: Path, names: Names) -> Iterator[Drawn]:
    """Photos that have a file; an empty one is background."""
    path = find_file(source, FILE)
    settings = read_yaml_file(path)
    given = settings.get("names") if isinstance(settings, dict) else None
    if not isinstance(given, list | dict):
        raise DataError(f"{path}: holds no 'names', a list of the classes.")
    listed = enumerate(given) if isinstance(given, list) else given.items()
    classes = {int(number): str(name) for number, name in listed}
    splits = {Path(place).name for place in settings.values() if isinstance(place, str)} | {REST}
    folder = path.parent / "labels"
    for path in find_masks(folder, "*.txt"):
        name = id_of(path, folder, ".txt")
        split, _, rest = name.partition("/")
        yield Drawn((rest if rest and split in splits else name,), partial(_draw, path, classes, names))


def _draw(path: Path, classes: dict[int, str], names: Names, size: Size) -> np.ndarray:
    labels = np.zeros(size, np.uint8)
    for number, line in enumerate(read_text(path).splitlines(), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        first, *shares = line.split()
        if len(shares) == 4:
            raise DataError(f"{where}: a box, and no polygon. Export segments.")
        label = names.label(name_of(int(first), classes, where, f"'names' of {FILE}"), where)
        draw(labels, [_points(shares, size)], label)
    return labels


def _points(shares: Sequence[str], size: Size) -> np.ndarray:
    return np.array(shares, dtype=float).reshape(-1, 2) * size[::-1]
