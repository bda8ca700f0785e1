"""Source 'voc': the folder layout of Pascal VOC; tags from a table or from the XML annotations."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from tagmask.config import DataConfig
from tagmask.data.collection import Collection, Problem
from tagmask.data.files import check_classes, data_root, find_images, given_classes, resolve
from tagmask.data.table import assemble, match_rows, read_table, table_path
from tagmask.errors import DataError, nearest
from tagmask.registry import SOURCES

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def is_voc(root: Path) -> bool:
    """Whether the folder is laid out as VOC: JPEGImages, and lists or annotations."""
    marks = (root / "ImageSets" / "Segmentation", root / "Annotations")
    return (root / "JPEGImages").is_dir() and any(mark.is_dir() for mark in marks)


@SOURCES.register("voc")
def voc(config: DataConfig, seed: int = 0) -> Collection:
    """``JPEGImages``, ``SegmentationClass`` and ``ImageSets/Segmentation`` as in VOC.

    Tags come from ``data.tags`` or tags.csv/tags.jsonl in the root, or else from ``Annotations/*.xml``. Classes are
    ``data.classes``, or else ``classes.txt``, or else VOC's twenty in its order when all names are among them, or
    else the names sorted. Raises DataError when neither tags nor annotations are there, or a name is no class.
    """
    root = data_root(config)
    base = resolve(config.images, root, "images") if config.images is not None else root / "JPEGImages"
    if not base.is_dir():
        inner = sorted(root.glob("**/JPEGImages"))
        raise DataError(f"{base}: no such folder." + (f" Did you mean data.root={inner[0].parent}?" if inner else ""))
    images = find_images(base)
    if not images:
        raise DataError(f"{base}: no images there.")
    classes = given_classes(config, root)
    path, annotations = table_path(config, root), root / "Annotations"
    if path is not None:
        rows, columns = read_table(path, config.separator)
        classes = classes or order_classes({t for row in rows for t in row.tags}, columns, str(path))
        tags, problems = match_rows(rows, images, [base, root], classes, path)
    elif annotations.is_dir():
        names, problems = read_annotations(images, annotations)
        classes = classes or order_classes({n for found in names if found for n in found}, None, str(annotations))
        tags = [_indices(found, classes, annotations / f"{p.stem}.xml") for found, p in zip(names, images)]
    else:
        raise DataError(f"{root}: neither Annotations nor tags.csv is there. Set data.tags to a table of tags.")
    return assemble("voc", config, root, base, images, tags, classes, problems)


def order_classes(names: set[str], columns: list[str] | None, where: str) -> list[str]:
    """All twenty VOC classes if ``names`` are among them, since its masks count so; else ``columns``, or sorted."""
    if names and names.issubset(VOC_CLASSES) and not (columns and not set(columns).issubset(VOC_CLASSES)):
        return list(VOC_CLASSES)
    return check_classes(columns or sorted(names), where)


def read_annotations(images: list[Path], folder: Path) -> tuple[list[tuple[str, ...] | None], list[Problem]]:
    """Object names of each image from ``<stem>.xml``; None where there is no file or it is broken (a problem)."""
    result: list[tuple[str, ...] | None] = []
    problems = []
    for image in images:
        path = folder / f"{image.stem}.xml"
        try:
            result.append(object_names(path) if path.is_file() else None)
        except DataError as error:
            result.append(None)
            problems.append(Problem(str(path), str(error)))
    return result, problems


def object_names(path: Path, difficult: bool = True) -> tuple[str, ...]:
    """Names of the objects in one VOC annotation, sorted, each once; those marked difficult count unless told not to.

    Raises DataError when the file is not valid XML or an object has no name.
    """
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except (ElementTree.ParseError, OSError) as error:
        raise DataError(f"{path}: not a readable annotation ({error}).") from error
    names = set()
    for entry in objects:
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{path}: an object without a name.")
        if difficult or (entry.findtext("difficult") or "0").strip() != "1":
            names.add(name)
    return tuple(sorted(names))


def _indices(names: tuple[str, ...] | None, classes: list[str], path: Path) -> tuple[int, ...] | None:
    if names is None:
        return None
    for name in names:
        if name not in classes:
            raise DataError(f"{path}: '{name}' is not a class.{nearest(name, classes)}")
    return tuple(sorted(classes.index(name) for name in names))
