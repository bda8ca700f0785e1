"""Source 'table': photos in a folder, tags in a CSV or JSONL file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagmask.config import DataConfig
from tagmask.data.collection import Collection, Item, Problem
from tagmask.data.find import (
    NameIndex,
    check_classes,
    data_root,
    given_classes,
    image_folder,
    make_ids,
    mask_folder,
    pair_masks,
    read_lines,
    resolve,
)
from tagmask.data.pixels import read_colour_map
from tagmask.data.splits import own_splits
from tagmask.data.walk import find_images, none_found, survey
from tagmask.errors import DataError, nearest
from tagmask.files import read_text
from tagmask.registry import SOURCES

IMAGE_COLUMNS = ("image", "file", "filename", "id")
TAG_COLUMNS = ("tags", "tag", "labels", "label", "classes", "class")
TABLE_NAMES = ("tags.csv", "tags.jsonl")
NUMBERS = {"0": False, "0.0": False, "1": True, "1.0": True}


@dataclass(frozen=True)
class Row:
    """One line of a table: its number, the image's name as written, and its tags."""

    line: int
    name: str
    tags: tuple[str, ...]


@SOURCES.register("table")
def table(config: DataConfig) -> Collection:
    """Photos tagged by a CSV or JSONL file (see ``read_table``).

    Images without a row are unlabelled, rows without an image are listed as problems. Classes are ``data.classes``,
    or else ``classes.txt`` in the root, or else one-hot columns in their order, or else the tags sorted.
    Raises DataError on anything that cannot be understood.
    """
    root = data_root(config)
    path = table_path(config, root)
    if path is None:
        raise DataError(f"{root}: neither {' nor '.join(TABLE_NAMES)} is there. Write one, or set data.tags.")
    rows, columns = read_table(path, config.separator)
    classes = given_classes(config, root)
    if classes is None:
        names = columns or sorted({t for r in rows for t in r.tags})
        if not names:
            raise DataError(f"{path}: no photo there has a tag. Name what is in them, or the classes in data.classes.")
        classes = check_classes(names, str(path))
    base, masks = image_folder(config, root), mask_folder(config, root)
    images = find_images(base, masks)
    if not images:
        none = none_found(base, masks)
        raise DataError(f"{base}: {none}. Set data.images to the folder that {path} names them from.")
    tags, problems = match_rows(rows, images, [base, root], classes, path)
    return assemble("table", config, root, base, images, tags, classes, problems)


def assemble(
    source: str,
    config: DataConfig,
    root: Path,
    base: Path,
    images: Sequence[Path],
    tags: Sequence[tuple[int, ...] | None],
    classes: list[str],
    problems: list[Problem],
) -> Collection:
    """The collection of images with their tags: ids, masks, the colour map and the root's own split lists."""
    place = mask_folder(config, root)
    masks, orphans = pair_masks(images, base, place, config.masks is not None)
    items = [Item(*fields) for fields in zip(make_ids(images, base), images, tags, masks)]
    colours = None
    if config.colour_map is not None:
        colours = read_colour_map(resolve(config.colour_map, root, "colour_map"), classes)
    splits, unknown = own_splits(root, items, [base, root])
    left_out = survey(base, place).problems
    found = [*left_out, *problems, *orphans, *unknown, *_suspicious(classes, config.separator)]
    return Collection(source, root, classes, items, splits, found, colours)


def table_path(config: DataConfig, root: Path) -> Path | None:
    """``data.tags``, or else tags.csv or tags.jsonl in the root, or else None."""
    if config.tags is not None:
        return resolve(config.tags, root, "tags")
    return next((root / name for name in TABLE_NAMES if (root / name).is_file()), None)


def match_rows(
    rows: Sequence[Row], images: Sequence[Path], bases: Sequence[Path], classes: list[str], path: Path
) -> tuple[list[tuple[int, ...] | None], list[Problem]]:
    """Tag indices of each image (None without a row), and the rows that were skipped.

    Raises DataError on unknown tags, on two rows that disagree about one image, and when no row fits an image.
    """
    index, position = NameIndex(images, bases, str(path)), {name: i for i, name in enumerate(classes)}
    result: list[tuple[int, ...] | None] = [None] * len(images)
    lines: dict[int, int] = {}
    problems = []
    for row in rows:
        tags = tag_indices(row.tags, position, f"{path}, line {row.line}")
        where = index.find(row.name)
        if where is None:
            problems.append(Problem(row.name, f"{path.name}, line {row.line}: no such image"))
            continue
        if where in lines:
            if tags != result[where]:
                raise DataError(
                    f"{path}: lines {lines[where]} and {row.line} give '{row.name}' different tags; keep one of them."
                )
            problems.append(Problem(row.name, f"{path.name}: line {row.line} repeats line {lines[where]}"))
            continue
        result[where], lines[where] = tags, row.line
    if not lines:
        name = rows[0].name if rows else "(no rows)"
        raise DataError(f"{path}: no row names an image below {bases[0]} (the first is '{name}'). Set data.images.")
    return result, problems


