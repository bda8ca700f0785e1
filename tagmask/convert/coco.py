"""COCO's instance annotations to masks and tags, and masks to COCO's results; neither is held in memory whole."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tagmask.data.pixels import read_mask, write_mask
from tagmask.data.source_coco import COCO_CATEGORIES, INSTANCES, Annotation, Photo, read_instances
from tagmask.errors import DataError
from tagmask.files import read_json, write_json, write_text, written
from tagmask.types import IGNORE

BUCKET_BYTES = 4 << 20
"""Annotation text in a bucket, on average."""
MOST_BUCKETS = 128
"""All are open at once, and some systems allow a process 256 files."""


def coco_masks(
    annotations: str | Path,
    out: str | Path | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write a mask a photo and one table of tags from ``instances_<split><year>.json``.

    ``out``/masks/<split><year>/<name>.png: 0 background, 1..80 COCO's categories in the order of their ids, and of
    two that overlap the one that comes first in the file; 255 in crowd regions that no object covers.
    ``out``/tags_<split><year>.jsonl: the categories of each photo, those of crowds included. ``out`` is the folder
    above ``annotations`` unless given. Both are what source 'coco' reads.

    The file is read as a stream and split by image id into buckets on disk (about its own size, removed at the end),
    which ``workers`` processes draw. A call that was cut off can be made again: it draws the buckets that are left.
    progress: called with the numbers of buckets that are done and of all. Returns counts: images, with_tags, crowds.
    Raises DataError on unknown images and categories, broken polygons and files, and without pycocotools.
    """
    annotations = Path(annotations)
    match = INSTANCES.fullmatch(annotations.name)
    if match is None:
        raise DataError(f"{annotations}: the file's name is not like instances_train2014.json.")
    if not annotations.is_file():
        raise DataError(f"{annotations}: no such file. It comes with annotations_trainval{match[2]}.zip of COCO.")
    mask_tools()
    home = Path(out) if out is not None else annotations.parent.parent
    split = "".join(match.groups())
    work = home / f".convert_{split}"
    count, counts = fill_buckets(annotations, work)
    jobs = [(work, i, home / "masks" / split, annotations) for i in range(count) if not (work / f"{i}.tags").is_file()]
    progress(count - len(jobs), count)
    with ExitStack() as stack:
        done: Iterable[None] = map(_draw_bucket, jobs)
        if workers > 1:
            # Fresh processes: a fork would copy the threads that PyTorch holds.
            pool = ProcessPoolExecutor(workers, get_context("spawn"))
            stack.callback(pool.shutdown, cancel_futures=True)
            done = pool.map(_draw_bucket, jobs)
        for number, _ in enumerate(done, count - len(jobs) + 1):
            progress(number, count)
    with written(home / f"tags_{split}.jsonl") as part, part.open("wb") as table:
        for i in range(count):
            table.write((work / f"{i}.tags").read_bytes())
    shutil.rmtree(work)
    return counts


