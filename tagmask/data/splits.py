"""The splits train, val and test: which photos train, are held out, or are only scored."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tagmask.config import DataConfig
from tagmask.data.benchmarks import missing
from tagmask.data.collection import Collection, Item, Problem
from tagmask.data.find import is_image, read_lines
from tagmask.data.layout import SPLITS
from tagmask.data.name_index import NameIndex
from tagmask.errors import DataError

ROLES = ("train", "val", "test")
LIST_FOLDERS = ("ImageSets/Segmentation", ".", "splits", "ImageSets/Main")


def find_list(root: Path, name: str) -> Path | None:
    """The list file of a split's name, as in ``ImageSets/Segmentation/train.txt`` or ``train.txt``, or None."""
    paths = (root / folder / f"{name}.txt" for folder in LIST_FOLDERS)
    return next((path for path in paths if path.is_file()), None)


def read_list(path: Path, items: Sequence[Item], bases: Sequence[Path]) -> tuple[list[str], list[Problem]]:
    """Ids of the images that a list names, one a line, and the lines that name none.

    Where the whole line is no image its first word is tried (VOC's lists carry further columns). Raises DataError
    when a list with lines names no image at all.
    """
    index = NameIndex([item.image for item in items], bases, str(path))
    by_id = {item.id: i for i, item in enumerate(items)}
    ids: dict[str, None] = {}
    problems = []
    lines = read_lines(path)
    for number, line in lines:
        word = line.split()[0]
        hits = (by_id[name] if name in by_id else index.exact(name) for name in (line, word))
        hit = next((hit for hit in hits if hit is not None), None)
        if hit is None:
            # A further column may be a mask, which is named as its photo.
            hit = index.find(word if is_image(word) or re.search(r"\s[/\\]", line) else line)
        if hit is None:
            problems.append(Problem(line, f"{path.name}, line {number}: no such image"))
        else:
            ids[items[hit].id] = None
    if lines and not ids:
        raise DataError(f"{path}: no line names an image (the first is '{lines[0][1]}').")
    return list(ids), [*problems, *index.notes()]


def own_splits(root: Path, items: Sequence[Item], bases: Sequence[Path]) -> tuple[dict[str, list[str]], list[Problem]]:
    """The lists train, val and test that lie in the data set itself."""
    splits, problems = {}, []
    for role in ROLES:
        path = find_list(root, role) or _called_otherwise(root, role)
        if path is not None:
            splits[role], unknown = read_list(path, items, bases)
            problems += unknown
    return splits, problems


def _called_otherwise(root: Path, role: str) -> Path | None:
    """A split's list as ``Valid.txt`` or ``TRAIN.TXT``, or None."""
    names = {f"{word}.txt" for word in SPLITS if SPLITS[word] == role}
    folders = [root / folder for folder in LIST_FOLDERS if (root / folder).is_dir()]
    return next((p for folder in folders for p in sorted(folder.iterdir()) if p.name.lower() in names), None)


def column_splits(items: Sequence[Item], roles: Sequence[str | None]) -> dict[str, list[str]]:
    """Ids by split, from the split of each photo."""
    found = {role: [item.id for item, own in zip(items, roles) if own == role] for role in ROLES}
    return {role: ids for role, ids in found.items() if ids}


def assign_splits(collection: Collection, config: DataConfig, seed: int, bases: Sequence[Path]) -> Collection:
    """The collection with its final train, val and test lists.

    A list that the configuration names (a file, or the name of one of the data set's own lists) replaces the data
    set's choice. Without a train list all tagged images train. Without a val list a share of the training images is
    held out, the same for the same seed. Images of val and test never train. 'train' may be empty: such data can
    still be scored. Raises DataError on a list that cannot be found or names no image.
    """
    splits, problems = dict(collection.splits), list(collection.problems)
    for role in ROLES:
        name = getattr(config, role)
        if name in collection.lists:
            splits[role] = collection.lists[name]
        elif name is not None:
            path = _configured(collection, name, role)
            splits[role], unknown = read_list(path, collection.items, bases)
            problems += unknown
    train = splits.get("train", [item.id for item in collection.items])
    held = {id: role for role in ("test", "val") for id in splits.get(role, ())}
    bare = {item.id for item in collection.items if item.tags is None}
    if "train" in splits:
        problems += [Problem(id, f"listed for train and {held[id]}: does not train") for id in train if id in held]
        problems += [Problem(id, "listed for train but unlabelled: does not train") for id in train if id in bare]
    train = [id for id in train if id not in held and id not in bare]
    if "val" not in splits and config.val_share > 0 and len(train) > 1:
        splits["val"] = hold_out(train, config.val_share, seed)
        out = set(splits["val"])
        train = [id for id in train if id not in out]
    splits["train"] = train
    ordered = {role: splits[role] for role in ROLES if role in splits}
    return replace(collection, splits=ordered, problems=problems)


def hold_out(ids: Sequence[str], share: float, seed: int) -> list[str]:
    """A share of the ids, at least one and never all, in their order.

    Each id is ranked by a hash of seed and id: the choice needs no random state and hardly changes when images are
    added.
    """
    count = min(max(1, round(share * len(ids))), len(ids) - 1)
    chosen = set(sorted(ids, key=lambda id: hashlib.sha256(f"{seed}/{id}".encode()).digest())[:count])
    return [id for id in ids if id in chosen]


def _configured(collection: Collection, name: str, role: str) -> Path:
    root = collection.root
    for path in (Path(name), root / name, find_list(root, name.removesuffix(".txt"))):
        if path is not None and path.is_file():
            return path
    folders = ", ".join(str(root / f) for f in LIST_FOLDERS)
    hint = missing(collection.benchmark, name)
    raise DataError(f"'{name}' (data.{role}): no such list file, and no list of that name in {folders}.{hint}")
