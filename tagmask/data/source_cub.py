"""Source 'cub': Caltech-UCSD Birds-200-2011 in its own layout, for localisation: one class and one box a photo."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from tagmask.config import DataConfig
from tagmask.data.benchmarks import missing
from tagmask.data.collection import Box, Collection, Item, Problem
from tagmask.data.find import check_classes, data_root, image_folder, make_ids, read_lines
from tagmask.data.names import check_name
from tagmask.errors import DataError
from tagmask.registry import SOURCES

BENCHMARK = "cub200_2011"
FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt", "classes.txt")
FARTHEST = 1e6
"""Pixels from a photo's corner to a box's, at most."""


class Row(NamedTuple):
    """A line of a list: file and line for errors, and the fields after the number."""

    where: str
    fields: list[str]


def is_cub(root: Path) -> bool:
    """Whether the folder is laid out as CUB-200-2011."""
    return (root / FILES[0]).is_file() and any((root / name).is_file() for name in FILES[1:4])


@SOURCES.register("cub")
def cub(config: DataConfig) -> Collection:
    """``images/`` with images.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt, classes.txt.

    One tag an image, 'train' and 'test' as published, and each photo's box. There are no label maps: the set's own
    ``segmentations`` say how many annotators marked a pixel, not which class it is. Photos that are listed and not
    there are problems. Raises DataError naming the file and line that is wrong, and the archive where one is missing.
    """
    root = data_root(config)
    for name in FILES:
        if not (root / name).is_file():
            raise DataError(f"{root / name}: no such file.{missing(BENCHMARK, 'train')}")
    base = image_folder(config, root)
    images, labels, halves, boxes, numbers = (
        _table(root / name, 5 if name == "bounding_boxes.txt" else 2) for name in FILES
    )
    for name, rows in zip(FILES[1:4], (labels, halves, boxes)):
        for number in images.keys() ^ rows.keys():
            where = "has no line for" if number in images else "has a line for the unknown"
            raise DataError(f"{root / name}: {where} image {number}; its images are those of images.txt.")
    classes = check_classes([row.fields[0] for row in numbers.values()], str(root / "classes.txt"))
    order = {number: i for i, number in enumerate(numbers)}
    paths = {number: base / check_name(row.fields[0], row.where) for number, row in images.items()}
    places = {number: _box(row.fields, f"{row.where}, image {number}") for number, row in boxes.items()}
    there = {number: path for number, path in paths.items() if path.is_file()}
    if not there:
        raise DataError(f"{base}: none of the photos of {root / FILES[0]} is there.{missing(BENCHMARK, 'train')}")
    items: list[Item] = []
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for (number, path), id in zip(there.items(), make_ids(list(there.values()), base)):
        label, half = labels[number].fields[0], halves[number].fields[0]
        if label not in order:
            raise DataError(f"{labels[number].where}: image {number} has class {label}, which is unknown.")
        if half not in ("0", "1"):
            raise DataError(f"{halves[number].where}: image {number} has '{half}'; 1 trains, 0 is for test.")
        items.append(Item(id, path, (order[label],), None, (places[number],)))
        lists["train" if half == "1" else "test"].append(id)
    absent = [path for number, path in paths.items() if number not in there]
    gone = [Problem(str(path), "listed in images.txt, but not there") for path in absent]
    return Collection("cub", root, classes, items, dict(lists), gone, None, BENCHMARK, lists)


def _table(path: Path, columns: int) -> dict[str, Row]:
    """Lines by their first field, which is a number and unique."""
    rows: dict[str, Row] = {}
    for line, text in read_lines(path):
        # A photo's name is the last field of its line and may hold blanks.
        fields = text.split(None, columns - 1)
        if len(fields) != columns or not fields[0].isdigit():
            raise DataError(f"{path}, line {line}: expected a number and {columns - 1} more fields, found '{text}'.")
        if fields[0] in rows:
            raise DataError(f"{path}, line {line}: number {fields[0]} is there twice.")
        rows[fields[0]] = Row(f"{path}, line {line}", fields[1:])
    return rows


def _box(fields: list[str], where: str) -> Box:
    """The box of a line. What reaches out of its photo is found by ``fingerprint``, which opens the photos."""
    try:
        x, y, width, height = map(float, fields)
    except ValueError as error:
        raise DataError(f"{where}: a box is four numbers, x y width height, found '{' '.join(fields)}'.") from error
    box = (x, y, x + width, y + height)
    if not all(math.isfinite(value) and -1 <= value <= FARTHEST for value in box):
        raise DataError(f"{where}: the box '{' '.join(fields)}' reaches out of any photo.")
    if width <= 0 or height <= 0:
        raise DataError(f"{where}: a box of {width:g}x{height:g} pixels is empty.")
    return box
