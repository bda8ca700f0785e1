"""``tagmask run --reviewed``: a run again, with what people decided about its photos, and what that gained."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tagmask.data import read_image, read_mask, write_mask
from tagmask.data.pixels import check_shape, check_size, upright_size
from tagmask.data.review import JOURNAL, MASKS, SNAPSHOT, Decision, Journal, decisions_of
from tagmask.errors import ConfigError, DataError
from tagmask.evaluate.scores import percent
from tagmask.evaluate.stamp import difference
from tagmask.files import read_record, read_text, write_json, write_text
from tagmask.training import RunFolder
from tagmask.types import IGNORE
from tagmask.workflow.opened import Run, opened
from tagmask.workflow.train import check_free

DELIVERED = ("masks", "segmenter")
"""Scores that the gain is said for: of the masks of tagged photos, and of new photos."""
ALIKE = ("ids", "images", "truth", "tags", "settings")
"""What two scores share that are compared, by the keys of their stamps."""


def reviewed_settings(
    first: Run | str | Path, out: str | Path, resume: bool = False, keep: bool = True
) -> dict[str, Any]:
    """The settings of a run with its review in force, to be merged under what the user sets.

    The review, and the one that the run itself learned from, are copied into ``out``: later decisions do not change
    what a run learned. resume: the run in ``out`` has its settings and its review already, so nothing is set. keep:
    whether ``out`` may be written to. Raises DataError where nobody has reviewed the run, and for drawn masks that do
    not fit. Raises ConfigError where ``out`` holds a run, or, with resume, none that learned from a review.
    """
    first, place = opened(first), Path(out) / SNAPSHOT
    if resume:
        if not (place / JOURNAL).is_file():
            raise ConfigError(f"{out}: learned from no review; leave --reviewed away, or begin another run (--out).")
        return {}
    check_free(RunFolder(out), resume)
    if not Journal(first.folder.path).decisions():
        raise DataError(
            f"{first.folder.path / JOURNAL}: nobody has reviewed this run; 'tagmask view {first.folder.path}' does."
        )
    _check_drawn(first)
    if not keep:
        place = Path(tempfile.mkdtemp(prefix="tagmask"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
    journals = [Journal(folder) for folder in (first.learned_review, first.folder.path) if folder is not None]
    write_text(place / JOURNAL, "".join(f"{read_text(journal.path).rstrip()}\n" for journal in journals))
    for journal in journals:
        if (journal.folder / MASKS).is_dir():
            shutil.copytree(journal.folder / MASKS, place / MASKS, dirs_exist_ok=True)
    config = first.config.model_dump(mode="json")
    config["data"]["reviewed"] = str(place)
    if config["data"]["seed"] is None:  # another seed of the new run must not hold out other photos
        config["data"]["seed"] = config["seed"]
    return config | {"plan": False}


def _check_drawn(run: Run) -> None:
    """Raise DataError for a drawn mask that is gone, damaged, or not of its photo's size."""
    there = {item.id: item for item in run.collection.items}
    for id, decision in decisions_of(run.folder.path, run.learned_review).items():
        if decision.mask is not None and id in there:
            labels = read_mask(decision.mask, len(run.collection.classes))
            check_size(decision.mask, labels, there[id].image, read_image(there[id].image))


def corrected_masks(run: Run | str | Path, out: str | Path) -> dict[str, int]:
    """The masks of a run as the review leaves them, as copies in the folder ``out``; nothing is trained or made anew.

    Drawn masks stand in the place of made ones. Left out are rejected photos, and photos whose tags were changed since
    their mask was made. Returns the numbers: written, drawn, rejected, retagged.
    Raises DataError for a folder that is not empty.
    """
    run, out = opened(run), Path(out)
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out}: is not empty; name a new folder.")
    decisions = decisions_of(run.folder.path, run.learned_review)
    counts = dict.fromkeys(("written", "drawn", "rejected", "retagged"), 0)
    for item in run.collection.items:
        decision = decisions.get(item.id, Decision())
        made = run.folder.masks / f"{item.id}.png"
        source = decision.mask or (made if made.is_file() else None)
        tags = {run.collection.classes[tag] for tag in item.tags or ()}
        if decision.verdict == "reject":
            counts["rejected"] += 1
        elif decision.mask is None and decision.tags is not None and set(decision.tags) != tags:
            counts["retagged"] += 1
        elif source is not None:
            write_mask(out / f"{item.id}.png", read_mask(source, len(run.collection.classes)))
            counts["written"] += 1
            counts["drawn"] += decision.mask is not None
    note = {"classes": ["background", *run.collection.classes], "ignore": IGNORE, "review": counts}
    write_json(out / "classes.json", note)
    return counts