def tag_indices(tags: Iterable[str], position: Mapping[str, int], where: str) -> tuple[int, ...]:
    """Indices of tags, ascending. position: index by class. Raises DataError on a tag that is no class."""
    for tag in tags:
        if tag not in position:
            raise DataError(f"{where}: '{tag}' is not a class.{nearest(tag, position)}")
    return tuple(sorted({position[tag] for tag in tags}))


def read_table(path: Path, separator: str) -> tuple[list[Row], list[str] | None]:
    """Rows of a CSV or JSONL file, and the class names where the table is one-hot.

    CSV: a header is required, comma, semicolon or tab between columns, UTF-8 with or without a mark. One column
    (image, file, filename or id) names the image; tags stand in one column with ``separator`` between them, or in
    one column a class with 0 or 1. JSONL: ``{"image": "a.jpg", "tags": ["cat"]}`` a line; a string of tags is
    split at ``separator``. Raises DataError with the line's number.
    """
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _read_jsonl(path, separator), None
    return _read_csv(path, read_text(path), separator)


def _read_csv(path: Path, text: str, separator: str) -> tuple[list[Row], list[str] | None]:
    first = text.splitlines()[0] if text else ""
    delimiter = next((d for d in "\t,;" if d in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        table = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(c.strip() for c in row)]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error}).") from error
    header, rows = (table[0][1] if table else []), table[1:]
    lower = [name.lower() for name in header]
    image = next((lower.index(name) for name in IMAGE_COLUMNS if name in lower), None)
    if image is None or len(header) < 2:
        raise DataError(
            f"{path}, line 1: the first line must name the columns, one of them {', '.join(IMAGE_COLUMNS)}, as in "
            f"'image,tags'; found '{first.strip()}'."
        )
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(cells)} columns, the header has {len(header)}. Put cells that hold "
                f"'{delimiter}' in quotes, or separate tags by another sign (data.separator)."
            )
        if not cells[image]:
            raise DataError(f"{path}, line {line}: no image is named.")
    others = [i for i in range(len(header)) if i != image]
    one_hot = all(cells[i] in NUMBERS for _, cells in rows for i in others)
    tags = next((lower.index(name) for name in TAG_COLUMNS if name in lower), None)
    if tags is None and len(others) == 1 and not one_hot:
        tags = others[0]
    # A class may be called 'label' or 'tag': several columns that hold nothing but 0 and 1 are one-hot all the same.
    if tags is not None and not (one_hot and len(others) > 1):
        return [Row(line, cells[image], split_tags(cells[tags], separator)) for line, cells in rows], None
    for line, cells in rows:
        for i in others:
            if cells[i] not in NUMBERS:
                raise DataError(
                    f"{path}, line {line}: column '{header[i]}' holds '{cells[i]}'. Without a column called 'tags' "
                    "each further column is a class and holds 0 or 1."
                )
    found = [Row(line, cells[image], tuple(header[i] for i in others if NUMBERS[cells[i]])) for line, cells in rows]
    return found, [header[i] for i in others]


def _read_jsonl(path: Path, separator: str) -> list[Row]:
    rows = []
    for line, content in read_lines(path):
        try:
            entry = json.loads(content)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {line}: not valid JSON ({error}).") from error
        entry = entry if isinstance(entry, dict) else {}
        name = next((entry[k] for k in IMAGE_COLUMNS if k in entry), "")
        tags = next((entry[k] for k in TAG_COLUMNS if k in entry), None)
        if isinstance(tags, str):
            tags = list(split_tags(tags, separator))
        if not isinstance(tags, list) or not all(isinstance(part, str) for part in [name, *tags]) or not name.strip():
            raise DataError(f'{path}, line {line}: expected {{"image": "a.jpg", "tags": ["cat", "dog"]}}.')
        rows.append(Row(line, name, tuple(tag.strip() for tag in tags if tag.strip())))
    return rows


def split_tags(cell: str, separator: str) -> tuple[str, ...]:
    """The tags in one cell; blanks around them and empty ones are dropped."""
    parts = cell.split(separator) if separator else [cell]
    return tuple(part.strip() for part in parts if part.strip())


def _suspicious(classes: list[str], separator: str) -> Iterator[Problem]:
    """Classes that differ in case only, and those that look like several tags which were not taken apart."""
    seen: dict[str, str] = {}
    for name in classes:
        twin = seen.setdefault(name.lower(), name)
        if twin != name:
            yield Problem(name, f"class '{name}' differs from '{twin}' in upper and lower case only")
        for sign in ";,|":
            if sign in name and sign != separator:
                what = f"class '{name}' holds a '{sign}'; if these are several tags, set data.separator='{sign}'"
                yield Problem(name, what)
