"""What a source gives back: a list of photos with their tags, and the lists that say what each is used for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tagmask.data.benchmarks import missing
from tagmask.data.names import check_name
from tagmask.errors import DataError, nearest

if TYPE_CHECKING:
    from torch import Tensor

ColourMap = dict[tuple[int, int, int], int]
"""Label of each colour of masks that were saved as RGB."""
Box = tuple[float, float, float, float]
OWN_LIST = "list:"
"""Prefix of a split's name that means one of the data set's own lists, as in 'list:train_aug'."""


@dataclass(frozen=True, slots=True)
class Item:
    """One photo on disk.

    id: the image's name without extension, unique in its collection (the path relative to the image folder where
    two names collide). tags: indices into the collection's classes, 0..C-1, ascending; ``()`` says that none of the
    classes is there; None says that nobody looked (unlabelled). mask: the file of true labels, or None. boxes: true
    boxes (x0,y0,x1,y1) in pixels of the photo, half-open; for localisation, empty where the source has none. corrected:
    a label file that a person drew in a review; it stands in the place of a mask that would be made.
    """

    id: str
    image: Path
    tags: tuple[int, ...] | None
    mask: Path | None = None
    boxes: tuple[Box, ...] = ()
    corrected: Path | None = None


@dataclass(frozen=True)
class Problem:
    """Something that was skipped or looks wrong, for the user to read."""

    path: str
    what: str


@dataclass
class Collection:
    """A data set: C foreground class names, photos, and lists of ids by split name.

    ``splits`` holds any of 'train', 'val' and 'test'; 'all' is always there. ``colour_map`` is set where masks are
    saved as RGB. ``benchmark`` names the published data set that this is (see ``benchmarks``), and ``lists`` has the
    ids of all its own splits by their published names ('train_aug', 'val2014'), which data.train and the like take.
    ``tags_of_masks`` says that the tags are the classes in the true masks.
    """

    source: str
    root: Path
    classes: list[str]
    items: list[Item]
    splits: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    colour_map: ColourMap | None = None
    benchmark: str | None = None
    lists: dict[str, list[str]] = field(default_factory=dict)
    tags_of_masks: bool = False

    def __post_init__(self) -> None:
        self._by_id = {item.id: item for item in self.items}
        if len(self._by_id) != len(self.items):
            raise DataError(f"{self.root}: two images share one id; this is a fault of the source '{self.source}'.")
        for id in self._by_id:
            check_name(id, self.root)

    @property
    def num_classes(self) -> int:
        """C+1: the background is counted."""
        return len(self.classes) + 1

    def item(self, id: str) -> Item:
        """The photo called ``id``. Raises DataError that names the nearest known id."""
        if id not in self._by_id:
            close = nearest(id, self._by_id) if len(self._by_id) < 1000 else ""
            raise DataError(f"{self.root}: there is no image '{id}'.{close if 'mean' in close else ''}")
        return self._by_id[id]

    def split(self, name: str) -> list[Item]:
        """The photos of 'train', 'val', 'test' or 'all', in the order of their list.

        'train' leaves out whatever is held out as 'val' or kept as 'test', and photos without tags. 'list:NAME' gives
        one of the data set's own lists whole, whatever it is used for: papers score CAMs on VOC's 'list:train', and
        train on 'train_aug'. Raises DataError that lists the splits there are.
        """
        if name == "all":
            return list(self.items)
        own = name.removeprefix(OWN_LIST)
        if name.startswith(OWN_LIST) and own in self.lists:
            return [self.item(id) for id in self.lists[own]]
        if name not in self.splits:
            there = ", ".join([*self.splits, "all", *(f"{OWN_LIST}{own}" for own in self.lists)])
            settable = f" Set data.{name} to a list file." if name in ("train", "val", "test") else ""
            hint = missing(self.benchmark, own) if own != name else settable
            raise DataError(f"{self.root}: there is no split '{name}'. There are: {there}.{hint}")
        items = [self.item(id) for id in self.splits[name]]
        if name == "train":
            held = {id for other in ("val", "test") for id in self.splits.get(other, ())}
            items = [item for item in items if item.tags is not None and item.id not in held]
        return items

    def listed(self, name: str) -> list[Item]:
        """The photos of a split as ``split`` gives them; none where there is no such split."""
        return self.split(name) if self.splits.get(name) else []

    def split_hash(self, name: str) -> str:
        """First 12 hex digits of the SHA-256 of the split's sorted ids: the same photos give the same hash."""
        return hash_ids(item.id for item in self.split(name))


def tag_vector(tags: Iterable[int], classes: int) -> Tensor:
    """(C,) float of 0/1 from class indices."""
    import torch

    vector = torch.zeros(classes)
    vector[list(tags)] = 1
    return vector


def hash_ids(ids: Iterable[str]) -> str:
    """First 12 hex digits of the SHA-256 of sorted ids."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:12]


def hash_items(classes: Iterable[str], items: Iterable[Item]) -> str:
    """SHA-256 over class names and the photos' ids, tags and sizes of files (None where a file is gone)."""
    digest = hashlib.sha256("\n".join(classes).encode())
    for item in sorted(items, key=lambda item: item.id):
        try:
            size = item.image.stat().st_size
        except OSError:
            size = None
        digest.update(f"\n{item.id}|{item.tags}|{size}".encode())
    return digest.hexdigest()
