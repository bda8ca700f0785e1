"""The fingerprint of a data set: what is in it, counted, and what looks wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from tagmask.data.benchmarks import count_lists
from tagmask.data.collection import Collection, ColourMap, Item, Problem, hash_items
from tagmask.data.pixels import Notes, count_pixels, describe_notes, raw_mask, read_image
from tagmask.errors import DataError, plain

SHOWN = 10
"""Files of one kind that are printed; the saved fingerprint has them all."""
LARGE = 25_000_000
"""Pixels above which photos are decoded one at a time, so that memory stays bounded."""


def look_at(
    items: Sequence[Item], colours: ColourMap | None = None, threads: int = 4
) -> tuple[list[dict[str, Any]], Notes]:
    """What is in the items' files, for ``fingerprint``, and what is odd about their photos."""
    notes = Notes()
    with ThreadPoolExecutor(threads) as pool:
        quick = list(pool.map(lambda item: None if _is_large(item) else _look(item, colours, notes), items))
    return [_look(i, colours, notes) if found is None else found for i, found in zip(items, quick)], notes


def fingerprint(
    collection: Collection,
    looks: Sequence[Mapping[str, Any]] | None = None,
    notes: Mapping[str, list[str]] | None = None,
) -> dict[str, Any]:
    """What is in a data set, counted; every file is looked at once. The result goes into JSON as it is.

    looks, notes: what ``look_at`` gave for the collection's items; default: it is called.

    Keys: source, root, classes, digest (SHA-256 over classes, ids, tags and the sizes of the image files); counts
    (images, labelled, empty, unlabelled, masks, unreadable, bad_masks, problems); splits (by name: images, labelled,
    masks that can be read; hash); sizes (width and height: min, median, max; pixels, the mean of width · height); tags
    (images by class); tags_of_masks (whether the tags were read from masks); cooccurrence (C×C, images that have both,
    the diagonal counts the class itself); masks (pixels by value, warnings); unreadable, bad_masks and problems (lists
    of {path, what}, the first two with the id); unlabelled (ids); warnings; benchmark (name and lists, as
    ``count_lists`` gives them, or None).
    """
    items = collection.items
    if looks is None:
        looks, notes = look_at(items, collection.colour_map)
    tagged = [item for item in items if item.tags is not None]
    unreadable = [{"id": i.id, "path": str(i.image), "what": k["image"]} for i, k in zip(items, looks) if k["image"]]
    bad_masks = [{"id": i.id, "path": str(i.mask), "what": k["mask"]} for i, k in zip(items, looks) if k["mask"]]
    histogram: Counter[int] = Counter()
    for look in looks:
        histogram.update(look["values"])
    together = np.zeros((len(collection.classes),) * 2, dtype=int)
    for item in tagged:
        there = list(item.tags or ())
        together[np.ix_(there, there)] += 1
    tags = {name: int(together[i, i]) for i, name in enumerate(collection.classes)}
    lost = {entry["id"] for entry in unreadable}
    warnings = [*_warnings(collection, tags, together, lost), *describe_notes(notes or {}), *_boxes(items, looks)]
    warnings += disagreement((i.tags, set(k["values"])) for i, k in zip(items, looks) if k["values"])
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
        "sizes": _sizes([k["size"] for k in looks if k["size"]]),
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


def _is_large(item: Item) -> bool:
    return any(path is not None and count_pixels(path) > LARGE for path in (item.image, item.mask))


def _look(item: Item, colour_map: ColourMap | None, notes: Notes) -> dict[str, Any]:
    """Size (w,h) of the image as shown, what is wrong with image and mask (empty: nothing), pixels by mask value.

    notes: takes what is odd about the image.
    """
    result: dict[str, Any] = {"size": None, "image": "", "mask": "", "values": {}}
    try:
        height, width = read_image(item.image, notes=notes).shape[-2:]
        result["size"] = (width, height)
    except DataError as error:
        result["image"] = _without_path(error, item.image)
    if item.mask is None:
        return result
    try:
        mask = raw_mask(item.mask, colour_map)
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


def _sizes(sizes: list[tuple[int, int]]) -> dict[str, Any]:
    if not sizes:
        return {}
    widths, heights = zip(*sizes)
    return {
        "width": {"min": min(widths), "median": median(widths), "max": max(widths)},
        "height": {"min": min(heights), "median": median(heights), "max": max(heights)},
        "pixels": round(sum(w * h for w, h in sizes) / len(sizes)),
    }


def _boxes(items: list[Item], looks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Says how many true boxes reach out of their photos by more than a pixel."""
    out = []
    for item, (width, height) in ((i, k["size"]) for i, k in zip(items, looks) if k["size"]):
        if any(x0 < -1 or y0 < -1 or x1 > width + 1 or y1 > height + 1 for x0, y0, x1, y1 in item.boxes):
            out.append(item.id)
    return [f"{len(out)} photos have a box that reaches out of them ('{out[0]}' is the first)."] if out else []


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
