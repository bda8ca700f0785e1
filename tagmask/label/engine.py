"""Masks of many photos, written as they are made: palette PNG, resumable, failures listed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from tagmask.data import Item, read_ahead, tag_vector, write_mask
from tagmask.errors import ConfigError, DataError
from tagmask.label.infer import Inference
from tagmask.training.folder import read_json, write_json


@dataclass
class Labelled:
    """What a labelling run did. skipped: masks that were there already; failed: (file, why); untagged: left out."""

    folder: Path
    written: int = 0
    skipped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    unsure: float = 0.0
    untagged: int = 0

    def summary(self) -> dict:
        """JSON-able counts."""
        return {
            "folder": str(self.folder),
            "written": self.written,
            "skipped": self.skipped,
            "untagged": self.untagged,
            "unsure_share": round(self.unsure, 4),
            "failed": [{"file": f, "why": w} for f, w in self.failed],
        }


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
    """Write ``<id>.png`` for each item into ``folder``, and classes.json, which says how they were made, beside them.

    with_tags: use each item's tags (it must have them); otherwise the segmenter alone decides. soft: also save
    ``<id>.npz`` with half-precision scores (C+1,H,W). Existing masks are kept unless ``overwrite``.
    model: the model/ folder, for the record. A photo that cannot be read is counted in ``failed`` and does not stop
    the others. Raises ConfigError when the folder holds masks that were made in another way, and DataError when a
    mask would be written over its photo.
    """
    items = list(items)
    names = ["background", *classes]
    made = {
        "classes": names,
        "ignore": 255,
        "tags_used": with_tags,
        "source": inference.source if with_tags else "segmenter",
        "label": inference.config.model_dump(mode="json"),
        "model": read_json(model / "classes.json")["digest"],
    }
    note = folder / "classes.json"
    if note.is_file() and not overwrite and read_json(note) != made:
        raise ConfigError(
            f"{folder}: holds masks of another model or other settings; use --overwrite or another --out."
        )
    for item in items:
        if (folder / f"{item.id}.png").resolve() == item.image.resolve():
            raise DataError(f"{item.image}: its mask would be written over it; choose another folder (--out).")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(note, made)
    result = Labelled(folder)
    pixels = unsure = 0
    todo = [item for item in items if overwrite or not (folder / f"{item.id}.png").is_file()]
    result.skipped = len(items) - len(todo)
    console = console or Console(stderr=True)
    shown = track(read_ahead(todo), "masks", len(todo), console=console, disable=not console.is_terminal)
    for item, photo in shown:
        path = folder / f"{item.id}.png"
        if isinstance(photo, DataError):
            result.failed.append((str(item.image), str(photo)))
            continue
        if with_tags:
            if item.tags is None:
                raise DataError(f"{item.image}: has no row of tags; 'tagmask predict' labels photos without tags.")
            labels, scores = inference.labels(photo, tag_vector(item.tags, len(classes)))
        else:
            labels, scores = inference.predict(photo)
        path.parent.mkdir(parents=True, exist_ok=True)
        array = labels.cpu().numpy()
        if soft:
            np.savez_compressed(path.with_suffix(".npz"), scores=scores.half().cpu().numpy(), classes=json.dumps(names))
        write_mask(path, array)
        result.written += 1
        pixels += array.size
        unsure += int((array == 255).sum())
    result.unsure = unsure / pixels if pixels else 0.0
    return result
