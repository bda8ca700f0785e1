"""Source 'voc': the folder layout of Pascal VOC; tags from a table or from the XML annotations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from tagmask.config import DataConfig
from tagmask.data.benchmarks import missing
from tagmask.data.collection import Collection, Problem
from tagmask.data.find import check_classes, data_root, given_classes, mask_folder, read_lines, resolve
from tagmask.data.source_table import assemble, match_rows, tag_indices
from tagmask.data.spelling import clean_name
from tagmask.data.splits import find_list, read_list
from tagmask.data.table_file import read_table, table_path
from tagmask.data.walk import none_found, survey
from tagmask.errors import DataError
from tagmask.registry import SOURCES

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

BENCHMARK = "voc2012"
AUGMENTED = "SegmentationClassAug"
ENCODING = re.compile(
    rb"\s*<\?xml[^>]*?encoding=[\"']((?:gb|big5|shift|euc|iso|windows|cp|koi|latin)[\w-]*)[\"']", re.I
)
"""The encoding that an XML file declares, of those which editors use beside UTF-8 and UTF-16."""
SBD_FOLDERS = ("benchmark_RELEASE/dataset", "SBD/dataset", "SBD")
"""Where SBD may lie, in the root or one or two folders above it; a folder with 'cls', train.txt and val.txt."""


def is_voc(root: Path) -> bool:
    """Whether the folder is laid out as VOC: JPEGImages, and lists or annotations."""
    marks = (root / "ImageSets" / "Segmentation", root / "Annotations")
    return (root / "JPEGImages").is_dir() and any(mark.is_dir() for mark in marks)


@SOURCES.register("voc")
def voc(config: DataConfig) -> Collection:
    """``JPEGImages``, ``SegmentationClass`` and ``ImageSets/Segmentation`` as in VOC.

    Tags come from ``data.tags`` or tags.csv/tags.jsonl in the root, or else from ``Annotations/*.xml``. Classes are
    ``data.classes``, or else ``classes.txt``, or else VOC's twenty in its order when all names are among them, or
    else the names sorted. With VOC's twenty classes photos that have no mask in ``SegmentationClass`` take that of
    ``SegmentationClassAug``, or else that of SBD's ``cls/*.mat``, whose list is then known as 'train_aug', too.
    Raises DataError when neither tags nor annotations are there, or a name is no class.
    """
    root = data_root(config)
    base = resolve(config.images, root, "images") if config.images is not None else root / "JPEGImages"
    if not base.is_dir():
        inner = sorted(root.glob("**/JPEGImages"))
        hint = f" Did you mean data.root={inner[0].parent}?" if inner else missing(BENCHMARK, "train")
        raise DataError(f"{base}: no such folder.{hint}")
    photos = survey(base, mask_folder(config, root))
    images = photos.images
    if not images:
        raise DataError(f"{base}: {none_found(photos)}.")
    classes = given_classes(config, root)
    path, annotations = table_path(config, root), root / "Annotations"
    roles: list[str | None] = []
    if path is not None:
        found = read_table(path, config.separator)
        classes = classes or order_classes({t for row in found.rows for t in row.tags}, found.columns, str(path))
        tags, roles, problems = match_rows(found, images, [base, root], classes, path)
    elif annotations.is_dir():
        named, problems = read_annotations(images, annotations)
        if problems and not any(named.values()):
            raise DataError(f"{problems[0].path}: {problems[0].what} {len(problems)} annotations are lost.")
        classes = classes or order_classes({n for names in named.values() for n in names}, None, str(annotations))
        position = {name: i for i, name in enumerate(classes)}
        where = {image: str(annotations / f"{image.stem}.xml") for image in named}
        tags = [tag_indices(named[i], position, where[i]) if i in named else None for i in images]
    elif config.tags_from == "masks":
        tags, classes, problems = [None] * len(images), classes or list(VOC_CLASSES), []
    else:
        raise DataError(
            f"{root}: neither Annotations nor tags.csv is there. Set data.tags to a table of tags, or "
            "data.tags_from=masks to read them from the masks."
        )
    collection = assemble("voc", config, root, photos, tags, classes, problems, roles)
    return _as_published(collection, config) if tuple(classes) == VOC_CLASSES else collection


