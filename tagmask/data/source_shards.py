"""Source 'shards': photos and their tags in tar shards of WebDataset's layout, on a disk or at URIs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tagmask.config import DataConfig
from tagmask.data.ahead import in_order
from tagmask.data.collection import Collection, Problem
from tagmask.data.find import check_classes, data_root, given_classes, mask_folder
from tagmask.data.layout import SPLITS
from tagmask.data.shards import ENDING, find_shards, read_index, told
from tagmask.data.source_table import assemble, match_rows, tag_indices
from tagmask.data.stored import Stored, is_uri
from tagmask.data.table_cells import cell_tags, clean_tags
from tagmask.data.table_file import read_table, table_path
from tagmask.data.walk import Survey
from tagmask.errors import DataError
from tagmask.registry import SOURCES


class Sample(NamedTuple):
    """A photo in a shard, the names of its tags (None: nobody looked), its split and its mask."""

    image: Stored
    tags: tuple[str, ...] | None
    role: str | None
    mask: Stored | None


@SOURCES.register("shards")
def shards(config: DataConfig) -> Collection:
    """Photos in ``data.shards``, or in the ``.tar`` files right in the root, in the order of their keys.

    A sample is ``KEY.jpg`` (any format that is read), with ``KEY.json`` (``{"tags": ["cat"], "split": "train"}``, the
    split if there is one) or ``KEY.cls`` (a class, or its number from 0) beside it, and ``KEY.mask.png`` as a true
    mask. A table of tags, lists, classes.txt and a folder of masks in the root are used as for photos in folders; a
    table goes before the tags in the shards. A shard that cannot be read is listed, and what can be read of a damaged
    one is used. Raises DataError where no shard has a photo, and where no photo has tags.
    """
    given = data_root(config) if config.root is not None or config.tags is not None else None
    spec = config.shards if config.shards is not None else str((given or Path()) / f"*{ENDING}")
    places = find_shards(spec, given)
    base = _common(places)
    root = given or base
    found = Survey(folder=base)
    if config.masks is not None or root.is_dir():
        found.without = mask_folder(config, root)
    samples = sorted(read_shards(places, config.separator, found), key=_order)
    if not samples:
        first = next(iter(found.problems), None)
        said = f" ({first.path}: {first.what})" if first is not None else ""
        raise DataError(f"{places[0]}: no photo is in {len(places)} shards{said}. A sample is KEY.jpg with KEY.json.")
    found.images = [sample.image for sample in samples]
    classes = given_classes(config, root)
    table = table_path(config, root) if config.tags is not None or root.is_dir() else None
    roles: list[str | None] = [sample.role for sample in samples]
    problems: list[Problem] = []
    tags: list[tuple[int, ...] | None]
    if table is not None:
        rows = read_table(table, config.separator)
        names = rows.columns or sorted({tag for row in rows.rows for tag in row.tags})
        classes = classes or check_classes(names, str(table))
        tags, roles, problems = match_rows(rows, found.images, [base, root], classes, table)
    elif config.tags_from == "masks":
        tags, classes = [None] * len(samples), classes or []
    else:
        tags, classes = _indices(samples, classes)
    collection = assemble("shards", config, root, found, tags, classes, problems, roles)
    items = [replace(i, mask=i.mask or sample.mask) for i, sample in zip(collection.items, samples)]
    return replace(collection, items=items)


def read_shards(places: list[str], separator: str, found: Survey) -> Iterator[Sample]:
    """The samples of shards, as they lie there. found: takes what is wrong with shards and members."""
    known: dict[tuple[str, ...], tuple[str, ...]] = {}

    def index(place: str) -> dict[str, Any] | DataError:
        try:
            return read_index(place)
        except DataError as error:
            return error

    for place, read in zip(places, in_order(index, places, 4)):
        if isinstance(read, DataError):
            found.lost.append(Problem(place, str(read).removeprefix(f"{place}: ")))
            continue
        found.lost += told(place, read["lost"])
        found.passed += told(place, read["notes"])
        for name, offset, size, texts, mask in read["samples"]:
            tags = None
            try:
                tags = _names(texts, separator, f"{place}/{name}")
            except DataError as error:
                found.passed.append(Problem(f"{place}/{name}", str(error).removeprefix(f"{place}/{name}: ")))
            yield Sample(
                Stored.of(f"{place}/{name}", place, offset, size),
                None if tags is None else known.setdefault(tags, tags),
                SPLITS.get(str((texts.get("json") or {}).get("split", "")).lower()),
                None if mask is None else Stored.of(f"{place}/{mask[0]}", place, *mask[1:]),
            )


def _names(texts: dict[str, Any], separator: str, where: str) -> tuple[str, ...] | None:
    """The tags of a sample; None where it has none. Raises DataError where they are no names."""
    tags = (texts.get("json") or {}).get("tags", texts.get("cls"))
    if tags is None:
        return None
    if isinstance(tags, str):
        return cell_tags(tags, separator, where)
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise DataError(f'{where}: its tags cannot be read. Write {{"tags": ["cat", "dog"]}} into its .json.')
    return clean_tags(tags, where)


def _indices(samples: list[Sample], classes: list[str] | None) -> tuple[list[tuple[int, ...] | None], list[str]]:
    """Tags as indices, and the classes, which are all the names there are where none are given."""
    first: dict[tuple[str, ...], Stored] = {}
    for sample in samples:
        if sample.tags is not None:
            first.setdefault(sample.tags, sample.image)
    names = {name for tags in first for name in tags}
    if not names:
        raise DataError(
            f'{samples[0].image.parent}: no photo has a tag. Write KEY.json ({{"tags": ["cat"]}}) or KEY.cls beside '
            "KEY.jpg, or set data.tags to a table. Captions (KEY.txt) are no tags and are not read."
        )
    numbers = all(name.isdecimal() for name in names)
    if classes is None and numbers:
        raise DataError(
            f"{samples[0].image.parent}: the tags are numbers ({min(names)} and others). Give the classes that they "
            "count, from 0, in classes.txt or data.classes."
        )
    classes = classes or check_classes(sorted(names), str(samples[0].image.parent))
    position = {name: i for i, name in enumerate(classes)}
    if numbers:
        position = {str(i): i for i in range(len(classes))} | position
    known = {tags: tag_indices(tags, position, str(image)) for tags, image in first.items()}
    return [None if sample.tags is None else known[sample.tags] for sample in samples], classes


def _order(sample: Sample) -> list[str]:
    """As the same photos come from a folder: by the parts of the name."""
    return sample.image.member.split("/")


def _common(places: list[str]) -> Path:
    """The folder that all shards lie in."""
    common = os.path.commonpath([os.path.dirname(place) for place in places])
    return Stored(common) if is_uri(places[0]) else Path(common)
