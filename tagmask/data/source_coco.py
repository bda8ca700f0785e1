"""Source 'coco': MS COCO 2014 and 2017. Tags from the instance annotations, masks from ``tagmask convert coco``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ijson

from tagmask.config import DataConfig
from tagmask.data.benchmarks import BENCHMARKS, missing
from tagmask.data.collection import Collection, Item, Problem
from tagmask.data.find import data_root, image_folder, mask_folder
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
OTHER_SETS = " Sets of other categories are read as a table of tags with masks."


def coco_lists(root: Path) -> dict[str, Path]:
    """Annotation files by split, such as 'train2014': the converted tags where there are any, or else the JSON."""
    found: dict[str, Path] = {}
    for folder, pattern in ((root / "annotations", INSTANCES), (root, CONVERTED)):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            match = pattern.fullmatch(path.name)
            if match:
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

    () for photos without annotations. Raises DataError on unknown images or categories and on broken files.
    """
    if path.suffix == ".jsonl":
        position = {name: i for i, name in enumerate(COCO_CATEGORIES.values())}
        rows = read_table(path, separator=",").rows
        return {row.name: tag_indices(row.tags, position, f"{path}, line {row.line}") for row in rows}
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
    """An entry of 'annotations'. label: 1 to 80. segmentation: polygons or run lengths, as the file has them."""

    image: int
    id: Any
    label: int
    crowd: bool
    segmentation: Any


def stream_json(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(key, element) for each element of the lists that a file's object has under ``keys``, one at a time.

    Key by key in the order of ``keys``, with one pass over the file for each; what lies under other keys is skipped.
    Raises DataError that names the file where it cannot be read or is not valid JSON.
    """
    try:
        for key in keys:
            with path.open("rb") as file:
                for value in ijson.items(file, f"{key}.item", use_float=True, buf_size=1 << 20):
                    yield key, value
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    except (ijson.JSONError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())
        raise DataError(f"{path}: not valid JSON ({what}). A download may have broken off: get it again.") from error


def read_instances(path: Path) -> Iterator[Photo | Annotation]:
    """The photos of an instance JSON, then their annotations, one at a time.

    Raises DataError on a broken file, a category that is not COCO's, and an annotation of an unknown image.
    """
    ids: set[int] = set()
    for key, value in stream_json(path, ("categories", "images", "annotations")):
        try:
            if key == "categories":
                known = COCO_CATEGORIES.get(value["id"])
                if known != value["name"]:
                    raise DataError(
                        f"{path}: category {value['id']} is '{value['name']}', in COCO '{known}'.{OTHER_SETS}"
                    )
            elif key == "images":
                photo = Photo(int(value["id"]), str(value["file_name"]), int(value["height"]), int(value["width"]))
                if Path(photo.name).name != photo.name:
                    raise DataError(f"{path}: image '{photo.name}' is not a bare file name, as COCO's are.")
                ids.add(photo.id)
                yield photo
            else:
                image, category, id = int(value["image_id"]), int(value["category_id"]), value.get("id")
                if image not in ids:
                    raise DataError(f"{path}: annotation {id} is of image {image}, which is not among its images.")
                if category not in LABELS:
                    raise DataError(
                        f"{path}: annotation {id} has category {category}, not one of COCO's 80.{OTHER_SETS}"
                    )
                crowd = bool(value.get("iscrowd", 0))
                yield Annotation(image, id, LABELS[category], crowd, value.get("segmentation"))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: an entry of '{key}' lacks a field, or it is wrong ({error!r}).") from error
    if not ids:
        raise DataError(f"{path}: it lists no images. Are these COCO's instance annotations?")
