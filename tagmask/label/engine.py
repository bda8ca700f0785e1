"""Label files of many photos, written as they are made: palette PNG, resumable, failures listed."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tagmask.config import LabelConfig
from tagmask.data import Item, read_ahead, read_mask, tag_vector, write_mask
from tagmask.errors import ConfigError, DataError
from tagmask.label.infer import Inference, values_in
from tagmask.training.folder import read_json, write_json, write_text
from tagmask.types import IGNORE

Make = Callable[[Item, Tensor], "tuple[Tensor, Tensor | None, Sequence[str]]"]
"""An item and its photo, uint8 (3,H,W) → label map uint8 (H,W), and the scores (n,h,w) to save where soft maps are
asked for, with the names of the n classes; None where there are no scores. A label map may be completed where the
scores are not."""


MISSING = "missing.csv"
"""Beside masks of tagged photos, one line for a photo and a class that it is tagged with and its mask lacks."""


@dataclass
class Labelled:
    """What a labelling run did. skipped: masks that were there already; failed: (file, why); untagged: left out.

    missing: by id of photos, written or skipped, the classes that they are tagged with and their masks lack.
    """

    folder: Path
    written: int = 0
    skipped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    unsure: float = 0.0
    untagged: int = 0
    missing: dict[str, list[str]] = field(default_factory=dict)

    def summary(self) -> dict:
        """JSON-able counts."""
        return {
            "folder": str(self.folder),
            "written": self.written,
            "skipped": self.skipped,
            "untagged": self.untagged,
            "unsure_share": round(self.unsure, 4),
            "missing": {"photos": len(self.missing), "classes": dict(self._counts().most_common())},
            "failed": [{"file": f, "why": w} for f, w in self.failed],
        }

    def _counts(self) -> Counter[str]:
        return Counter(name for names in self.missing.values() for name in names)


LATER = ("short_side", "precision")
"""What notes of earlier versions do not hold: masks of such a note are taken as made alike, and keep their note."""


def write_masks(
    inference: Inference,
    items: Iterable[Item],
    classes: list[str],
    folder: Path,
    with_tags: bool,
    model: Path,
    overwrite: bool = False,
    soft: bool = False,
    console: Console | None = None,
) -> Labelled:
    """Masks of a trained method, written by ``write_label_files``, with the model and settings as their note.

    with_tags: use each item's tags (it must have them); otherwise the segmenter alone decides. soft: also save
    the scores (C+1,H,W). model: the model/ folder, for the record. Raises as ``write_label_files``.
    """
    names = ["background", *classes]
    note = {
        "classes": names,
        "ignore": IGNORE,
        "tags_used": with_tags,
        "source": inference.source if with_tags else "segmenter",
        "label": label_note(inference.config, with_tags and inference.completes),
        "model": read_json(model / "classes.json")["digest"],
        "short_side": inference.short_side,
        "precision": inference.precision,
    }
    if inference.method.use is not None:
        note["use"] = inference.method.use

    def make(item: Item, photo: Tensor) -> tuple[Tensor, Tensor, list[str]]:
        if not with_tags:
            return *inference.predict(photo), names
        if item.tags is None:
            raise DataError(f"{item.image}: has no row of tags; 'tagmask predict' labels photos without tags.")
        return *inference.labels(photo, tag_vector(item.tags, len(classes))), names

    return write_label_files(folder, items, classes, make, note, overwrite, soft, console)


def label_note(config: LabelConfig, completed: bool) -> dict[str, Any]:
    """Settings as a note holds them. 'complete' stands there only where it was done: masks that it does not touch are
    the same with and without it, and those of earlier versions do not name it, nor a 'threshold_from'."""
    left_out = set() if completed else {"complete"}
    if config.threshold_from == "fixed":
        left_out.add("threshold_from")
    return config.model_dump(mode="json", exclude=left_out)


def write_label_files(
    folder: Path,
    items: Iterable[Item],
    classes: Sequence[str],
    make: Make,
    note: dict[str, Any],
    overwrite: bool = False,
    soft: bool = False,
    console: Console | None = None,
) -> Labelled:
    """Write ``<id>.png`` for each item into ``folder``, and ``note``, which says how they were made, as classes.json.

    Where items have tags, missing.csv says which masks lack a class of theirs. classes: names of 1..C.
    Labels that are there are read for it; those that cannot be are counted in ``failed``, too.

    Files that are there are kept unless ``overwrite``, which removes those of ``items``, soft maps as well, before it
    begins: a run that is killed and goes on never mixes old and new ones. soft: also save ``<id>.npz``, compressed,
    with 'scores' in half precision and the names of their 'classes'; it is written before the PNG, so that a PNG says
    that all is there.
    A photo that cannot be read is counted in ``failed`` and does not stop the others. Raises ConfigError when the
    folder holds labels that were made in another way, and DataError when one would be written over its photo.
    """
    items = list(items)
    paths = {item.id: folder / f"{item.id}.png" for item in items}
    for item in items:
        if paths[item.id].resolve() == item.image.resolve():
            raise DataError(f"{item.image}: its mask would be written over it; choose another folder (--out).")
    about = folder / "classes.json"
    there = read_json(about) if about.is_file() else note
    if there == {key: value for key, value in note.items() if key not in LATER}:
        note = there  # of an earlier version
    if there != note:
        if not overwrite:
            raise ConfigError(
                f"{folder}: holds masks of another model or other settings; delete the folder to make them again, or "
                "use --overwrite or another --out."
            )
        own = set(paths.values())
        if any(path not in own for path in folder.rglob("*.png")):
            raise ConfigError(
                f"{folder}: holds masks of further photos, too, which another model or other settings made; label "
                "these photos with them, delete the folder, or use another --out."
            )
    others = {
        i: names for i, names in read_missing(folder).items() if i not in paths and (folder / f"{i}.png").is_file()
    }
    if overwrite:
        for path in paths.values():
            path.unlink(missing_ok=True)
            path.with_suffix(".npz").unlink(missing_ok=True)
        if (folder / MISSING).is_file():
            _write_missing(folder, others)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(about, note)
    todo = [item for item in items if not paths[item.id].is_file()]
    result = Labelled(folder, skipped=len(items) - len(todo))
    pixels = unsure = 0
    lacking: dict[str, list[str]] = {}
    console = console or Console(stderr=True)
    shown = track(read_ahead(todo), folder.name, len(todo), console=console, disable=not console.is_terminal)
    for item, photo in shown:
        if isinstance(photo, DataError):
            result.failed.append((str(item.image), str(photo)))
            continue
        labels, scores, names = make(item, photo)
        path = paths[item.id]
        if soft and scores is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            half = scores.half().cpu().numpy()
            np.savez_compressed(path.with_suffix(".npz"), scores=half, classes=json.dumps(list(names)))
        write_mask(path, labels)
        result.written += 1
        pixels += labels.numel()
        unsure += int((labels == IGNORE).sum())
        if item.tags:
            lacking[item.id] = _lacking(item, labels, classes)
    result.unsure = unsure / pixels if pixels else 0.0
    tagged = [item for item in items if item.tags is not None]
    kept = [item for item in tagged if item.tags and item.id not in lacking and paths[item.id].is_file()]
    for item in track(kept, "masks there", console=console, disable=not console.is_terminal):
        try:
            lacking[item.id] = _lacking(item, read_mask(paths[item.id], len(classes)), classes)
        except DataError as error:
            result.failed.append((str(paths[item.id]), f"{error} Delete it to make it again."))
    result.missing = {item.id: lacking[item.id] for item in tagged if lacking.get(item.id)}
    if tagged:
        _write_missing(folder, others | result.missing)
    return result


def _lacking(item: Item, labels: Tensor, classes: Sequence[str]) -> list[str]:
    """Classes of the item's tags without a pixel in its label map (H,W)."""
    there = values_in(labels)
    return [classes[tag] for tag in item.tags or () if tag + 1 not in there]


def _write_missing(folder: Path, missing: Mapping[str, Sequence[str]]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "class"])
    table.writerows((image, name) for image, names in missing.items() for name in names)
    write_text(folder / MISSING, text.getvalue())


def read_missing(folder: Path) -> dict[str, list[str]]:
    """Of photos whose masks in ``folder`` lack tagged classes, these classes, by the photo's id; {} without a list.

    Raises DataError for a list that was changed into something else.
    """
    path = folder / MISSING
    found: dict[str, list[str]] = {}
    if path.is_file():
        for line, row in enumerate(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")), 1):
            if len(row) != 2:
                raise DataError(
                    f"{path}, row {line}: {len(row)} columns, not image and class. Delete it to get it anew."
                )
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
