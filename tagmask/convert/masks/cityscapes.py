"""Cityscapes' files (https://github.com/mcordts/cityscapesScripts): a grey PNG of labels, and one to look at.

Written: ``<id>_gtFine_labelIds.png`` (0 background, 1..C, 255), ``<id>_gtFine_color.png`` and ``labels.json``, the
name, id and colour of each label. Read: the same; without ``labels.json`` labels are the run's own numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

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
from tagmask.data.pixels import palette, raw_mask
from tagmask.files import read_json, write_json, written

LABELS, COLOURS, PHOTO = "_gtFine_labelIds.png", "_gtFine_color.png", "_leftImg8bit"


def write(target: Target, photos: Iterator[Labelled]) -> None:
    listed = [{"name": name, "id": label, "color": colour(label)} for label, name in target.all_names.items()]
    write_json(target.out / "labels.json", listed)
    for photo in photos:
        for suffix, values in ((LABELS, photo.labels), (COLOURS, palette()[photo.labels])):
            with written(target.out / f"{photo.id}{suffix}") as part:
                Image.fromarray(values).save(part, format="PNG")


def read(source: Path, names: Names) -> Iterator[Drawn]:
    listed = source / "labels.json"
    table = names.own
    if listed.is_file():
        table = {entry["id"]: names.label(entry["name"], listed) for entry in read_json(listed)}
    for path in find_masks(source, f"*{LABELS}"):
        name = id_of(path, source, LABELS)
        yield Drawn((name, name + PHOTO), partial(_draw, path, table))


def _draw(path: Path, table: dict[int, int], size: Size) -> np.ndarray:
    return relabel(raw_mask(path), table, path)
