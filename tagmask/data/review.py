"""The review of a run: what people decided about its photos, in a journal that only grows."""

from __future__ import annotations

import getpass
import json
import os
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from tagmask.data.collection import Collection, Problem
from tagmask.data.names import check_name
from tagmask.data.pixels import write_mask
from tagmask.errors import DataError, nearest
from tagmask.files import of_system
from tagmask.lock import held

JOURNAL = "review.jsonl"
MASKS = "review"
"""Folder of the corrected masks, beside the journal."""
SNAPSHOT = "reviewed"
"""In a run folder: the review that it learned from, with its corrected masks. Later decisions do not change it."""
Action = Literal["accept", "reject", "tags", "mask", "undo"]


@dataclass(frozen=True)
class Entry:
    """A line of the journal.

    id: unique. time: UTC, ISO 8601. photo: its id. tags: class names, of action 'tags'. mask: the file of action
    'mask', relative to the journal's folder. of: the id of the entry that 'undo' takes back.
    """

    id: str
    time: str
    author: str
    photo: str
    action: Action
    tags: tuple[str, ...] | None = None
    mask: str | None = None
    of: str | None = None


ENTRY = TypeAdapter(Entry)


@dataclass(frozen=True)
class Decision:
    """What holds for a photo. verdict: the last of 'accept' and 'reject'. tags: class names. mask: a label file."""

    verdict: Literal["accept", "reject"] | None = None
    tags: tuple[str, ...] | None = None
    mask: Path | None = None

    def __bool__(self) -> bool:
        return self != Decision()


