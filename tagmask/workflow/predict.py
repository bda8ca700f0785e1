"""``tagmask predict``: masks of photos without tags by a trained run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from tagmask.data import Item
from tagmask.data.photos import only, photo_items
from tagmask.data.walk import Survey
from tagmask.label import Labelled, LabelWriter, Look
from tagmask.label.look import MaskPass
from tagmask.label.places import absolute, check_overlay, worked_at
from tagmask.label.ray_engine import check_engine
from tagmask.label.share import begun, kind
from tagmask.label.writer import finish_untagged
from tagmask.workflow.opened import Run, heard, opened
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
    """Masks of photos (files, folders, globs, or items of the run's data), whatever their tags, into ``out``.

    out: a folder or a URI. overlay: also a picture of each mask on its photo, <id>_overlay.jpg, not at a URI. listed: a
    file of names; only these are done. Files that look like photos and cannot be used are in ``failed``. Raises
    DataError for no photo.
    """
    run, out = opened((run if isinstance(run, Run) else Run(run)).last, overrides), Path(out)
    check_overlay(overlay, out)
    run.inference.need_segmenter()  # before masks that are there are overwritten
    named = [[p.id] if isinstance(p, Item) else absolute(p) for p in photos]
    what = {"photos": named, "listed": None if listed is None else str(listed.resolve())}

    def lead(over: bool) -> Labelled:
        work, found = predict_pass(run, photos, out, overwrite and not begun(), listed)
        work.console = console
        work.make("predict", {**run.said(), **what, "out": absolute(out)})
        return finish_untagged(work.writer, found, work.notes or {}, overlay)

    return run.led("predict", lead, worked_at(out), **what, overlay=overlay, overwrite=overwrite)


@kind("predict")
def _helps(about: Mapping[str, Any]) -> MaskPass:
    run = heard(about)
    photos = [run.collection.item(p[0]) if isinstance(p, list) else p for p in about["photos"]]
    listed = None if about["listed"] is None else Path(about["listed"])
    return predict_pass(run, photos, Path(about["out"]), listed=listed)[0]


def predict_pass(
    run: Run,
    photos: Sequence[str | Path | Item],
    out: Path,
    overwrite: bool = False,
    listed: Path | None = None,
) -> tuple[MaskPass, Survey]:
    """The pass of ``predict``, and what is left out of the photos that are named."""
    check_engine(run.config.engine)
    items, found = photo_items(photos)
    if listed is not None:
        items = only(items, listed)
    names = ["background", *run.model_note["classes"]]

    def make(item: Item, look: Look) -> tuple[Tensor, Tensor, list[str]]:
        return *look.prediction, names

    writer = LabelWriter(out, items, names[1:], mask_note(run, False), make, overwrite, run.config.label.soft)
    return MaskPass(run.inference, writer, "predict", "logits", {}), found
