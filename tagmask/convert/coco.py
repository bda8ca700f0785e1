"""COCO's instance annotations to masks and tags, and masks to COCO's results; neither is held in memory whole."""

from __future__ import annotations

import json
import reprlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tagmask.convert.shapes import inside_runs
from tagmask.data.pixels import read_mask, write_mask
from tagmask.data.source_coco import COCO_CATEGORIES, INSTANCES, Annotation, Photo, read_instances
from tagmask.errors import DataError
from tagmask.files import of_system, read_json, sweep, write_json, write_text, written
from tagmask.parts import mask_tools
from tagmask.processes import end_with_parent
from tagmask.types import IGNORE

BUCKET_BYTES = 4 << 20
"""Annotation text in a bucket, on average."""
MOST_BUCKETS = 128
"""All are open at once, and some systems allow a process 256 files."""
LONGEST_OUTLINE = 4_000_000
"""Pixels along the polygons of one annotation: pycocotools takes 100 bytes for each."""


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
    work, masks = home / f".convert_{split}", home / "masks" / split
    for folder in (home, masks, work):
        sweep(folder)
    count, counts = fill_buckets(annotations, work)
    jobs = [(work, i, masks, annotations) for i in range(count) if not (work / f"{i}.tags").is_file()]
    progress(count - len(jobs), count)
    with ExitStack() as stack:
        done: Iterable[None] = map(_draw_bucket, jobs)
        if workers > 1:
            # Fresh processes: a fork would copy the threads that PyTorch holds.
            pool = ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent)
            stack.callback(pool.shutdown, cancel_futures=True)
            done = pool.map(_draw_bucket, jobs)
        try:
            for number, _ in enumerate(done, count - len(jobs) + 1):
                progress(number, count)
        except BrokenProcessPool as error:
            raise DataError(
                f"{annotations}: a worker process was killed; memory may have run out. Try --workers 1: the conversion "
                "goes on where it was."
            ) from error
    with written(home / f"tags_{split}.jsonl") as part, part.open("wb") as table:
        for i in range(count):
            table.write((work / f"{i}.tags").read_bytes())
    shutil.rmtree(work)
    return counts


def fill_buckets(annotations: Path, work: Path) -> tuple[int, dict[str, int]]:
    """Split images and annotations by image id into files of one JSON value a line, in the file's order.

    Returns how many files there are, and counts: images, with_tags, crowds. Files that an earlier call made of the same
    annotations are kept: ``work``/mark.json, which is written last, says that they are whole.
    """
    state, mark = annotations.stat(), work / "mark.json"
    source = [state.st_size, state.st_mtime_ns]
    try:
        saved = read_json(mark)
        if saved["source"] == source and all((work / f"{i}.jsonl").is_file() for i in range(saved["buckets"])):
            return saved["buckets"], saved["counts"]
    except (DataError, KeyError, TypeError):
        pass  # there is none, or it is damaged
    buckets = min(MOST_BUCKETS, 1 + state.st_size // BUCKET_BYTES)
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        counts = _split(annotations, work, buckets)
        write_json(mark, {"source": source, "buckets": buckets, "counts": counts})
    except OSError as error:
        raise of_system(error, work) from error
    finally:
        if not mark.is_file():
            shutil.rmtree(work, ignore_errors=True)
    return buckets, counts


def _split(annotations: Path, folder: Path, buckets: int) -> dict[str, int]:
    images = crowds = 0
    tagged = set()
    with ExitStack() as stack:
        files = [stack.enter_context((folder / f"{i}.jsonl").open("w", encoding="utf-8")) for i in range(buckets)]
        for record in read_instances(annotations):
            if isinstance(record, Photo):
                id = record.id
                images += 1
            else:
                id = record.image
                tagged.add(id)
                crowds += record.crowd
            files[id % buckets].write(json.dumps(record, separators=(",", ":")) + "\n")
    return {"images": images, "with_tags": len(tagged), "crowds": crowds}


def _draw_bucket(job: tuple[Path, int, Path, Path]) -> None:
    """Masks of one bucket; its tags are written last and mark it as finished."""
    work, number, folder, annotations = job
    photos: list[Photo] = []
    objects: dict[int, list[Annotation]] = defaultdict(list)
    try:
        with (work / f"{number}.jsonl").open(encoding="utf-8") as file:
            for fields in map(json.loads, file):
                if len(fields) == len(Photo._fields):
                    photos.append(Photo(*fields))
                else:
                    objects[fields[0]].append(Annotation(*fields))
    except (TypeError, ValueError) as error:
        raise DataError(f"{work}: damaged ({error}). Delete this folder and convert again.") from error
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
    """Bool (H,W) of a COCO segmentation: polygons, or run lengths, as numbers or packed. Raises DataError.

    All numbers are checked here: pycocotools is C code that checks none.
    """
    try:
        if isinstance(segmentation, list):
            _check_polygons(segmentation, size)
            tools = mask_tools()
            return tools.decode(tools.merge(tools.frPyObjects(segmentation, *size))).view(bool)
        if isinstance(segmentation, dict):
            return _draw_runs(segmentation.get("counts"), segmentation.get("size"), size)
        raise ValueError("neither polygons nor run lengths")
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: not a valid segmentation ({error}). Mend the annotation or remove it.") from error


def _check_polygons(polygons: list[Any], size: tuple[int, int]) -> None:
    """Raise ValueError unless these are polygons on a photo (H,W) or a little around it, of a sane length in all."""
    if not polygons:
        raise ValueError("there is no polygon")
    far = np.array(size[::-1], float)
    length = 0.0
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon has three points or more, of two numbers each")
        if not all(type(number) in (int, float) for number in polygon):
            raise ValueError("a coordinate is not a number")
        points = np.array(polygon, float).reshape(-1, 2)
        near = (points >= -far) & (points <= 2 * far)
        if not near.all():
            raise ValueError(f"the coordinate {points[~near][0]:g} is not on the photo, nor near it")
        length += np.abs(np.diff(points, axis=0, append=points[:1])).max(1).sum()
    if length > LONGEST_OUTLINE:
        raise ValueError(f"its outlines are {length:,.0f} pixels long; the most are {LONGEST_OUTLINE:,}")


def _draw_runs(counts: Any, own: Any, size: tuple[int, int]) -> np.ndarray:
    """Bool (H,W) of run lengths down the columns, which begin outside. Raises ValueError."""
    if own != list(size):
        raise ValueError(f"its size is {reprlib.repr(own)}, that of the image {list(size)}")
    if isinstance(counts, str):
        counts = _unpack(counts)
    return inside_runs(counts, size[0] * size[1]).reshape(size, order="F")


def _unpack(text: str) -> list[int]:
    """The numbers of packed run lengths: five bits a sign, the lowest first; from the fourth on they are differences
    to the one before the last. Raises ValueError.
    """
    counts: list[int] = []
    value = shift = 0
    for sign in text:
        code = ord(sign) - 48
        if not 0 <= code < 64 or shift > 30:
            raise ValueError("its packed run lengths are broken")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its packed run lengths break off")
    return counts


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
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise DataError(f"{path}: the name does not end in an image's number, as COCO_val2014_000000000042.png does.")
    return int(digits)
