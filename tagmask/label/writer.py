"""Label files of many photos, written as they are made: palette PNG, resumable, failures listed."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tagmask.data import Item, read_mask, write_mask
from tagmask.data.pixels import Notes, as_array, check_size, describe_notes, raw_mask, read_photo
from tagmask.data.stored import Stored, as_uri, is_uri
from tagmask.data.walk import OVERLAY, Survey
from tagmask.errors import ConfigError, DataError
from tagmask.files import csv_text, read_csv, read_record, sweep, write_json, write_text, written
from tagmask.label.overlay import overlay as draw_overlay
from tagmask.label.places import MANIFEST, Place, digest, read_manifest, write_manifest
from tagmask.types import IGNORE

if TYPE_CHECKING:
    from torch import Tensor

    from tagmask.label.look import Look

MISSING = "missing.csv"
"""Beside masks of tagged photos: a line for each photo and tagged class that its mask lacks."""
Make = Callable[[Item, "Look"], "tuple[Tensor, Tensor | None, Sequence[str]]"]
"""An item and its Look → label map uint8 (H,W), and the scores (n,h,w) to save where soft maps are asked for, with the
names of the n classes; None where there are no scores."""


@dataclass
class Labelled:
    """What a labelling run did. skipped: masks left as they were; failed: (file, why); untagged: photos left out.

    unsure: share of the written pixels that are 255. missing: by the photo's id, tagged classes that its mask, written
    or skipped, lacks. notes: what is odd about the photos, as sentences.
    """

    folder: Path
    written: int = 0
    skipped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    unsure: float = 0.0
    untagged: int = 0
    missing: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The counts, ready for JSON."""
        classes = Counter(name for names in self.missing.values() for name in names)
        return {
            "folder": str(self.folder),
            "written": self.written,
            "skipped": self.skipped,
            "untagged": self.untagged,
            "unsure_share": round(self.unsure, 4),
            "missing": {"photos": len(self.missing), "classes": dict(classes.most_common())},
            "failed": [{"file": f, "why": w} for f, w in self.failed],
            "notes": self.notes,
        }


