"""Photos that a user names, by files, folders, globs, shards and URIs, and photos read one after the other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any

from tagmask.data.ahead import in_order
from tagmask.data.collection import Item, Problem
from tagmask.data.find import read_lines
from tagmask.data.names import flaw
from tagmask.data.pixels import Notes, read_image, read_photo
from tagmask.data.shards import ENDING, find_shards
from tagmask.data.source_shards import read_shards
from tagmask.data.stored import as_uri, is_uri
from tagmask.data.walk import Survey, none_found, survey
from tagmask.errors import DataError


def only(items: Sequence[Item], listed: Path) -> list[Item]:
    """The items that a file names, one a line. Raises DataError where one is not among them."""
    names = dict.fromkeys(line for _, line in read_lines(listed))
    by_name = {name: item for item in items for name in (item.image.name, item.image.stem, item.id)}
    gone = [name for name in names if name not in by_name]
    if gone:
        raise DataError(f"{listed}: {len(gone)} of its photos are not among those named ('{gone[0]}' is the first).")
    return list({by_name[name].id: by_name[name] for name in names}.values())


def photo_items(photos: Sequence[str | Path | Item]) -> tuple[list[Item], Survey]:
    """Items of files, folders (searched to any depth, ids keep the subfolders), globs, tar shards and URIs, and what is
    left out.

    Of photos that differ in the extension only, the ids keep it. Raises DataError naming two photos whose masks would
    be one file.
    """
    found: list[Item] = []
    rest = Survey()
    for entry in photos:
        if isinstance(entry, Item):
            found.append(entry)
            continue
        place = Path(entry)
        if str(entry).endswith(ENDING) and not place.is_dir():
            # As they lie there, so that a shard is read from its beginning to its end.
            samples = read_shards(find_shards(as_uri(entry)), "", rest)
            items = [Item(os.path.splitext(s.image.member)[0], s.image, None) for s in samples]
        elif is_uri(entry):
            items = [Item(uri.stem, uri, None) for uri in survey(place).images if not flaw(uri.stem)]
            if not items:
                raise DataError(f"{entry}: there are no photos there. Check the address.")
        elif place.is_dir():
            there = survey(place)
            items = [Item(p.relative_to(place).with_suffix("").as_posix(), p, None) for p in there.images]
            rest.lost += there.lost
            rest.passed += there.passed
            if not items:
                raise DataError(f"{entry}: {none_found(there)}.")
        else:
            paths = [place] if place.is_file() else [Path(p) for p in sorted(glob(str(entry)))]
            if not paths:
                rest.lost.append(Problem(str(entry), "no such photo"))
            items = [Item(p.stem, p, None) for p in paths if not flaw(p.stem)]
            rest.lost += [Problem(str(p), f"{flaw(p.stem)}; rename it") for p in paths if flaw(p.stem)]
        found += items
    several = Counter(id for id, _ in {(item.id, item.image) for item in found})
    by_id: dict[str, Item] = {}
    for item in found:
        if several[item.id] > 1:  # a.jpg and a.png
            item = replace(item, id=f"{item.id}{item.image.suffix}")
        if by_id.setdefault(item.id, item).image != item.image:
            raise DataError(
                f"{item.image} and {by_id[item.id].image} would both write {item.id}.png; predict them apart."
            )
    return list(by_id.values()), rest


def read_ahead(items: Iterable[Item], notes: Notes | None = None, arrays: bool = False) -> Iterator[tuple[Item, Any]]:
    """Items with their photos, uint8 (3,H,W), in order, decoded ahead by two threads. notes: as in ``read_photo``;
    arrays: of numpy, which needs no torch.

    Pillow decodes outside Python's lock, so threads suffice. A photo that cannot be read comes as its DataError.
    """

    def one(item: Item) -> tuple[Item, Any]:
        try:
            return item, (read_photo if arrays else read_image)(item.image, notes=notes)
        except DataError as error:
            return item, error

    return in_order(one, items)
