"""Source 'coco': MS COCO 2014 and 2017. Tags from the instance annotations, masks from ``tagmask convert coco``."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tagmask.config import DataConfig
from tagmask.data.benchmarks import BENCHMARKS, missing
from tagmask.data.collection import Collection, Item, Problem
from tagmask.data.find import check_classes, data_root, image_folder, mask_folder
from tagmask.data.json_stream import stream_json
from tagmask.errors import DataError
from tagmask.registry import SOURCES

INSTANCES = re.compile(r"instances_(train|val)(2014|2017)\.json")
JSON_KEYS = ("categories", "images", "annotations")
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


def is_coco(root: Path) -> bool:
    """Whether COCO's instance annotations, or what was converted from them, lie in the folder."""
    return bool(coco_lists(root))


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
def coco(config: DataConfig, seed: int = 0) -> Collection:
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
    classes = check_classes(list(COCO_CATEGORIES.values()), "COCO's categories")
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
        drawn = {p.name for p in (masks / split).glob("*.png")} if masks is not None else set()
        lists[split] = []
        for name, tags in tagged.items():
            if name not in there:
                problems.append(Problem(str(folder / name), f"listed in {files[split].name}, but not there"))
                continue
            id, png = Path(name).stem, f"{Path(name).stem}.png"
            items.append(Item(id, folder / name, tags, masks / split / png if masks and png in drawn else None))
            if tags:
                lists[split].append(id)
    if not lists:
        raise DataError(f"{absent[0].path}: {absent[0].what}")
    problems += absent
    roles = {role: lists[f"{role}{year}"] for role in ("train", "val") if f"{role}{year}" in lists}
    if "train" not in roles:
        roles["train"] = []  # else the photos of val that are in no list would be trained on
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
        return _converted_tags(path)
    names: dict[int, str] = {}
    found: dict[int, set[int]] = {}
    for key, value in stream_json(path, JSON_KEYS):
        if key == "images":
            id, name, _ = image_fields(value, path)
            names[id] = name
        elif key == "annotations":
            image, label = annotation_fields(value, path)
            found.setdefault(image, set()).add(label - 1)
        elif key == "categories":
            check_category(value, path)
    unknown = next((image for image in found if image not in names), None)
    if unknown is not None:
        raise DataError(f"{path}: an annotation is of image {unknown}, which is not among its images.")
    if not names:
        raise DataError(f"{path}: it lists no images. Are these COCO's instance annotations?")
    return {name: tuple(sorted(found.get(id, ()))) for id, name in names.items()}


def _converted_tags(path: Path) -> dict[str, tuple[int, ...]]:
    position = {name: i for i, name in enumerate(COCO_CATEGORIES.values())}
    result = {}
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(text)
            result[str(entry["image"])] = tuple(sorted(position[tag] for tag in entry["tags"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {line}: not what 'tagmask convert coco' writes ({error!r}). Delete it and convert again."
            ) from error
    return result


def image_fields(value: dict, path: Path) -> tuple[int, str, tuple[int, int]]:
    """Id, file name and (height, width) of an entry of 'images'. Raises DataError."""
    try:
        name = str(value["file_name"])
        if Path(name).name != name:
            raise DataError(f"{path}: image '{name}' is not a bare file name, as COCO's are.")
        return int(value["id"]), name, (int(value["height"]), int(value["width"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: an image without id, file_name, height or width ({error!r}).") from error


def annotation_fields(value: dict, path: Path) -> tuple[int, int]:
    """Image id and label (1 to 80) of an entry of 'annotations'. Raises DataError on an unknown category."""
    try:
        image, category = int(value["image_id"]), int(value["category_id"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: an annotation without image_id or category_id ({error!r}).") from error
    if category not in LABELS:
        raise DataError(
            f"{path}: annotation {value.get('id')} has category {category}, which is none of COCO's 80. Sets of other "
            "categories are read as a table of tags with masks."
        )
    return image, LABELS[category]


def check_category(value: dict, path: Path) -> None:
    """Raise DataError unless an entry of 'categories' is COCO's own."""
    id, name = value.get("id"), value.get("name")
    if COCO_CATEGORIES.get(id) != name:  # type: ignore[arg-type]
        raise DataError(
            f"{path}: category {id} is '{name}', in COCO it is '{COCO_CATEGORIES.get(id)}'. "  # type: ignore[arg-type]
            "Sets of other categories are read as a table of tags with masks."
        )