class LabelWriter:
    """Writes ``<id>.png`` for each item into ``folder``, a URI too, and ``note``, how they are made, as classes.json.

    Files that are there are kept unless ``overwrite``, which first removes those of all ``items``: a run that is killed
    and resumed never mixes old and new ones. ``todo``: the items that are left. classes: names of 1..C. make: gives a
    photo's labels. soft: also save ``<id>.npz`` with 'scores' in half precision and the names of their 'classes'. It is
    written first, so that a PNG says that all is there. sums: bytes and SHA-256 of what is written, by id, for the
    manifest; None where there is none: by default of masks in a folder without one.

    Raises ConfigError when the folder holds labels that were made in another way, and DataError when one would be
    written over its photo.
    """

    def __init__(
        self,
        folder: Path,
        items: Iterable[Item],
        classes: Sequence[str],
        note: Mapping[str, Any],
        make: Make,
        overwrite: bool = False,
        soft: bool = False,
    ) -> None:
        self.items, self.classes, self.make, self.soft = list(items), classes, make, soft
        for item in self.items:
            if os.path.realpath(folder / f"{item.id}.png") == os.path.realpath(item.image):
                raise DataError(f"{item.image}: its mask would be written over it; choose another folder (--out).")
        self.place: Place | None = None
        self.named = folder
        if is_uri(folder):
            self.place, self.named = Place(as_uri(folder)), Stored(as_uri(folder))
            self.place.fetch(["classes.json", MISSING])
            folder = self.place.folder
        self.folder = folder
        self.paths = {item.id: folder / f"{item.id}.png" for item in self.items}
        note = {"classes": ["background", *classes], "ignore": IGNORE, **note}
        self._check_note(note, overwrite)
        there = read_missing(folder)
        self.others = {
            i: names for i, names in there.items() if i not in self.paths and (folder / f"{i}.png").is_file()
        }
        listed = self.place is not None or (folder / MANIFEST).is_file()
        self.sums: dict[str, list[str]] | None = {} if listed else None
        if overwrite:
            self._remove()
        for parent in {folder, *(path.parent for path in self.paths.values())}:
            sweep(parent)
        write_json(folder / "classes.json", note)
        self._send("classes.json")
        self._begin()
        if self.place is not None:
            self.lacking |= {i: there.get(i, []) for i in self.place.known if i in self.paths and i not in self.left}

    def _remove(self) -> None:
        """Remove the label files of all items, and what notes say of them before."""
        if (self.folder / MISSING).is_file():
            _write_missing(self.folder, self.others)
            self._send(MISSING)
        if (self.folder / MANIFEST).is_file():
            self._write_manifest(())
        if self.place is not None:
            self.place.remove(f"{id}{ending}" for id in self.paths for ending in (".png", ".npz"))
        for path in self.paths.values():
            path.unlink(missing_ok=True)
            path.with_suffix(".npz").unlink(missing_ok=True)

    def _send(self, name: str) -> None:
        if self.place is not None:
            self.place.send(name)

    def _begin(self) -> None:
        self.todo = [item for item in self.items if not self.paths[item.id].is_file()]
        self.left = {item.id for item in self.todo}
        self.done = Labelled(self.named)
        self.pixels = self.unsure = 0
        self.lacking: dict[str, list[str]] = {}

    def part(self, items: Iterable[Item]) -> LabelWriter:
        """What writes the label files of some photos, those of them that are its own, and counts them alone."""
        return self.of(item for item in items if item.id in self.paths)

    def of(self, items: Iterable[Item]) -> LabelWriter:
        """What writes and counts the label files of these photos alone, in whatever process that is."""
        part = copy(self)
        part.items, part.others = list(items), {}
        part.folder = self.folder if self.place is None else self.place.folder
        part.paths = {item.id: part.folder / f"{item.id}.png" for item in part.items}
        part.sums = None if self.sums is None else {}
        part._begin()
        return part

    def wants(self, item: Item) -> bool:
        """Whether a photo has no label file yet."""
        return item.id in self.left

    def state(self) -> dict[str, Any]:
        """What a part counted, for ``take``."""
        done = self.done
        counts = {"written": done.written, "pixels": self.pixels, "unsure": self.unsure}
        return counts | {"failed": done.failed, "lacking": self.lacking, "sums": self.sums or {}}

    def take(self, state: Mapping[str, Any]) -> None:
        """Add what a part counted, in whatever process that was."""
        self.done.written += state["written"]
        self.done.failed += [(file, why) for file, why in state["failed"]]
        self.pixels += state["pixels"]
        self.unsure += state["unsure"]
        self.lacking |= state["lacking"]
        if self.sums is not None:
            self.sums |= state["sums"]

    def _check_note(self, note: Mapping[str, Any], overwrite: bool) -> None:
        about = self.folder / "classes.json"
        if about.is_file():
            if read_record(about) == note:
                return
            what = "masks of another model or other settings"
        elif any(self.folder.rglob("*.png")):
            what = "PNG files without classes.json, which says how they were made"
        else:
            return
        if not overwrite:
            raise ConfigError(f"{self.named}: holds {what}; use --overwrite or another --out.")
        if set(self.folder.rglob("*.png")) - set(self.paths.values()):
            raise ConfigError(
                f"{self.named}: holds {what}, also of further photos; "
                "label those with these, delete the folder, or use another --out."
            )

    def add(self, item: Item, look: Look | DataError) -> None:
        """Write the label file of a photo of a pass, unless it is there or not one of ``items``.

        A photo that cannot be read is listed in ``failed`` and does not stop the others.
        """
        if item.id not in self.left:
            return
        if isinstance(look, DataError):
            self.done.failed.append((str(item.image), str(look)))
            return
        made, scores, names = self._corrected(item, look) or self.make(item, look)
        labels = as_array(made)
        path = self.paths[item.id]
        if self.soft and scores is not None:
            half = scores.half().cpu().numpy()
            with written(path.with_suffix(".npz")) as part, part.open("wb") as file:
                np.savez_compressed(file, scores=half, classes=json.dumps(list(names)))
        write_mask(path, labels)
        if self.sums is not None:
            self.sums[item.id] = digest(path)
        if self.place is not None:
            self.place.move(f"{item.id}.npz")
            self.place.move(f"{item.id}.png")
        self.done.written += 1
        self.pixels += labels.size
        self.unsure += int((labels == IGNORE).sum())
        if item.tags is not None:
            self.lacking[item.id] = _lacking(item, labels, self.classes)

    def _corrected(self, item: Item, look: Look) -> tuple[Tensor, None, Sequence[str]] | None:
        """The label map that a person drew of the photo, if there is one. Raises DataError for one of another size."""
        if item.corrected is None:
            return None
        labels = read_mask(item.corrected, len(self.classes))
        check_size(item.corrected, labels, item.image, look.photo)
        return labels, None, ()

    def finish(self) -> Labelled:
        """Counts of the whole run. Where items have tags, missing.csv says which masks lack a class of theirs.

        Masks that were there are read for it; those that cannot be read are listed in ``failed``, too.
        """
        done = self.done
        done.skipped = len(self.items) - done.written - len(done.failed)
        done.unsure = self.unsure / self.pixels if self.pixels else 0.0
        tagged = [item for item in self.items if item.tags is not None]
        for item in tagged:
            path = self.paths[item.id]
            if item.id not in self.lacking and path.is_file():
                try:
                    self.lacking[item.id] = _lacking(item, read_mask(path, len(self.classes)).numpy(), self.classes)
                except DataError as error:
                    done.failed.append((str(path), f"{error} Delete it to make it again."))
        done.missing = {item.id: self.lacking[item.id] for item in tagged if self.lacking.get(item.id)}
        if tagged:
            _write_missing(self.folder, self.others | done.missing)
            self._send(MISSING)
        if self.sums is not None:
            self._write_manifest(self.items)
        return done

    def _write_manifest(self, items: Iterable[Item]) -> None:
        """Write the manifest of these of the writer's masks, and of others in its folder."""
        old, sums = read_manifest(self.folder), self.sums or {}
        rows = {i: row for i, row in old.items() if i not in self.paths and (self.folder / f"{i}.png").is_file()}
        for item in items:
            path, made = self.paths[item.id], sums.get(item.id)
            if made is None and path.is_file():
                known = item.id in old and path.stat().st_size in (0, int(old[item.id][2]))
                made = old[item.id][2:] if known else digest(path)
            if made is not None:
                rows[item.id] = [item.id, str(item.image), *made]
        write_manifest(self.folder, rows)
        self._send(MANIFEST)


