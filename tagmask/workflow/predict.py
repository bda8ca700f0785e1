"""``tagmask predict``: masks of photos without tags by a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from torch import Tensor

from tagmask.data import Item
from tagmask.data.photos import only, photo_items
from tagmask.data.pixels import Notes
from tagmask.label import Labelled, LabelWriter, Look, go_over
from tagmask.label.writer import finish_untagged
from tagmask.workflow.opened import Run, opened
from tagmask.workflow.stamp import mask_note


def predict(
    run: Run | str | Path,
    photos: Sequence[str | Path | Item],
    out: str | Path,
    overlay: bool = False,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    listed: Path | None = None,
) -> Labelled:
    """Masks of photos (files, folders, globs, or items) without tags, into ``out``. Raises DataError for no photo.

    overlay: also a picture of each mask on its photo, <id>_overlay.jpg. listed: a file of names; only these are done.
    Files that look like photos and cannot be used are in ``failed``.
    """
    run, out = opened((run if isinstance(run, Run) else Run(run)).last, overrides), Path(out)
    items, found = photo_items(photos)
    if listed is not None:
        items = only(items, listed)
    names = ["background", *run.model_note["classes"]]

    def make(item: Item, look: Look) -> tuple[Tensor, Tensor, list[str]]:
        return *look.prediction, names

    run.inference.need_segmenter()  # before masks that are there are overwritten
    writer = LabelWriter(out, items, names[1:], mask_note(run, False), make, overwrite, run.config.label.soft)
    notes: Notes = {}
    go_over(run.inference, writer.todo, [writer.add], "predict", console, notes, ahead="logits")
    return finish_untagged(writer, found, notes, overlay)
