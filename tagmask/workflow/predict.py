"""``tagmask predict``: masks of photos without tags by a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from glob import glob
from pathlib import Path

from PIL import Image
from rich.console import Console
from torch import Tensor

from tagmask.data import Item, read_image, read_mask
from tagmask.data.find import find_images
from tagmask.errors import DataError
from tagmask.label import Labelled, LabelWriter, Look, go_over
from tagmask.report import overlay as draw_overlay
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
) -> Labelled:
    """Masks of photos (files, folders, globs, or items) without tags, into ``out``. Raises DataError for no photo.

    overlay: also a picture of each mask on its photo, <id>_overlay.jpg.
    """
    run, out = opened(run, overrides), Path(out)
    items = photo_items(photos)
    names = ["background", *run.model_note["classes"]]

    def make(item: Item, look: Look) -> tuple[Tensor, Tensor, list[str]]:
        return *look.prediction, names

    run.inference.need_segmenter()  # before masks that are there are overwritten
    writer = LabelWriter(out, items, names[1:], mask_note(run, False), make, overwrite, run.config.label.soft)
    go_over(run.inference, writer.todo, [writer.add], "predict", console)
    if overlay:
        failed = {name for name, _ in writer.done.failed}
        for item in (item for item in items if str(item.image) not in failed):
            labels = read_mask(out / f"{item.id}.png", len(names) - 1).numpy()
            picture = draw_overlay(read_image(item.image).permute(1, 2, 0).numpy(), labels)
            Image.fromarray(picture).save(out / f"{item.id}_overlay.jpg", quality=90)
    return writer.finish()


def photo_items(photos: Sequence[str | Path | Item]) -> list[Item]:
    """Items of files, folders (searched to any depth, ids keep the subfolders) and globs.

    Raises DataError naming what matches nothing, or two photos whose masks would be one file.
    """
    found: list[Item] = []
    for entry in photos:
        if isinstance(entry, Item):
            found.append(entry)
            continue
        place = Path(entry)
        if place.is_dir():
            items = [Item(p.relative_to(place).with_suffix("").as_posix(), p, None) for p in find_images(place)]
        else:
            paths = [place] if place.is_file() else [Path(p) for p in sorted(glob(str(entry)))]
            items = [Item(p.stem, p, None) for p in paths]
        if not items:
            raise DataError(f"{entry}: no such photo, and no photo in it.")
        found += items
    by_id: dict[str, Item] = {}
    for item in found:
        if by_id.setdefault(item.id, item).image != item.image:
            raise DataError(
                f"{item.image} and {by_id[item.id].image} would both write {item.id}.png; predict them apart."
            )
    return list(by_id.values())
