"""An exported segmenter on photos, by onnxruntime. Nothing here needs torch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from tagmask.data.collection import Item
from tagmask.data.photos import only, photo_items, read_ahead
from tagmask.data.pixels import Notes
from tagmask.errors import ConfigError, DataError
from tagmask.label.places import check_overlay
from tagmask.label.writer import Labelled, LabelWriter, finish_untagged
from tagmask.onnx_session import open_session

META = "tagmask"
"""Key of the metadata in an exported file."""


def need(package: str) -> Any:
    """An optional package. Raises ConfigError that says how to install it."""
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(f"This needs {package}: pip install 'tagmask[onnx]', or pip install {package}.") from error


class Exported:
    """A segmenter that ``tagmask export`` wrote. about: what it says of itself; classes: foreground names; note: what
    is kept beside its masks.

    Raises ConfigError without onnxruntime, DataError for another file.
    """

    def __init__(self, path: str | Path) -> None:
        need("onnxruntime")
        self.path = Path(path)
        if not os.path.isfile(path):
            raise DataError(f"{path}: no such file. 'tagmask export RUN -o {self.path.name}' writes it.")
        try:
            self.session = open_session(path)
            self.about: dict[str, Any] = json.loads(self.session.get_modelmeta().custom_metadata_map[META])
            self.classes: list[str] = self.about["classes"]
            self.max_side: int = self.about["max_side"]
            self.note = {key: self.about[key] for key in ("tags", "source", "settings", "model")}
        except Exception as error:  # onnxruntime has a class for each reason, none of which is documented
            why = " ".join(str(error).split())[:200]
            raise DataError(f"{path}: not a segmenter that 'tagmask export' wrote ({why}). Export it again.") from error

    def run(self, photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels uint8 (H,W) of a photo uint8 (H,W,3), 255 where unsure, and their probabilities float32 (H,W).

        A photo whose long side is above ``label.max_side`` is segmented at that size.
        """
        height, width = photo.shape[:2]
        factor = self.max_side / max(height, width)
        if factor < 1:
            size = max(1, round(width * factor)), max(1, round(height * factor))
            photo = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR, reducing_gap=3))
        labels, confidence = (found[0] for found in self.session.run(None, {"photos": photo[None]}))
        if factor < 1:
            labels = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
            confidence = np.asarray(Image.fromarray(confidence).resize((width, height), Image.Resampling.BILINEAR))
        return labels, confidence


def predict_exported(
    network: str | Path,
    photos: Sequence[str | Path | Item],
    out: str | Path,
    overlay: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    listed: Path | None = None,
) -> Labelled:
    """Masks of photos by an exported network, as ``tagmask.workflow.predict`` makes them by a run."""
    check_overlay(overlay, out)
    exported = Exported(network)
    items, found = photo_items(photos)
    if listed is not None:
        items = only(items, listed)

    def make(item: Item, photo: Any) -> tuple[Any, None, Sequence[str]]:
        return exported.run(np.ascontiguousarray(photo.transpose(1, 2, 0)))[0], None, ()

    writer = LabelWriter(Path(out), items, exported.classes, exported.note, make, overwrite)
    notes: Notes = {}
    console = console or Console(stderr=True)
    ahead = read_ahead(writer.todo, notes, arrays=True)
    for item, photo in track(ahead, "predict", len(writer.todo), console=console, disable=not console.is_terminal):
        writer.add(item, photo)
    return finish_untagged(writer, found, notes, overlay)
