"""Source 'coco': MS COCO 2014 and 2017. Tags from the instance annotations, masks from ``tagmask convert coco``."""

from __future__ import annotations

import re
import reprlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tagmask.config import DataConfig
from tagmask.data.benchmarks import BENCHMARKS, missing
from tagmask.data.collection import Collection, Item, Problem
from tagmask.data.find import data_root, image_folder, mask_folder
from tagmask.data.json_stream import stream_json
from tagmask.data.source_table import tag_indices
from tagmask.data.table_file import read_table
from tagmask.errors import DataError
from tagmask.registry import SOURCES

INSTANCES = re.compile(r"instances_(train|val)(2014|2017)\.json")
CONVERTED = re.compile(r"tags_(train|val)(2014|2017)\.jsonl")
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush
"""
COCO_CATEGORIES = dict(zip((i for i in range(1, 91) if i not in GAPS), re.split(r",\s+", NAMES.strip())))
"""COCO's 80 categories by its own ids, 1 to 90 with gaps. In masks they are 1 to 80, in this order."""
LABELS = {id: label for label, id in enumerate(COCO_CATEGORIES, 1)}
KINDS = {"categories": "category", "images": "image", "annotations": "annotation"}
"""The lists that are read, in this order, and what an entry of each is called."""
MOST_ID = 2**63 - 1
LONGEST_SIDE = 65_500
MOST_PIXELS = 150_000_000
LONGEST_NAME = 200
UNFIT = re.compile(r"[/\\\x00-\x1f\x7f\ud800-\udfff]")
"""What no file name of a photo holds: folders, control characters, halves of characters."""
OTHER_SETS = " Sets of other categories are read as a table of tags with masks."


def coco_lists(root: Path) -> dict[str, Path]:
    """Annotation files by split, such as 'train2014': the converted tags where there are any, or else the JSON."""
    found: dict[str, Path] = {}
    for folder, pattern in ((root / "annotations", INSTANCES), (root, CONVERTED)):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            match = pattern.fullmatch(path.name)
            if match and path.is_file():
                found["".join(match.groups())] = path
    return found


@SOURCES.register("coco")
def coco(config: DataConfig) -> Collection:
    """``annotations/instances_{train,val}{2014,2017}.json`` and photos in ``train2014/`` and so on, or in ``images/``.

    Tags are the categories of a photo's annotations, those of crowds included; the lists leave out photos without an
    annotation, as the papers do. What ``tagmask convert coco`` wrote (tags_train2014.jsonl, masks/train2014/) is read
    instead of the JSON, which is slow to read. Where a folder has both years, data.train and data.val choose one
    (data.train=train2017). A split without photos is left out and listed as a problem; without val a share of train is
    held out, without train nothing trains. Classes are the 80 of COCO. Raises DataError that names the file and its
    archive, also where a setting names a split without photos.
    """
    root = data_root(config)
    files = coco_lists(root)
    year = _year(config, root, files)
    benchmark = f"coco{year}"
    base, masks = image_folder(config, root), mask_folder(config, root)
    items: list[Item] = []
    lists: dict[str, list[str]] = {}
    problems: list[Problem] = []
    absent: list[Problem] = []
    owners: dict[str, str] = {}
    for split in BENCHMARKS[benchmark]:
        if split not in files:
            continue
        folder = base / split
        tagged = read_coco_tags(files[split])
        there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        if not there.intersection(tagged):
            what = f"the photos of {files[split].name} are not there.{missing(benchmark, split)}"
            if split in (config.train, config.val, config.test):
                raise DataError(f"{folder}: {what}")
            absent.append(Problem(str(folder), what))
            continue
        drawn = {path.stem: path for path in (masks / split).glob("*.png")} if masks is not None else {}
        lists[split] = []
        for name, tags in tagged.items():
            if name not in there:
                problems.append(Problem(str(folder / name), f"listed in {files[split].name}, but not there"))
                continue
            id = Path(name).stem
            if owners.setdefault(id, f"{split}/{name}") != f"{split}/{name}":
                raise DataError(f"{folder / name}: called '{id}', as {owners[id]} is. Rename one of the two photos.")
            items.append(Item(id, folder / name, tags, drawn.get(id)))
            if tags:
                lists[split].append(id)
    if not lists:
        raise DataError(f"{absent[0].path}: {absent[0].what}")
    problems += absent
    # Without a list of train the photos of val that are in no list would be trained on.
    roles = {"train": [], **{split.removesuffix(year): ids for split, ids in lists.items()}}
    classes = list(COCO_CATEGORIES.values())
    return Collection("coco", root, classes, items, roles, problems, None, benchmark, lists)


def _year(config: DataConfig, root: Path, files: dict[str, Path]) -> str:
    years = sorted({split[-4:] for split in files})
    if not years:
        raise DataError(
            f"{root / 'annotations' / 'instances_train2014.json'}: no such file.{missing('coco2014', 'train2014')}"
        )
    wanted = {name[-4:] for name in (config.train, config.val, config.test) if name in files}
    if len(wanted or years) > 1:
        raise DataError(
            f"{root}: annotations of {' and '.join(years)} are there, and they share photos. Set data.train and "
            f"data.val, as in data.train=train{years[-1]} data.val=val{years[-1]}."
        )
    return (sorted(wanted) or years)[0]


