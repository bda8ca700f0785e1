"""The fingerprint of a data set: what is in it, counted, and what looks wrong."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tagmask.data.agreement import disagreement, mask_warnings
from tagmask.data.ahead import in_order
from tagmask.data.benchmarks import count_lists
from tagmask.data.collection import Collection, ColourMap, Item, Problem, hash_items
from tagmask.data.looks import Looks, key_of
from tagmask.data.pixels import Notes, count_pixels, describe_notes, raw_mask, read_image
from tagmask.data.stored import Stored
from tagmask.errors import DataError, plain
from tagmask.files import check_regular

SHOWN = 10
"""Files of one kind that are printed; the saved fingerprint has them all."""
LARGE = 25_000_000
"""Pixels above which photos are decoded one at a time, so that memory stays bounded."""


def fingerprint(collection: Collection, looks: Iterable[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """What is in a data set, counted; every file is looked at once. The result goes into JSON as it is.

    looks: those of ``look_at`` at the collection's items; default: it is called. Photos pass by in a stream: of each
    that is in order only its size stays. One whose content was looked at before is read and not decoded (``Looks``).

    Keys: source, root, classes, digest (SHA-256 over classes, ids, tags and the sizes of the image files); counts
    (images, labelled, empty, unlabelled, masks, unreadable, bad_masks, problems); splits (by name: images, labelled,
    masks that can be read; hash); sizes (width and height: min, median, max; pixels, the mean of width · height); tags
    (images by class); tags_of_masks (whether the tags were read from masks); cooccurrence (C×C, images that have both,
    the diagonal counts the class itself); masks (pixels by value, warnings); unreadable, bad_masks and problems (lists
    of {path, what}, the first two with the id); unlabelled (ids); warnings; benchmark (name and lists, as
    ``count_lists`` gives them, or None).
    """
    items, notes = collection.items, Notes()
    tagged = [item for item in items if item.tags is not None]
    unreadable, bad_masks, outside = [], [], []
    widths, heights = array("I"), array("I")
    histogram: Counter[int] = Counter()
    shown: Counter[tuple[tuple[int, ...] | None, frozenset[int]]] = Counter()
    for item, look in zip(items, look_at(items, collection.colour_map) if looks is None else looks):
        if look["image"]:
            unreadable.append({"id": item.id, "path": str(item.image), "what": look["image"]})
        if look["mask"]:
            bad_masks.append({"id": item.id, "path": str(item.mask), "what": look["mask"]})
        if look["size"]:
            widths.append(look["size"][0])
            heights.append(look["size"][1])
            if _reaches_out(item, *look["size"]):
                outside.append(item.id)
        for kind in look["notes"]:
            notes.setdefault(kind, []).append(str(item.image))
        values = {int(value): count for value, count in look["values"].items()}
        histogram.update(values)
        if values:
            shown[item.tags, frozenset(values)] += 1
    together = np.zeros((len(collection.classes),) * 2, dtype=int)
    for item in tagged:
        there = list(item.tags or ())
        together[np.ix_(there, there)] += 1
    tags = {name: int(together[i, i]) for i, name in enumerate(collection.classes)}
    lost = {entry["id"] for entry in unreadable}
    warnings = [*_warnings(collection, tags, together, lost), *describe_notes(notes)]
    if outside:
        warnings.append(f"{len(outside)} photos have a box that reaches out of them ('{outside[0]}' is the first).")
    warnings += disagreement(shown.elements())
    published = None
    if collection.benchmark is not None:
        masked = {item.id for item in items if item.mask is not None}
        rows = count_lists(collection.benchmark, collection.lists, masked)
        published = {"name": collection.benchmark, "lists": rows}
        warnings += [f"List '{row['list']}': {row['what']}" for row in rows if row["found"] is not None and row["what"]]
    return {
        "source": collection.source,
        "benchmark": published,
        "root": str(collection.root),
        "classes": list(collection.classes),
        "digest": hash_items(collection.classes, collection.items),
        "counts": {
            "images": len(items),
            "labelled": len(tagged),
            "empty": sum(item.tags == () for item in items),
            "unlabelled": len(items) - len(tagged),
            "masks": sum(item.mask is not None for item in items),
            "unreadable": len(unreadable),
            "bad_masks": len(bad_masks),
            "problems": len(collection.problems),
        },
        "splits": {name: _split(collection, name, unreadable, bad_masks) for name in collection.splits},
        "sizes": _sizes(widths, heights),
        "tags": tags,
        "tags_of_masks": collection.tags_of_masks,
        "cooccurrence": together.tolist(),
        "masks": {
            "values": {str(value): count for value, count in sorted(histogram.items())},
            "warnings": mask_warnings(histogram, len(collection.classes)),
        },
        "unreadable": unreadable,
        "bad_masks": bad_masks,
        "unlabelled": [item.id for item in items if item.tags is None],
        "problems": [asdict(problem) for problem in collection.problems],
        "warnings": warnings,
    }


def clean(collection: Collection, fingerprint: Mapping[str, Any]) -> Collection:
    """The collection without the images that the fingerprint found unreadable; bad masks are dropped, too, and tags
    that were read from them.

    Each is listed among the problems. Raises DataError when no image is left.
    """
    images = {entry["id"]: entry for entry in fingerprint["unreadable"]}
    masks = {entry["id"]: entry for entry in fingerprint["bad_masks"]}
    untagged = masks if collection.tags_of_masks else {}
    items = [replace(i, mask=None) if i.id in masks else i for i in collection.items if i.id not in images]
    items = [replace(i, tags=None) if i.id in untagged else i for i in items]
    if not items:
        raise DataError(f"{collection.root}: none of the {len(images)} images can be read.")
    splits, lists = (
        {name: [id for id in ids if id not in images] for name, ids in groups.items()}
        for groups in (collection.splits, collection.lists)
    )
    left_out = [Problem(e["path"], f"left out: {e['what']}") for e in (*images.values(), *masks.values())]
    return replace(collection, items=items, splits=splits, lists=lists, problems=[*collection.problems, *left_out])


def print_fingerprint(fp: Mapping[str, Any], console: Console) -> None:
    """Print a fingerprint as tables, then its warnings and the first of the files that were skipped."""
    counts, sizes = fp["counts"], fp["sizes"]
    console.print(
        f"[bold]{escape(plain(fp['root']))}[/bold] (source {fp['source']}, digest {fp['digest'][:12]})", highlight=False
    )
    console.print(
        f"{counts['images']} images: {counts['labelled']} with tags ({counts['empty']} with none of the classes), "
        f"{counts['unlabelled']} unlabelled, {counts['unreadable']} unreadable; {counts['masks']} masks."
    )
    if fp["tags_of_masks"]:
        console.print("The tags of a photo are the classes in its mask (data.tags_from=masks).")
    if sizes:
        (w0, w1, w2), (h0, h1, h2) = (tuple(sizes[k][s] for s in ("min", "median", "max")) for k in ("width", "height"))
        console.print(f"Width {w0} to {w2} (median {w1:g}), height {h0} to {h2} (median {h1:g}) pixels.")
    table = Table("split", "images", "with tags", "with masks", "hash", title="Splits")
    for name, split in fp["splits"].items():
        table.add_row(name, str(split["images"]), str(split["labelled"]), str(split["masks"]), split["hash"])
    console.print(table)
    if fp["benchmark"]:
        table = Table("list", "photos", "published", "masks", "", title=f"As published: {fp['benchmark']['name']}")
        for row in fp["benchmark"]["lists"]:
            found, masks = ("–" if row[key] is None else str(row[key]) for key in ("found", "masks"))
            what = escape(row["what"]) if row["found"] is None else "[yellow]differs[/yellow]" if row["what"] else "ok"
            table.add_row(row["list"], found, str(row["expected"]), masks, what)
        console.print(table)
    table = Table("class", "images", "most often together with", title="Tags")
    for i, (name, count) in enumerate(fp["tags"].items()):
        row = [0 if j == i else n for j, n in enumerate(fp["cooccurrence"][i])]
        top = max(range(len(row)), key=row.__getitem__)
        with_it = f"{escape(fp['classes'][top])} ({row[top]})" if row[top] else ""
        table.add_row(escape(name), str(count), with_it)
    console.print(table)
    if fp["masks"]["values"]:
        names = {"0": "background", "255": "ignore"} | {
            str(i + 1): escape(name) for i, name in enumerate(fp["classes"])
        }
        total = sum(fp["masks"]["values"].values())
        table = Table("value", "meaning", "share of pixels", title="Masks")
        for value, count in fp["masks"]["values"].items():
            table.add_row(value, names.get(value, "[red]no class[/red]"), f"{count / total:.1%}")
        console.print(table)
    for warning in (*fp["warnings"], *fp["masks"]["warnings"]):
        console.print(f"[yellow]Warning:[/yellow] {escape(plain(warning))}")
    for key, title in (
        ("unlabelled", "Unlabelled"),
        ("unreadable", "Unreadable, left out"),
        ("bad_masks", "Masks left out"),
        ("problems", "Problems"),
    ):
        if fp[key]:
            console.print(f"[bold]{title}: {len(fp[key])}[/bold]")
            for entry in fp[key][:SHOWN]:
                text = entry if key == "unlabelled" else f"{entry['path']}: {entry['what']}"
                console.print(f"  {plain(text)}", markup=False, highlight=False)
            if len(fp[key]) > SHOWN:
                console.print(f"  … and {len(fp[key]) - SHOWN} more; the saved fingerprint lists all.")


def look_at(items: Sequence[Item], colours: ColourMap | None = None, threads: int = 4) -> Iterator[dict[str, Any]]:
    """What is in each item's files, for ``fingerprint``: a dictionary of numbers, text and lists, in the items' order.

    Large photos are decoded by one thread only, those known not at all.
    """

    def begin(item: Item) -> tuple[bytes, dict[str, Any] | None]:
        photo = _content(item.image)
        mask = _content(item.mask) if item.mask is not None else None
        key = key_of(photo or b"", mask, colours)
        known = None if photo is None or (mask is None and item.mask is not None) else looks.get(key)
        return key, known or (None if _is_large(item, photo, mask) else _look(item, colours, photo, mask))

    with Looks() as looks:
        for item, (key, look) in zip(items, in_order(begin, items, threads)):
            look = look or _look(item, colours)
            if not look["image"] and not look["mask"]:  # what could not be read may be next time
                looks.put(key, look)
            yield look


def _content(path: Path) -> bytes | None:
    """All that is in a file; None where it cannot be had, as opening it will then say."""
    try:
        if not isinstance(path, Stored):
            check_regular(path)
        return path.read_bytes()
    except (DataError, OSError):
        return None


def _is_large(item: Item, photo: bytes | None, mask: bytes | None) -> bool:
    found = ((item.image, photo), (item.mask, mask))
    return any(path is not None and count_pixels(path, content) > LARGE for path, content in found)


def _look(
    item: Item, colour_map: ColourMap | None, photo: bytes | None = None, drawn: bytes | None = None
) -> dict[str, Any]:
    """Size (w,h) of the image as shown, what is wrong with image and mask (empty: nothing), pixels by mask value, and
    what is odd about the image. photo, drawn: the content of image and mask, where it has been read.
    """
    result: dict[str, Any] = {"size": None, "image": "", "mask": "", "values": {}, "notes": []}
    notes = Notes()
    try:
        height, width = read_image(item.image, notes=notes, content=photo).shape[-2:]
        result["size"] = (width, height)
        result["notes"] = list(notes)
    except DataError as error:
        result["image"] = _without_path(error, item.image)
    if item.mask is None:
        return result
    try:
        mask = raw_mask(item.mask, colour_map, content=drawn)
    except DataError as error:
        return result | {"mask": _without_path(error, item.mask)}
    values, counts = np.unique(mask, return_counts=True)
    result["values"] = dict(zip(values.tolist(), counts.tolist()))
    size = mask.shape[::-1]
    if result["size"] and result["size"] != size:
        result["mask"] = f"{size[0]}x{size[1]} pixels, its image has {result['size'][0]}x{result['size'][1]}"
    return result


def _without_path(error: DataError, path: Path) -> str:
    """The error's text without the file's name, which stands beside it."""
    return str(error).removeprefix(f"{path}: ")


def _split(
    collection: Collection, name: str, unreadable: list[dict[str, str]], bad_masks: list[dict[str, str]]
) -> dict[str, Any]:
    """A split's numbers without what ``clean`` leaves out; the hash is of the list as it stands."""
    lost, unmasked = ({entry["id"] for entry in entries} for entries in (unreadable, bad_masks))
    items = [i for i in collection.split(name) if i.id not in lost]
    return {
        "images": len(items),
        "labelled": sum(i.tags is not None for i in items),
        "masks": sum(i.mask is not None and i.id not in unmasked for i in items),
        "hash": collection.split_hash(name),
    }