def finish_untagged(writer: LabelWriter, found: Survey, notes: Notes, overlay: bool) -> Labelled:
    """Finish masks of photos that a user named. found: what was left out of what he named; notes: on the photos.

    overlay: also write a picture of each mask on its photo, <id>_overlay.jpg.
    """
    done = writer.finish()
    done.failed += [(problem.path, f"{problem.path}: {problem.what}") for problem in found.lost]
    done.notes = [*describe_notes(notes), *(f"{problem.path}: {problem.what}" for problem in found.passed)]
    failed = {name for name, _ in done.failed}
    for item in (item for item in writer.items if overlay and str(item.image) not in failed):
        try:
            labels = raw_mask(writer.paths[item.id])
            picture = Image.fromarray(draw_overlay(read_photo(item.image).transpose(1, 2, 0), labels))
            with written(writer.folder / f"{item.id}{OVERLAY}") as part:
                picture.save(part, format="JPEG", quality=90)
        except DataError as error:
            done.failed.append((str(item.image), str(error)))
    return done


def _lacking(item: Item, labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Classes of the item's tags without a pixel in its label map (H,W)."""
    there = np.bincount(labels.ravel(), minlength=256)
    return [classes[tag] for tag in item.tags or () if not there[tag + 1]]


def _write_missing(folder: Path, missing: Mapping[str, Sequence[str]]) -> None:
    rows = [(image, name) for image, names in missing.items() for name in names]
    write_text(folder / MISSING, csv_text([("image", "class"), *rows]))


def read_missing(folder: Path) -> dict[str, list[str]]:
    """By the photo's id, the tagged classes that masks in ``folder`` lack; {} without a list.

    Raises DataError for a list that was changed into something else.
    """
    path = folder / MISSING
    found: dict[str, list[str]] = {}
    if not path.is_file():
        return found
    for line, row in enumerate(read_csv(path), 1):
        if len(row) != 2:
            raise DataError(f"{path}, row {line}: {len(row)} columns, not image and class. Delete it to get it anew.")
        if line > 1:
            found.setdefault(row[0], []).append(row[1])
    return found


def describe_missing(summary: dict[str, Any]) -> str:
    """One sentence on the masks that lack tagged classes, from a ``Labelled.summary``; empty where none does."""
    photos, classes = summary["missing"]["photos"], summary["missing"]["classes"]
    if not photos:
        return ""
    named = ", ".join(f"{name} {count}" for name, count in list(classes.items())[:5])
    more = ", …" if len(classes) > 5 else ""
    lack = "1 mask has" if photos == 1 else f"{photos} masks have"
    return f"{lack} no pixel of a class that the photo is tagged with ({named}{more}): {summary['folder']}/{MISSING}"