def read_coco_tags(path: Path) -> dict[str, tuple[int, ...]]:
    """Class indices (0 to 79, ascending) by file name, from an instance JSON or from converted tags.

    () for photos without annotations; all tags where converted tags have several rows of a photo. Raises DataError on
    unknown images or categories and on broken files.
    """
    if path.suffix == ".jsonl":
        position = {name: i for i, name in enumerate(COCO_CATEGORIES.values())}
        listed: dict[str, tuple[int, ...]] = {}
        for row in read_table(path, separator=",").rows:
            tags = tag_indices(row.tags, position, f"{path}, line {row.line}")
            listed[row.name] = tuple(sorted({*tags, *listed.get(row.name, ())}))
        return listed
    names: dict[int, str] = {}
    found: dict[int, set[int]] = defaultdict(set)
    for record in read_instances(path):
        if isinstance(record, Photo):
            names[record.id] = record.name
        else:
            found[record.image].add(record.label - 1)
    return {name: tuple(sorted(found[id])) for id, name in names.items()}


class Photo(NamedTuple):
    """An entry of 'images'."""

    id: int
    name: str
    height: int
    width: int


class Annotation(NamedTuple):
    """An entry of 'annotations'. id: for errors. label: 1 to 80. segmentation: as the file has it, not checked."""

    image: int
    id: str
    label: int
    crowd: bool
    segmentation: Any


def read_instances(path: Path) -> Iterator[Photo | Annotation]:
    """The photos of an instance JSON, then their annotations, one at a time.

    Raises DataError that names the entry: on a broken file, a category that is not COCO's, numbers and names out of
    bounds, two photos of one id or name, an annotation of an unknown image.
    """
    ids: set[int] = set()
    stems: dict[str, int] = {}
    counts = dict.fromkeys(KINDS, 0)
    for key, entry in stream_json(path, tuple(KINDS)):
        counts[key] += 1
        shown = _shown_id(entry, counts[key])
        where = f"{path}: {KINDS[key]} {shown}"
        if not isinstance(entry, dict):
            raise DataError(f"{where} is {reprlib.repr(entry)}, not an object with fields.")
        if key == "categories":
            _check_category(entry, where)
        elif key == "images":
            photo = _photo(entry, where)
            if photo.id in ids:
                raise DataError(f"{where} is listed twice. Keep one of the entries.")
            # Masks are called after the stem: those of a.jpg and a.png would be one file.
            other = stems.setdefault(Path(photo.name).stem, photo.id)
            if other != photo.id:
                raise DataError(
                    f"{where} has the name of image {other} ('{photo.name}'). Rename one of the photos, or make one "
                    "image of the two entries."
                )
            ids.add(photo.id)
            yield photo
        else:
            annotation = _annotation(entry, shown, where)
            if annotation.image not in ids:
                raise DataError(f"{where} is of image {annotation.image}, which is not among the file's images.")
            yield annotation
    if not ids:
        raise DataError(f"{path}: it lists no images. Are these COCO's instance annotations?")


def _shown_id(entry: Any, number: int) -> str:
    id = entry.get("id") if isinstance(entry, dict) else None
    return reprlib.repr(id).strip("'") if isinstance(id, (int, str)) else f"number {number}"


def _check_category(entry: dict[str, Any], where: str) -> None:
    known = COCO_CATEGORIES.get(_whole(entry, "id", where))
    if known is None or known != entry.get("name"):
        raise DataError(f"{where} is {reprlib.repr(entry.get('name'))}, in COCO '{known}'.{OTHER_SETS}")


def _photo(entry: dict[str, Any], where: str) -> Photo:
    name, id = entry.get("file_name"), _whole(entry, "id", where)
    if not isinstance(name, str) or not is_file_name(name):
        raise DataError(
            f"{where}: 'file_name' is {reprlib.repr(name)}, not a bare file name as COCO's are: without folders and "
            f"control characters, at most {LONGEST_NAME} bytes."
        )
    height, width = (_whole(entry, key, where, 1, LONGEST_SIDE) for key in ("height", "width"))
    if height * width > MOST_PIXELS:
        raise DataError(f"{where} has {width}x{height} pixels; the most are {MOST_PIXELS:,}.")
    return Photo(id, name, height, width)


def is_file_name(name: str) -> bool:
    """Whether a name from a file is safe as that of one in a folder: no folders, control characters, great length."""
    return not UNFIT.search(name) and bool(name.strip(". ")) and len(name.encode()) <= LONGEST_NAME


def _annotation(entry: dict[str, Any], shown: str, where: str) -> Annotation:
    image, category = (_whole(entry, key, where) for key in ("image_id", "category_id"))
    if category not in LABELS:
        raise DataError(f"{where} has category {category}, not one of COCO's 80.{OTHER_SETS}")
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DataError(f"{where}: 'iscrowd' is {reprlib.repr(crowd)}, not 0 or 1.")
    return Annotation(image, shown, LABELS[category], bool(crowd), entry.get("segmentation"))


def _whole(entry: dict[str, Any], key: str, where: str, low: int = 0, high: int = MOST_ID) -> int:
    value = entry.get(key)
    if isinstance(value, float) and value.is_integer():  # pandas writes 1.0
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise DataError(f"{where}: '{key}' is {reprlib.repr(value)}, not a whole number from {low} to {high}.")
    return value
