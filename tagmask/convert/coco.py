"""COCO's instance annotations to masks and tags, and masks to COCO's results; memory does not grow with the images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tagmask.data.json_stream import stream_json
from tagmask.data.pixels import read_mask, write_mask
from tagmask.data.source_coco import (
    COCO_CATEGORIES,
    INSTANCES,
    JSON_KEYS,
    annotation_fields,
    check_category,
    image_fields,
)
from tagmask.errors import DataError
from tagmask.types import IGNORE

BUCKET_BYTES = 4 << 20
"""Annotation text in a bucket, on average."""
HELD_BYTES = 8 << 20
"""Text kept in memory before it goes to the buckets' files."""


def coco_masks(
    annotations: str | Path,
    out: str | Path | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
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
        raise DataError(
            f"{annotations}: the file's name is not like instances_train2014.json or instances_val2017.json."
        )
    if not annotations.is_file():
        raise DataError(f"{annotations}: no such file. It comes with annotations_trainval{match[2]}.zip of COCO.")
    mask_tools()
    home = Path(out) if out is not None else annotations.parent.parent
    split = "".join(match.groups())
    work = home / f".convert_{split}"
    count = fill_buckets(annotations, work)
    todo = [i for i in range(count) if not (work / f"{i}.tags").is_file()]
    if progress is not None:
        progress(count - len(todo), count)
    jobs = [(work, i, home / "masks" / split, annotations) for i in todo]
    with ExitStack() as stack:
        done: Iterable[None]
        if workers > 1:
            # Fresh processes: a fork would copy the threads that PyTorch holds.
            pool = ProcessPoolExecutor(workers, get_context("spawn"))
            stack.callback(pool.shutdown, cancel_futures=True)
            done = pool.map(_draw_bucket, jobs)
        else:
            done = map(_draw_bucket, jobs)
        for number, _ in enumerate(done, count - len(todo) + 1):
            if progress is not None:
                progress(number, count)
    return _collect(work, count, home / f"tags_{split}.jsonl")


def fill_buckets(annotations: Path, work: Path) -> int:
    """Split images and annotations by image id into files of one JSON value a line, in the file's order.

    Returns how many there are. Those of an earlier call for the same file are kept.
    """
    state = annotations.stat()
    count = max(1, state.st_size // BUCKET_BYTES)
    mark = {"bytes": state.st_size, "changed": state.st_mtime_ns, "buckets": count}
    if (work / "mark.json").is_file() and json.loads((work / "mark.json").read_text(encoding="utf-8")) == mark:
        return count
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    held: list[list[str]] = [[] for _ in range(count)]
    size = images = 0
    for key, value in stream_json(annotations, JSON_KEYS):
        if key == "categories":
            check_category(value, annotations)
        if key == "images":
            id, name, shape = image_fields(value, annotations)
            record: list[Any] = [id, name, *shape]
            images += 1
        elif key == "annotations":
            id, label = annotation_fields(value, annotations)
            record = [id, value.get("id"), label, int(value.get("iscrowd", 0)), value.get("segmentation")]
        else:
            continue
        line = json.dumps(record, separators=(",", ":")) + "\n"
        held[id % count].append(line)
        size += len(line)
        if size > HELD_BYTES:
            _flush(held, work)
            size = 0
    _flush(held, work)
    if not images:
        raise DataError(f"{annotations}: it lists no images. Are these COCO's instance annotations?")
    (work / "mark.json").write_text(json.dumps(mark), encoding="utf-8")
    return count


def _flush(held: list[list[str]], work: Path) -> None:
    for i, lines in enumerate(held):
        with (work / f"{i}.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(lines)
        lines.clear()


def _draw_bucket(job: tuple[Path, int, Path, Path]) -> None:
    """Masks of one bucket; its tags are written last and mark it as finished."""
    work, number, folder, annotations = job
    images: dict[int, list[Any]] = {}
    objects: dict[int, list[list[Any]]] = {}
    with (work / f"{number}.jsonl").open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            if len(record) == 4:
                images[record[0]] = record[1:]
            else:
                objects.setdefault(record[0], []).append(record[1:])
    for id, found in objects.items():
        if id not in images:
            raise DataError(f"{annotations}: annotation {found[0][0]} is of image {id}, which is not among its images.")
    names = list(COCO_CATEGORIES.values())
    lines = []
    for id in sorted(images):
        name, height, width = images[id]
        found = objects.get(id, [])
        labels = draw_objects(found, (height, width), f"{annotations}: ")
        write_mask(folder / f"{Path(name).stem}.png", labels)
        tags = [names[label - 1] for label in sorted({label for _, label, _, _ in found})]
        crowds = sum(crowd for _, _, crowd, _ in found)
        lines.append(json.dumps({"image": name, "tags": tags, "crowds": crowds}) + "\n")
    partial = work / f"{number}.part"
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(work / f"{number}.tags")


def draw_objects(objects: Sequence[Sequence[Any]], size: tuple[int, int], where: str = "") -> np.ndarray:
    """Label map uint8 (H,W) of one photo. objects: (annotation id, label, crowd 0/1, COCO segmentation) in order.

    Objects are laid under those before them; crowds are 255 where there is no object. Raises DataError.
    """
    labels = np.zeros(size, np.uint8)
    for crowd in (False, True):
        for id, label, is_crowd, segmentation in objects:
            if bool(is_crowd) == crowd:
                inside = decode(segmentation, size, f"{where}annotation {id}")
                labels[inside & (labels == 0)] = IGNORE if crowd else label
    return labels


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


def _collect(work: Path, count: int, table: Path) -> dict[str, int]:
    counts = {"images": 0, "with_tags": 0, "crowds": 0}
    partial = table.with_suffix(".part")
    with partial.open("w", encoding="utf-8") as file:
        for i in range(count):
            with (work / f"{i}.tags").open(encoding="utf-8") as part:
                for line in part:
                    entry = json.loads(line)
                    counts["images"] += 1
                    counts["with_tags"] += bool(entry["tags"])
                    counts["crowds"] += entry["crowds"]
                    file.write(json.dumps({"image": entry["image"], "tags": entry["tags"]}) + "\n")
    partial.replace(table)
    shutil.rmtree(work)
    return counts


def coco_results(
    masks: str | Path, out: str | Path, progress: Callable[[int, int], None] | None = None
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
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".part")
    entries = 0
    with partial.open("w", encoding="utf-8") as file:
        file.write("[")
        for done, (path, number) in enumerate(zip(paths, numbers), 1):
            for label, runs in _runs(read_mask(path, len(categories)).numpy(), tools):
                entry = {"image_id": number, "category_id": categories[label - 1], "segmentation": runs, "score": 1.0}
                file.write((",\n" if entries else "\n") + json.dumps(entry, separators=(",", ":")))
                entries += 1
            if progress is not None:
                progress(done, len(paths))
        file.write("\n]\n")
    partial.replace(out)
    return {"images": len(paths), "entries": entries}


def _image_number(path: Path) -> int:
    digits = path.stem.rpartition("_")[2]
    if not (digits.isascii() and digits.isdigit()):
        raise DataError(f"{path}: the name does not end in an image's number, as COCO_val2014_000000000042.png does.")
    return int(digits)


def _runs(labels: np.ndarray, tools: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for label in np.unique(labels).tolist():
        if label not in (0, IGNORE):
            packed = tools.encode(np.asfortranarray(labels == label, dtype=np.uint8))
            yield label, {"size": list(labels.shape), "counts": packed["counts"].decode("ascii")}