def import_masks(run: Run | str | Path, folder: str | Path) -> dict[str, Any]:
    """Take masks ``folder``/<id>.png of a run's photos into its review, those that differ from the present ones.

    The present mask is the one that somebody drew, or else that of masks/. Each that differs becomes an entry 'mask' of
    the journal. Where masks come from a format without 255 (as classes.json says), pixels of 255 in the present mask
    stay so where the new one has background. Without a classes.json labels are the run's. Returns counts: added, same,
    without_photo; and failed, a list of file and why, of masks that cannot be read or are not of their photo's size.
    Raises DataError for a folder without masks, and one whose classes.json has other classes or is damaged.
    """
    run, folder = opened(run), Path(folder)
    paths = sorted(folder.rglob("*.png"))
    if not paths:
        raise DataError(f"{folder}: there are no masks (<id>.png) in it.")
    classes, about = run.collection.classes, folder / "classes.json"
    note = read_record(about) if about.is_file() else {"classes": ["background", *classes]}
    made = note.get("converted") or {}
    if not isinstance(note["classes"], list) or not isinstance(made, dict):
        raise DataError(f"{about}: not as tagmask writes it. Restore it, or convert the masks anew.")
    if note["classes"][1:] != classes:
        raise DataError(f"{about}: other classes than the run's ({', '.join(classes)}). Make the masks with those.")
    keep_unsure = made.get("says_unsure") is False
    decisions = decisions_of(run.folder.path, run.learned_review)
    there, journal = {item.id: item for item in run.collection.items}, Journal(run.folder.path)
    counts = dict.fromkeys(("added", "same", "without_photo"), 0)
    failed = []
    for path in paths:
        item = there.get(path.relative_to(folder).as_posix().removesuffix(".png"))
        if item is None:
            counts["without_photo"] += 1
            continue
        try:
            labels = read_mask(path, len(classes))
            check_shape(path, labels.shape, item.image, upright_size(item.image))
        except DataError as error:
            failed.append({"file": str(path), "why": str(error)})
            continue
        path = decisions.get(item.id, Decision()).mask or run.folder.masks / f"{item.id}.png"
        present = _present(path, labels, len(classes))
        if keep_unsure:
            labels[(labels == 0) & (present == IGNORE)] = IGNORE
        if torch.equal(present, labels):
            counts["same"] += 1
        else:
            journal.add(item.id, "mask", labels=labels.numpy())
            counts["added"] += 1
    return {**counts, "failed": failed}


def _present(path: Path, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """The label map in a file; -1 (H,W) where there is none of this size, or a damaged one."""
    try:
        found = read_mask(path, classes) if path.is_file() else None
    except DataError:
        found = None
    if found is None or found.shape != labels.shape:
        return torch.full_like(labels, -1, dtype=torch.int16)
    return found


def gain(first: Run | str | Path, second: Run | str | Path) -> list[dict[str, Any]]:
    """What a reviewed run scores beside the run that was reviewed, on the same photos: name, split, before, after.

    A score of photos of which some are others, or have another true mask, is left out.
    """
    before, after = (_scores(opened(run)) for run in (first, second))
    return [
        {"name": key[0], "split": key[1], "before": before[key]["miou"], "after": score["miou"]}
        for key, score in after.items()
        if key in before and not difference(*({k: s["stamp"][k] for k in ALIKE} for s in (before[key], score)))
    ]


def _scores(run: Run) -> dict[tuple[str, str], dict[str, Any]]:
    """Scores of the delivered masks and of the last segmenter, by name and split."""
    return {(s["name"], s["stamp"]["split"]): s for s in run.folder.scores() if s["name"] in DELIVERED}


def print_gain(rows: Sequence[Mapping[str, Any]], before: str | Path, console: Console) -> None:
    """A table of ``gain``; one line where there is nothing to compare."""
    if not rows:
        text = f"No score of {before} is of the same photos, with the same true masks: the gain is unknown."
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(
        "score", "split", os.path.basename(os.fspath(before)), "reviewed", "gain", title="What the review gained"
    )
    for row in rows:
        more = f"{100 * (row['after'] - row['before']):+.1f}"
        table.add_row(row["name"], row["split"], percent(row["before"]), percent(row["after"]), more)
    console.print(table)
