"""Pascal VOC's folders: palette PNGs of labels, lists of splits, photos.

Written: ``SegmentationClass/<id>.png`` (0 background, 1..C, 255), ``ImageSets/Segmentation/<split>.txt``,
``JPEGImages/<id>.<ext>`` (links to the photos), and ``labelmap.txt``, the name and colour of each label in their order,
as CVAT and Datumaro write and read it. Read: palette and grey PNGs by the order of ``labelmap.txt``, or else the run's
own numbers; PNGs in colours by those of ``labelmap.txt``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np

from tagmask.convert.masks.common import (
    Drawn,
    Labelled,
    Names,
    Size,
    Target,
    colour,
    find_masks,
    id_of,
    relabel,
)
from tagmask.data.collection import ColourMap
from tagmask.data.find import read_lines
from tagmask.data.pixels import open_picture, raw_mask, write_mask
from tagmask.files import write_text, written
from tagmask.types import IGNORE

LABELS = "labelmap.txt"
COLOURED = re.compile(r":[0-9]+,[0-9]+,[0-9]+:[^:]*:[^:]*$")
"""What tells a class whose name begins with '#' from a comment."""


def write(target: Target, photos: Iterator[Labelled]) -> None:
    lines = [f"{name}:{','.join(map(str, colour(label)))}::\n" for label, name in target.all_names.items()]
    write_text(target.out / LABELS, "# label:color_rgb:parts:actions\n" + "".join(lines))
    lists: dict[str, TextIO] = {}
    with ExitStack() as stack:
        for photo in photos:
            write_mask(target.out / "SegmentationClass" / f"{photo.id}.png", photo.labels)
            target.place(photo.image, f"JPEGImages/{photo.id}{photo.image.suffix}")
            if photo.split not in lists:
                path = target.out / "ImageSets" / "Segmentation" / f"{photo.split}.txt"
                part = stack.enter_context(written(path))
                lists[photo.split] = stack.enter_context(part.open("w", encoding="utf-8"))
            lists[photo.split].write(f"{photo.id}\n")


def read(source: Path, names: Names) -> Iterator[Drawn]:
    table = names.own
    colours: ColourMap | None = None
    if (source / LABELS).is_file():
        colours = {}
        found = []
        for number, line in read_lines(source / LABELS):
            if not line.startswith("#") or COLOURED.search(line):
                name, given, _, _ = line.rsplit(":", 3)
                red, green, blue = map(int, given.split(","))
                found.append(names.label(name, f"{source / LABELS}, line {number}"))
                colours[red, green, blue] = found[-1]
        table = dict(enumerate(found)) | {IGNORE: IGNORE}
    folder = source / "SegmentationClass"
    for path in find_masks(folder, "*.png"):
        yield Drawn((id_of(path, folder, ".png"),), partial(_draw, path, table, colours))


def _draw(path: Path, table: dict[int, int], colours: ColourMap | None, size: Size) -> np.ndarray:
    with open_picture(path, "a mask") as opened:
        coloured = opened.mode in ("RGB", "RGBA")
    values = raw_mask(path, colours)
    return values if coloured else relabel(values, table, path)