class Journal:
    """``review.jsonl`` in a folder, usually a run's, and the corrected masks in ``review/``.

    Lines are only added, under a lock, so several people may review at once. Nothing that is there is changed: an undo
    is a line, too, and a mask that is corrected again is another file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / JOURNAL

    def size(self) -> int:
        """Bytes of the journal: they grow with each decision of anybody."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def entries(self) -> list[Entry]:
        """All entries, in their order. A line that was cut off or damaged is left out, with a warning."""
        if not self.path.is_file():
            return []
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError as error:
            raise of_system(error, self.path) from error
        found = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                found.append(_entry(json.loads(line)))
            except (ValueError, RecursionError, DataError) as error:
                why = " ".join(str(error).split())[:200]
                warnings.warn(f"{self.path}, line {number}: left out, not an entry ({why}).", stacklevel=2)
        return found

    def add(
        self,
        photo: str,
        action: Action,
        tags: Sequence[str] | None = None,
        labels: np.ndarray | None = None,
        of: str | None = None,
        author: str | None = None,
    ) -> Entry:
        """Add an entry, and on the disk before it returns.

        labels: uint8 (H,W), the label map of action 'mask'. of: the entry that 'undo' takes back; default: the photo's
        last one. Raises DataError where nothing is left to undo, and where the disk refuses.
        """
        id = uuid.uuid4().hex[:12]
        mask = None
        if labels is not None:
            mask = f"{MASKS}/{check_name(photo, self.path)}.{id}.png"
            write_mask(self.folder / mask, labels)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with held(self.folder / f".{JOURNAL}.lock", wait=True):
                if action == "undo" and of is None:
                    of = self._last(photo)
                now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
                entry = Entry(
                    id, now, author or whoami(), photo, action, None if tags is None else tuple(tags), mask, of
                )
                self._append(entry)
        except OSError as error:
            raise of_system(error, self.path) from error
        return entry

    def _append(self, entry: Entry) -> None:
        kept = {key: value for key, value in asdict(entry).items() if value is not None}
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line that was cut off; it stays, and this one begins anew
                    file.write(b"\n")
            file.write(json.dumps(kept, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _last(self, photo: str) -> str:
        left = standing([entry for entry in self.entries() if entry.photo == photo])
        if not left:
            raise DataError(f"{self.path}: there is nothing to undo for '{photo}'.")
        return left[-1].id

    def decisions(self) -> dict[str, Decision]:
        """What holds for each photo that somebody decided about, by its id."""
        return decided(self.entries(), self.folder)


def decisions_of(folder: Path, learned: Path | None) -> dict[str, Decision]:
    """What holds for the photos of a run: its own review in ``folder`` over the one that it learned from, if any."""
    found = {} if learned is None else Journal(learned).decisions()
    for photo, new in Journal(folder).decisions().items():
        old = found.get(photo, Decision())
        tags = old.tags if new.tags is None else new.tags
        found[photo] = Decision(new.verdict or old.verdict, tags, new.mask or old.mask)
    return found


def standing(entries: Iterable[Entry]) -> list[Entry]:
    """The entries but those that were undone, and the undoing ones."""
    entries = list(entries)
    undone = {entry.of for entry in entries if entry.action == "undo"}
    return [entry for entry in entries if entry.action != "undo" and entry.id not in undone]


def decided(entries: Iterable[Entry], folder: Path) -> dict[str, Decision]:
    """What holds for each photo after these entries; the masks lie in ``folder``."""
    found: dict[str, Decision] = {}
    for entry in standing(entries):
        before = found.get(entry.photo, Decision())
        if entry.action in ("accept", "reject"):
            found[entry.photo] = replace(before, verdict=entry.action)  # type: ignore[arg-type]
        elif entry.action == "tags":
            found[entry.photo] = replace(before, tags=entry.tags or ())
        elif entry.mask is not None:
            found[entry.photo] = replace(before, mask=folder / entry.mask)
    return found


def _entry(values: Any) -> Entry:
    """An entry of JSON. Raises ValueError and DataError."""
    entry = ENTRY.validate_python(values)
    check_name(entry.photo, "photo")
    needs = {"tags": entry.tags, "mask": entry.mask, "undo": entry.of}
    if needs.get(entry.action, "") is None:
        raise DataError(f"action '{entry.action}' says not which")
    if entry.mask is not None:
        check_name(entry.mask, "mask")
    return entry


def whoami() -> str:
    """The user's name, as the system knows it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in containers
        return "unknown"


def reviewed(collection: Collection, decisions: Mapping[str, Decision], where: Path) -> Collection:
    """The collection with the decisions in force.

    Tags are those of the review. A photo that got its first tags, and is in no split, trains. Rejected photos train no
    longer. A corrected mask is the photo's label in training (``Item.corrected``); of photos that do not train, and
    have no true mask, it is the true mask. where: the journal, for messages. Raises DataError for tags that are no
    classes. Photos that are gone are listed among the problems.
    """
    place = {name: i for i, name in enumerate(collection.classes)}
    there = {item.id for item in collection.items}
    listed = {id for ids in collection.splits.values() for id in ids}
    problems = [Problem(id, f"decided in {where}, but not among the photos") for id in decisions if id not in there]
    rejected = {id for id in there if decisions.get(id, Decision()).verdict == "reject"}
    train = collection.splits.get("train", [])
    problems += [Problem(id, "rejected in the review: it does not train") for id in train if id in rejected]
    train = [id for id in train if id not in rejected]
    items = []
    for item in collection.items:
        decision = decisions.get(item.id)
        if decision and decision.tags is not None:
            unknown = next((name for name in decision.tags if name not in place), None)
            if unknown is not None:
                close = nearest(unknown, place)
                raise DataError(f"{where}: photo '{item.id}' has the tag '{unknown}', which is no class.{close}")
            if item.tags is None and item.id not in listed | rejected:
                train.append(item.id)
            item = replace(item, tags=tuple(sorted(place[name] for name in decision.tags)))
        if decision and decision.mask is not None:
            truth = item.mask is not None or item.id in train
            item = replace(item, corrected=decision.mask, mask=item.mask if truth else decision.mask)
        items.append(item)
    splits = collection.splits | ({"train": train} if collection.splits else {})
    return replace(collection, items=items, splits=splits, problems=[*collection.problems, *problems])
