"""``tagmask convert masks`` and ``masks-from``: the masks of a run's photos to a format, and out of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tagmask.convert.masks import cityscapes, coco, cvat, geojson, labelstudio, panoptic, voc, yolo
from tagmask.convert.masks.common import BACKGROUND, REST, UNSURE, Drawn, Labelled, Names, Target, sound
from tagmask.data import Collection, Item, read_mask, write_mask
from tagmask.data.collection import OWN_LIST
from tagmask.data.name_index import NameIndex
from tagmask.data.pixels import check_shape, upright_size
from tagmask.data.spelling import visible
from tagmask.errors import ConfigError, DataError, nearest
from tagmask.files import write_json
from tagmask.types import IGNORE

FORMATS: dict[str, ModuleType] = {
    "coco": coco,
    "coco-panoptic": panoptic,
    "yolo": yolo,
    "cvat": cvat,
    "labelstudio": labelstudio,
    "cityscapes": cityscapes,
    "geojson": geojson,
    "voc": voc,
}
"""Each has ``write(target, photos)``, which takes the photos one by one, and ``read(source, names)``, which gives them
so. What ``read`` raises is of the whole file, what its ``Drawn.draw`` raises of one photo."""
NEVER_UNSURE = ("yolo",)
"""Formats in which pixels of 255 are background."""
LOCAL = "/data/local-files/?d="
"""Where Label Studio serves files of its own disk."""
Progress = Callable[[int, int], None]


def masks_to(
    format: str,
    collection: Collection,
    masks: str | Path,
    out: str | Path,
    split: str | None = None,
    copy: bool = False,
    url: str = LOCAL,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Write the label maps ``masks``/<id>.png of a collection's photos in a format, into the new folder ``out``.

    split: only these photos. copy: photos that lie in the format's folders are copied, not linked. url: what stands
    before a photo's name, for Label Studio. Returns counts: masks; without_mask; failed, a list of file and why, of
    masks that cannot be read or are not of their photo's size. Raises ConfigError for another format, DataError where
    ``out`` is not empty, where there is no mask, and for a class called 'background' or 'unsure'.
    """
    masks, out = Path(masks), Path(out)
    module = _module(format, out)
    _names(collection)
    items = collection.items if split is None else collection.split(split)
    there = [item for item in items if (masks / f"{item.id}.png").is_file()]
    if not there:
        raise DataError(f"{masks}: holds no mask <id>.png of the {len(items)} photos. 'tagmask label' makes them.")
    base = _base(collection)
    own = {item.id: name for name in collection.splits for item in collection.listed(name)}
    failed: list[dict[str, str]] = []

    def labelled() -> Iterator[Labelled]:
        for done, item in enumerate(there, 1):
            path = masks / f"{item.id}.png"
            try:
                labels = read_mask(path, len(collection.classes))
                check_shape(path, labels.shape, item.image, upright_size(item.image))
            except DataError as error:
                failed.append({"file": str(path), "why": str(error)})
                continue
            name = item.image.relative_to(base).as_posix()
            where = own.get(item.id, REST) if split is None else split.removeprefix(OWN_LIST)
            yield Labelled(item.id, item.image, name, where, labels.numpy())
            progress(done, len(there))

    module.write(Target(out, collection.classes, copy, url), labelled())
    return {"masks": len(there) - len(failed), "without_mask": len(items) - len(there), "failed": failed}


def masks_from(
    format: str,
    source: str | Path,
    collection: Collection,
    out: str | Path,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Write what a format's file or folder says of a collection's photos as ``out``/<id>.png, with classes.json.

    Returns counts: masks; absent, photos of the collection that ``source`` does not have; failed, a list of file or
    photo and why, of photos that the collection does not have, unknown classes, other sizes, damaged shapes. The others
    are read. Raises ConfigError for another format, and DataError where ``out`` is not empty, where nothing of
    ``source`` can be read, and for a class called 'background' or 'unsure'.
    """
    source, out = Path(source), Path(out)
    entries, photos = _module(format, out).read(source, _names(collection)), _Photos(collection, source)
    failed: list[dict[str, str]] = []
    known: set[str] = set()
    masks = 0
    while True:
        try:
            with sound(source):
                drawn: Drawn | None = next(entries, None)
        except DataError as error:
            if not known:
                raise
            failed.append({"file": str(source), "why": str(error)})  # the masks before it stay
            break
        if drawn is None:
            break
        try:
            with sound(f"{source}: photo '{drawn.names[0]}'"):
                item = photos.find(drawn.names)
                if item.id in known:
                    raise DataError(f"{source}: photo '{item.id}' is there twice. Keep one of the two.")
                known.add(item.id)
                size = upright_size(item.image)
                labels = drawn.draw(size)
                check_shape(source / drawn.names[0], labels.shape, item.image, size)
        except DataError as error:
            failed.append({"file": drawn.names[0], "why": str(error)})
        else:
            write_mask(out / f"{item.id}.png", labels)
            masks += 1
            progress(masks, len(collection.items))
    if not masks and not failed:
        raise DataError(f"{source}: holds no masks. Is it a file of another format than {format}?")
    made = {"from": format, "says_unsure": format not in NEVER_UNSURE}
    note = {"classes": ["background", *collection.classes], "ignore": IGNORE, "converted": made}
    write_json(out / "classes.json", note)
    return {"masks": masks, "absent": len(collection.items) - len(known), "failed": failed}


def _module(format: str, out: Path) -> ModuleType:
    if format not in FORMATS:
        raise ConfigError(f"{format}: no format of masks.{nearest(format, FORMATS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is not an empty folder; name a new one (--out).")
    return FORMATS[format]


def _names(collection: Collection) -> Names:
    """Raises DataError for a class that is called as other pixels are."""
    for name, what in ((BACKGROUND, "what no class covers is"), (UNSURE, "pixels of 255 are")):
        if name in map(visible, collection.classes):
            raise DataError(f"{collection.root}: a class is called '{name}', as {what}. Rename the class.")
    return Names(collection.classes)


def _base(collection: Collection) -> Path:
    """The folder that all photos lie in."""
    return Path(os.path.commonpath([item.image.parent for item in collection.items]))


class _Photos:
    """Finds the photos that a file names, by id or as the names of tables are matched."""

    def __init__(self, collection: Collection, source: Path) -> None:
        self.items, self.source = collection.items, source
        self.by_id = {item.id: item for item in collection.items}
        self.index = NameIndex([item.image for item in self.items], [_base(collection)], str(source))

    def find(self, names: tuple[str, ...]) -> Item:
        """Raises DataError where no photo bears one of the names."""
        for name in names:
            if name in self.by_id:
                return self.by_id[name]
        for name in names:
            place = self.index.find(name)
            if place is not None:
                return self.items[place]
        raise DataError(f"{self.source}: the run has no photo '{names[0]}'.")
