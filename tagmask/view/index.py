"""What is known about each photo of a run, to be filtered, sorted and shown in pages."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tagmask.data import Item
from tagmask.data.review import Decision, Entry, Journal, decisions_of, standing
from tagmask.errors import DataError
from tagmask.files import read_csv
from tagmask.label import read_missing
from tagmask.workflow.opened import Run
from tagmask.workflow.quality import FILE as QUALITY
from tagmask.workflow.quality import HEADER, read_rows
from tagmask.workflow.suggest import FILE as SUGGESTED
from tagmask.workflow.suspects import FILE as SUSPECTS

SORTS = {"place": 1, "worth": -1, "doubt": -1, "iou": 1, "disagreement": -1, "suspicion": -1}
"""Figures to sort by, with 1 where the smallest comes first. Photos without the figure come last."""
DECISIONS: dict[str, Callable[[Decision], bool]] = {
    "none": lambda decision: not decision,
    "accepted": lambda decision: decision.verdict == "accept",
    "rejected": lambda decision: decision.verdict == "reject",
    "edited": lambda decision: decision.tags is not None or decision.mask is not None,
}


class Index:
    """The photos of a run with their figures and the decisions of its review.

    Figures come from quality.csv, suspects.csv, suggested.csv and masks/missing.csv, as far as they are there.
    Labels are those of masks: 1..C.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.items: list[Item] = run.collection.items
        self.classes = run.collection.classes
        self.place = {item.id: n for n, item in enumerate(self.items)}
        self.splits = [""] * len(self.items)
        for name in run.collection.splits:
            for item in run.collection.split(name):
                self.splits[self.place[item.id]] = name
        label = {name: i for i, name in enumerate(self.classes, 1)}
        self.missing: dict[int, set[int]] = defaultdict(set)
        for id, names in read_missing(run.folder.masks).items():
            if id in self.place:
                self.missing[self.place[id]] = {label[name] for name in names if name in label}
        self.further: dict[int, set[int]] = {}
        self.figures = {name: np.full(len(self.items), np.nan) for name in SORTS}
        self.figures["place"] = np.arange(len(self.items), dtype=float)
        column = {name: i for i, name in enumerate(HEADER)}
        for row in read_rows(run.folder.path / QUALITY):
            n = self.place.get(row[0])
            if n is None:
                continue
            for name in ("doubt", "iou"):
                self.figures[name][n] = _number_in(run.folder.path / QUALITY, row[column[name]])
            lacks, more = (
                {label[p] for p in row[column[key]].split(";") if p in label} for key in ("missing", "unexpected")
            )
            self.figures["disagreement"][n] = len(lacks) + len(more)
            self.further[n] = more
        self.suspects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        suspects = run.folder.path / SUSPECTS
        for photo, name, tag, _, odds, *_ in _rows(suspects, 6):
            n = self.place.get(photo)
            if n is not None and name in label:
                self.suspects[n].append({"label": label[name], "tag": tag})
                self.figures["suspicion"][n] = np.fmax(self.figures["suspicion"][n], _number_in(suspects, odds))
        suggested = run.folder.path / SUGGESTED
        for photo, worth, *_ in _rows(suggested, 4):
            if photo in self.place:
                self.figures["worth"][self.place[photo]] = _number_in(suggested, worth)
        self.journal = Journal(run.folder.path)
        self._read = -1
        self._lock = threading.Lock()
        self._entries: dict[int, list[Entry]] = {}
        self._decisions: dict[int, Decision] = {}

    def sorts(self) -> list[str]:
        """The figures that there are."""
        return [name for name in SORTS if not np.isnan(self.figures[name]).all()]

    def refresh(self) -> int:
        """Read the journal if it has grown. Returns its size, which grows with each decision of anybody."""
        with self._lock:
            size = self.journal.size()
            if size != self._read:
                entries = self.journal.entries()
                found: dict[int, list[Entry]] = defaultdict(list)
                for entry in entries:
                    if entry.photo in self.place:
                        found[self.place[entry.photo]].append(entry)
                decisions = decisions_of(self.journal.folder, self.run.learned_review)
                self._entries = dict(found)
                self._decisions = {self.place[id]: d for id, d in decisions.items() if id in self.place}
                self._read = size
            return size

    def decision(self, n: int) -> Decision:
        """What holds for a photo."""
        return self._decisions.get(n, Decision())

    def tags(self, n: int) -> list[int] | None:
        """Labels of a photo's tags, those of the review first; None where nobody looked."""
        decision, item = self.decision(n), self.items[n]
        if decision.tags is not None:
            return [i for i, name in enumerate(self.classes, 1) if name in decision.tags]
        return None if item.tags is None else [tag + 1 for tag in item.tags]

    def found(self, n: int) -> set[int]:
        """Labels in the photo's mask, and those that its segmenter finds without tags, as far as quality.csv says."""
        tagged = {tag + 1 for tag in self.items[n].tags or ()}
        return tagged - self.missing.get(n, set()) | self.further.get(n, set())

    def row(self, n: int) -> dict[str, Any]:
        """A photo as the page shows it."""
        tags, decision = self.tags(n), self.decision(n)
        figures = {
            name: float(self.figures[name][n]) for name in ("iou", "doubt", "disagreement", "worth", "suspicion")
        }
        return {
            "n": n,
            "id": self.items[n].id,
            "split": self.splits[n],
            "tags": tags,
            "found": sorted(self.found(n)),
            **{name: None if np.isnan(value) else value for name, value in figures.items()},
            "suspects": self.suspects.get(n, []),
            "decision": decision.verdict,
            "edited": decision.tags is not None or decision.mask is not None,
            "version": len(self._entries.get(n, ())),
        }

    def entries(self, n: int) -> list[dict[str, Any]]:
        """The photo's entries in the journal, newest last."""
        entries = self._entries.get(n, [])
        left = {entry.id for entry in standing(entries)}
        return [
            {"id": e.id, "action": e.action, "time": e.time, "author": e.author, "undone": e.id not in left}
            for e in entries
            if e.action != "undo"
        ]

    def find(self, query: Mapping[str, str]) -> np.ndarray:
        """Places of the photos that fit, in order. Keys: class, tag (labels), split, decision, suspect, text, sort.

        Raises DataError for a key's value that there is not.
        """
        kept = np.ones(len(self.items), dtype=bool)

        def keep(wanted: Callable[[int], bool]) -> None:
            for n in np.flatnonzero(kept):
                kept[n] = wanted(int(n))

        if split := query.get("split"):
            keep(lambda n: self.splits[n] == split)
        if query.get("suspect"):
            keep(lambda n: n in self.suspects)
        if text := query.get("text", "").lower():
            keep(lambda n: text in self.items[n].id.lower())
        if query.get("tag"):
            tag = _number(query["tag"], "tag")
            keep(lambda n: tag in (self.tags(n) or ()))
        if query.get("class"):
            label = _number(query["class"], "class")
            keep(lambda n: label in self.found(n))
        if decision := query.get("decision"):
            if decision not in DECISIONS:
                raise DataError(f"decision={decision}: there are {', '.join(DECISIONS)}.")
            keep(lambda n: DECISIONS[decision](self.decision(n)))
        name = query.get("sort") or "place"
        if name not in SORTS:
            raise DataError(f"sort={name}: there are {', '.join(SORTS)}.")
        found = np.flatnonzero(kept)
        return found[np.argsort(SORTS[name] * self.figures[name][found], kind="stable")]


def _rows(path: Path, columns: int) -> list[list[str]]:
    """The rows of a table that a run wrote, without its header; none where there is no file. Raises DataError."""
    rows = read_csv(path)[1:] if path.is_file() else []
    for line, row in enumerate(rows, 2):
        if len(row) != columns:
            raise DataError(f"{path}, row {line}: {len(row)} columns, not {columns}. Delete the file to get it anew.")
    return rows


def _number_in(path: Path, text: str) -> float:
    """A number of a table, NaN for an empty cell. Raises DataError."""
    try:
        return float(text or "nan")
    except ValueError:
        raise DataError(f"{path}: '{text[:50]}' is no number. Delete the file to get it anew.") from None


def _number(text: str, key: str) -> int:
    if not text.isdecimal() or len(text) > 3:
        raise DataError(f"{key}={text[:50]}: not a label.")
    return int(text)