def _as_published(collection: Collection, config: DataConfig) -> Collection:
    """The collection with VOC 2012's own lists, and SBD's masks for photos without one."""
    root, items = collection.root, collection.items
    sbd = find_sbd(root)
    lists, problems = dict(collection.splits), list(collection.problems)
    path = find_list(root, "train_aug")
    if path is not None:
        lists["train_aug"], unknown = read_list(path, items, [root / "JPEGImages", root])
        problems += unknown
    elif sbd is not None and {"train", "val"} <= lists.keys():
        there = {item.id for item in items}
        ids = augmented_list(lists["train"], lists["val"], sbd)
        lists["train_aug"] = [id for id in ids if id in there]
        problems += [Problem(id, f"in {sbd}, but no such image") for id in ids if id not in there]
    if config.masks is None:
        masks = {path.stem: path for path in (sbd / "cls").glob("*.mat")} if sbd is not None else {}
        masks |= {path.stem: path for path in (root / AUGMENTED).glob("*.png")}
        items = [replace(item, mask=item.mask or masks.get(item.image.stem)) for item in items]
    return replace(collection, items=items, lists=lists, problems=problems, benchmark=BENCHMARK)


def find_sbd(root: Path) -> Path | None:
    """SBD's folder of cls, train.txt and val.txt, in a VOC root or up to two folders above; None where it is not."""
    absolute = root.absolute()
    parents = (absolute, absolute.parent, absolute.parent.parent)
    return next((parent / name for parent in parents for name in SBD_FOLDERS if is_sbd(parent / name)), None)


def is_sbd(folder: Path) -> bool:
    """Whether a folder has SBD's cls, train.txt and val.txt."""
    return (folder / "cls").is_dir() and all((folder / f"{part}.txt").is_file() for part in ("train", "val"))


def augmented_list(train: Sequence[str], val: Sequence[str], sbd: Path) -> list[str]:
    """'train_aug', sorted: VOC's train and all of SBD, without VOC's val (10,582 of the published lists)."""
    both = {line for part in ("train", "val") for _, line in read_lines(sbd / f"{part}.txt")}
    return sorted((both | set(train)) - set(val))


def order_classes(names: set[str], columns: list[str] | None, where: str) -> list[str]:
    """All twenty VOC classes if ``names`` are among them, since its masks count so; else ``columns``, or sorted."""
    if names and names.issubset(VOC_CLASSES) and not (columns and not set(columns).issubset(VOC_CLASSES)):
        return list(VOC_CLASSES)
    return check_classes(columns or sorted(names), where)


def read_annotations(images: list[Path], folder: Path) -> tuple[dict[Path, tuple[str, ...]], list[Problem]]:
    """Object names by image, from ``<stem>.xml``; images without a file are left out, those of a broken one, too."""
    result, problems = {}, []
    for image in images:
        path = folder / f"{image.stem}.xml"
        try:
            if path.is_file():
                result[image] = object_names(path)
        except DataError as error:
            problems.append(Problem(str(path), str(error).removeprefix(f"{path}: ")))
    return result, problems


def object_names(path: Path) -> tuple[str, ...]:
    """Names of the objects in one VOC annotation, those marked difficult included.

    Raises DataError when the file is not valid XML or an object has no name.
    """
    try:
        raw = path.read_bytes()
        declared = ENCODING.match(raw)
        # The parser knows few encodings. Of text that is decoded already it ignores the declaration.
        objects = ElementTree.fromstring(raw.decode(declared[1].decode()) if declared else raw).findall("object")
    except (ElementTree.ParseError, OSError, ValueError, LookupError, RecursionError) as error:
        raise DataError(
            f"{path}: not a readable annotation ({error}). Write it as XML in UTF-8; a bare '&' is written '&amp;'."
        ) from error
    names = tuple(clean_name(entry.findtext("name") or "", str(path)) for entry in objects)
    if "" in names:
        raise DataError(f"{path}: an object without a name.")
    return names