def fill_buckets(annotations: Path, work: Path) -> tuple[int, dict[str, int]]:
    """Split images and annotations by image id into files of one JSON value a line, in the file's order.

    Returns how many files there are, and counts: images, with_tags, crowds. Files that an earlier call made of the
    same annotations are kept.
    """
    state = annotations.stat()
    source, mark = [state.st_size, state.st_mtime_ns], work / "mark.json"
    if mark.is_file():
        saved = read_json(mark)
        if saved["source"] == source:
            return saved["buckets"], saved["counts"]
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    buckets = min(MOST_BUCKETS, 1 + state.st_size // BUCKET_BYTES)
    images = crowds = 0
    tagged = set()
    with ExitStack() as stack:
        files = [stack.enter_context((work / f"{i}.jsonl").open("w", encoding="utf-8")) for i in range(buckets)]
        for record in read_instances(annotations):
            if isinstance(record, Photo):
                id = record.id
                images += 1
            else:
                id = record.image
                tagged.add(id)
                crowds += record.crowd
            files[id % buckets].write(json.dumps(record, separators=(",", ":")) + "\n")
    counts = {"images": images, "with_tags": len(tagged), "crowds": crowds}
    write_json(mark, {"source": source, "buckets": buckets, "counts": counts})
    return buckets, counts


def _draw_bucket(job: tuple[Path, int, Path, Path]) -> None:
    """Masks of one bucket; its tags are written last and mark it as finished."""
    work, number, folder, annotations = job
    photos: list[Photo] = []
    objects: dict[int, list[Annotation]] = defaultdict(list)
    with (work / f"{number}.jsonl").open(encoding="utf-8") as file:
        for fields in map(json.loads, file):
            if len(fields) == len(Photo._fields):
                photos.append(Photo(*fields))
            else:
                objects[fields[0]].append(Annotation(*fields))
    names = list(COCO_CATEGORIES.values())
    lines = []
    for photo in photos:
        found = objects[photo.id]
        size = (photo.height, photo.width)
        labels = np.zeros(size, np.uint8)
        # Objects lie under those before them, crowds under all objects.
        for entry in sorted(found, key=lambda entry: entry.crowd):
            inside = decode(entry.segmentation, size, f"{annotations}: annotation {entry.id}")
            labels[inside & (labels == 0)] = IGNORE if entry.crowd else entry.label
        write_mask(folder / f"{Path(photo.name).stem}.png", labels)
        tags = [names[label - 1] for label in sorted({entry.label for entry in found})]
        lines.append(json.dumps({"image": photo.name, "tags": tags}) + "\n")
    write_text(work / f"{number}.tags", "".join(lines))


def decode(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """Bool (H,W) of a COCO segmentation: polygons, or run lengths, as numbers or packed. Raises DataError."""
    tools = mask_tools()
    try:
        if isinstance(segmentation, list):
            if not segmentation or any(len(p) < 6 or len(p) % 2 for p in segmentation):
                raise ValueError("a polygon has three points or more")
            runs = tools.merge(tools.frPyObjects(segmentation, *size))
        elif tuple(segmentation["size"]) != size:
            raise ValueError(f"its size is {segmentation['size']}, that of the image {list(size)}")
        elif isinstance(segmentation["counts"], list):
            if sum(segmentation["counts"]) != size[0] * size[1] or min(segmentation["counts"]) < 0:
                raise ValueError("its run lengths do not add up to the image")
            runs = tools.frPyObjects(segmentation, *size)
        else:
            runs = segmentation
        return tools.decode(runs).astype(bool)
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"{where}: not a valid segmentation ({error}).") from error


def mask_tools() -> Any:
    """pycocotools.mask. Raises DataError that says how to install it."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise DataError(
            "COCO's polygons and run lengths are read through pycocotools, which is not installed: "
            "pip install 'tagmask[coco]', or pip install pycocotools."
        ) from error
    return mask


def coco_results(
    masks: str | Path, out: str | Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, int]:
    """Write label maps as COCO results: one packed run-length entry for each photo and category in it.

    masks: folder of ``COCO_val2014_000000000042.png`` or ``000000000042.png``, values 0 to 80; the number that the
    name ends in is the image's id. 255 and background have no entry. out: the JSON file, written as a stream. An
    entry is {image_id, category_id (COCO's own, 1 to 90), segmentation {size, counts}, score: 1}. Returns counts:
    images, entries. Raises DataError on other names, unknown values, and without pycocotools.
    """
    masks, out = Path(masks), Path(out)
    tools = mask_tools()
    paths = sorted(masks.glob("*.png"))
    if not paths:
        raise DataError(f"{masks}: there are no masks (*.png).")
    numbers = [_image_number(path) for path in paths]
    if len(set(numbers)) < len(numbers):
        raise DataError(f"{masks}: two masks are of one image id; 2014's and 2017's names must not be mixed.")
    categories = list(COCO_CATEGORIES)
    entries = 0
    with written(out) as part, part.open("w", encoding="utf-8") as file:
        file.write("[")
        for done, (path, number) in enumerate(zip(paths, numbers), 1):
            labels = read_mask(path, len(categories)).numpy()
            for label in np.unique(labels[(labels > 0) & (labels != IGNORE)]).tolist():
                packed = tools.encode(np.asfortranarray(labels == label, dtype=np.uint8))
                runs = {"size": list(labels.shape), "counts": packed["counts"].decode("ascii")}
                entry = {"image_id": number, "category_id": categories[label - 1], "segmentation": runs, "score": 1.0}
                file.write((",\n" if entries else "\n") + json.dumps(entry, separators=(",", ":")))
                entries += 1
            progress(done, len(paths))
        file.write("\n]\n")
    return {"images": len(paths), "entries": entries}


def _image_number(path: Path) -> int:
    digits = path.stem.rpartition("_")[2]
    if not (digits.isascii() and digits.isdigit()):
        raise DataError(f"{path}: the name does not end in an image's number, as COCO_val2014_000000000042.png does.")
    return int(digits)
