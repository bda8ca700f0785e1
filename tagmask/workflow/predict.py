"""``tagmask predict``: masks of photos without tags by a trained run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path

from PIL import Image
from rich.console import Console
from torch import Tensor

from tagmask.data import Item, read_image, read_mask
from tagmask.data.collection import Problem
from tagmask.data.find import read_lines
from tagmask.data.names import flaw
from tagmask.data.pixels import Notes, describe_notes
from tagmask.data.walk import OVERLAY, Survey, none_found, survey
from tagmask.errors import DataError
from tagmask.files import written
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
    listed: Path | None = None,
) -> Labelled:
    """Masks of photos (files, folders, globs, or items) without tags, into ``out``. Raises DataError for no photo.

    overlay: also a picture of each mask on its photo, <id>_overlay.jpg. listed: a file of names; only these are done.
    Files that look like photos and cannot be used are in ``failed``.
    """
    run, out = opened((run if isinstance(run, Run) else Run(run)).last, overrides), Path(out)
    items, found = photo_items(photos)
    if listed is not None:
        items = _only(items, listed)
    names = ["background", *run.model_note["classes"]]

    def make(item: Item, look: Look) -> tuple[Tensor, Tensor, list[str]]:
        return *look.prediction, names

    run.inference.need_segmenter()  # before masks that are there are overwritten
    writer = LabelWriter(out, items, names[1:], mask_note(run, False), make, overwrite, run.config.label.soft)
    notes: Notes = {}
    go_over(run.inference, writer.todo, [writer.add], "predict", console, notes)
    done = writer.finish()
    done.failed += [(problem.path, f"{problem.path}: {problem.what}") for problem in found.lost]
    done.notes = [*describe_notes(notes), *(f"{problem.path}: {problem.what}" for problem in found.passed)]
    if overlay:
        failed = {name for name, _ in done.failed}
        for item in (item for item in items if str(item.image) not in failed):
            try:
                _write_overlay(item, out, len(names) - 1)
            except DataError as error:
                done.failed.append((str(item.image), str(error)))
    return done


def _write_overlay(item: Item, folder: Path, classes: int) -> None:
    labels = read_mask(folder / f"{item.id}.png", classes).numpy()
    picture = draw_overlay(read_image(item.image).permute(1, 2, 0).numpy(), labels)
    with written(folder / f"{item.id}{OVERLAY}") as part:
        Image.fromarray(picture).save(part, format="JPEG", quality=90)


def _only(items: Sequence[Item], listed: Path) -> list[Item]:
    """The items that a file names, one a line. Raises DataError where one is not among them."""
    names = dict.fromkeys(line for _, line in read_lines(listed))
    by_name = {name: item for item in items for name in (item.image.name, item.image.stem, item.id)}
    gone = [name for name in names if name not in by_name]
    if gone:
        raise DataError(f"{listed}: {len(gone)} of its photos are not among those named ('{gone[0]}' is the first).")
    return list({by_name[name].id: by_name[name] for name in names}.values())


def photo_items(photos: Sequence[str | Path | Item]) -> tuple[list[Item], Survey]:
    """Items of files, folders (searched to any depth, ids keep the subfolders) and globs, and what is left out.

    Of photos that differ in the extension only, the ids keep it. Raises DataError naming two photos whose masks would
    be one file.
    """
    found: list[Item] = []
    rest = Survey()
    for entry in photos:
        if isinstance(entry, Item):
            found.append(entry)
            continue
        place = Path(entry)
        if place.is_dir():
            there = survey(place)
            items = [Item(p.relative_to(place).with_suffix("").as_posix(), p, None) for p in there.images]
            rest.lost += there.lost
            rest.passed += there.passed
            if not items:
                raise DataError(f"{entry}: {none_found(there)}.")
        else:
            paths = [place] if place.is_file() else [Path(p) for p in sorted(glob(str(entry)))]
            if not paths:
                rest.lost.append(Problem(str(entry), "no such photo"))
            items = [Item(p.stem, p, None) for p in paths if not flaw(p.stem)]
            rest.lost += [Problem(str(p), f"{flaw(p.stem)}; rename it") for p in paths if flaw(p.stem)]
        found += items
    several = Counter(id for id, _ in {(item.id, item.image) for item in found})
    by_id: dict[str, Item] = {}
    for item in found:
        if several[item.id] > 1:  # a.jpg and a.png
            item = replace(item, id=f"{item.id}{item.image.suffix}")
        if by_id.setdefault(item.id, item).image != item.image:
            raise DataError(
                f"{item.image} and {by_id[item.id].image} would both write {item.id}.png; predict them apart."
            )
    return list(by_id.values()), rest