def _sizes(widths: Sequence[int], heights: Sequence[int]) -> dict[str, Any]:
    if not widths:
        return {}
    return {
        "width": {"min": min(widths), "median": median(widths), "max": max(widths)},
        "height": {"min": min(heights), "median": median(heights), "max": max(heights)},
        "pixels": round(sum(w * h for w, h in zip(widths, heights)) / len(widths)),
    }


def _reaches_out(item: Item, width: int, height: int) -> bool:
    """Whether a true box reaches out of its photo by more than a pixel."""
    return any(x0 < -1 or y0 < -1 or x1 > width + 1 or y1 > height + 1 for x0, y0, x1, y1 in item.boxes)


def _warnings(collection: Collection, tags: Mapping[str, int], together: np.ndarray, lost: set[str]) -> list[str]:
    warnings = [f"Class '{name}' is on no image." for name, count in tags.items() if count == 0]
    trains = [item for item in collection.listed("train") if item.id not in lost]
    learned = {collection.classes[tag] for item in trains for tag in item.tags or ()}
    untaught = [name for name, count in tags.items() if count and trains and name not in learned]
    warnings += [f"Class '{name}' is on no photo that trains: it is not learned." for name in untaught]
    warnings += [f"Class '{name}' is on {count} images only." for name, count in tags.items() if 0 < count < 5]
    tagged = sum(item.tags is not None for item in collection.items)
    if collection.source == "masks":  # which teach where a class is
        return warnings
    everywhere = [name for name, count in tags.items() if 0 < count == tagged]
    warnings += [f"Class '{name}' is on every tagged image: tags cannot show where it is." for name in everywhere]
    if tagged and len({item.tags for item in collection.items if item.tags is not None}) == 1:
        warnings.append(
            "All tagged images have the same tags: a classifier learns nothing from them. Add images without "
            "them, with an empty tag cell."
        )
    for (i, name), (j, other) in combinations(enumerate(collection.classes), 2):
        if 5 <= together[i, j] == together[i, i] == together[j, j]:
            warnings.append(f"'{name}' and '{other}' are always together: tags cannot tell them apart.")
    return warnings
