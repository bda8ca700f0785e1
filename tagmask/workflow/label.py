"""``tagmask label``: masks of tagged photos by a trained run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from tagmask.config import parse_overrides
from tagmask.data import Item
from tagmask.errors import DataError, Helped
from tagmask.label import Labelled, LabelWriter, Look
from tagmask.label.look import Ahead, MaskPass
from tagmask.label.places import absolute, worked_at
from tagmask.label.ray_engine import check_engine
from tagmask.label.share import begun, kind
from tagmask.label.writer import Make
from tagmask.methods import default_method
from tagmask.workflow.opened import Run, heard, opened
from tagmask.workflow.stage_labels import kept_classes
from tagmask.workflow.stamp import mask_note


def label(
    run: Run | str | Path,
    split: str = "train",
    out: str | Path | None = None,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> Labelled:
    """Masks of a split's tagged photos (of several, as in 'train+val'), in ``out``, a URI too, or the run's masks/.

    Only a photo's tags can appear in its mask. Photos without tags are left out and counted. The last segmenter of a
    run with stage 'rounds' makes them, or with ``label.source=cam`` the classifier. Raises DataError where that
    segmenter is not trained yet.
    """
    run = run if isinstance(run, Run) else Run(run)
    source_of(run, overrides)
    place = Path(out) if out else run.folder.masks

    def lead(over: bool) -> Labelled:
        work = label_pass(run, split, place, overrides, overwrite and not begun())
        work.console = console
        work.make("label", {**run.said(), "split": split, "out": absolute(place), "overrides": list(overrides)})
        return work.writer.finish()

    return run.led("label", lead, out and worked_at(out), split=split, overrides=list(overrides), overwrite=overwrite)


@kind("label")
def _helps(about: Mapping[str, Any]) -> MaskPass:
    return label_pass(heard(about), about["split"], Path(about["out"]), about["overrides"])


def label_pass(run: Run, split: str, out: Path, overrides: Sequence[str] = (), overwrite: bool = False) -> MaskPass:
    """The pass of ``label``."""
    maker = opened(source_of(run, overrides), overrides)
    check_engine(maker.config.engine)
    items = list({item.id: item for name in split.split("+") for item in maker.collection.split(name)}.values())
    writer = mask_writer(maker, items, out, overwrite)
    writer.make = mask_maker(maker, run)
    ahead: Ahead = "logits" if maker.inference.source == "segmenter" else "cams"
    return MaskPass(maker.inference, writer, "label", ahead)


def source_of(run: Run, overrides: Sequence[str] = ()) -> Run:
    """The run whose network makes a run's masks: that of the last segmenter of stage 'rounds', else the run itself.

    With ``label.source=cam`` the run itself. Raises DataError where that segmenter is not trained yet.
    """
    of_cams = parse_overrides(overrides).get("label", {}).get("source") == "cam"
    if of_cams or run.config.stages is None or run.config.stages.rounds is None:
        return run
    if run.last is run:
        path = run.folder.path
        raise DataError(f"{path}: its last segmenter is not trained; 'tagmask run --resume -o {path}' goes on.")
    return run.last


def mask_maker(source: Run, run: Run) -> Make:
    """What makes the masks of ``run`` by the networks of ``source``, which ``source_of`` found for it.

    Of a round, a tagged class that is nowhere in a mask keeps its pixels of the masks before.
    """
    names = ["background", *source.collection.classes]

    def make(item: Item, look: Look) -> tuple[Tensor, Tensor, list[str]]:
        return *look.mask, names

    if source.folder.path == run.folder.path:
        return make
    return kept_classes(make, Path(str(source.config.data.train_masks)))


def mask_writer(run: Run, items: Sequence[Item], folder: Path | None = None, overwrite: bool = False) -> LabelWriter:
    """Writes the masks of the tagged ones of these photos into the folder, or the run's masks/."""
    names = run.collection.classes
    tagged = [item for item in items if item.tags is not None]
    note, soft = mask_note(run, with_tags=True), run.config.label.soft
    writer = LabelWriter(folder or run.folder.masks, tagged, names, note, mask_maker(run, run), overwrite, soft)
    writer.done.untagged = len(items) - len(tagged)
    return writer


def own_masks(run: Run, overwrite: bool = False) -> LabelWriter:
    """Writes the masks of the tagged photos of train and val into the run's masks/."""
    return mask_writer(run, [*run.collection.listed("train"), *run.collection.listed("val")], overwrite=overwrite)


def labels_of(run: Run | str | Path, make: bool = True, console: Console | None = None) -> dict[str, Any]:
    """Settings that train a segmenter on the masks which ``run`` gives its training photos: its data, its splits.

    Masks that are missing are made first, as ``tagmask label`` makes them; ``make=False`` only says what would be
    trained. Works for every method: for one without a segmenter they are its refined CAMs. To be merged under what
    the user sets. Raises DataError for a folder without a trained model, and where no photo gets a mask.
    """
    run = opened(run)
    folder, config = run.folder, run.config
    if not run.trained:
        raise DataError(f"{folder.path}: is not trained to its end; 'tagmask train --resume -o {folder.path}' goes on.")
    if make:
        wanted = [item for item in run.collection.split("train") if item.tags is not None]
        if not all((folder.masks / f"{item.id}.png").is_file() for item in wanted):
            with suppress(Helped):  # another process needs the same masks, and has made them now
                done = label(run, "train", console=console)
                if not done.written + done.skipped:
                    raise DataError(f"{folder.masks}: no training photo could be labelled ({done.failed[:1]}).")
            if not any((folder.masks / f"{item.id}.png").is_file() for item in wanted):
                raise DataError(f"{folder.masks}: the process that made the masks ended before; try again.")
    data = config.data.model_dump(mode="json")
    data["train_masks"] = str(folder.masks)
    if data["seed"] is None:  # another seed of this training must not hold out other photos than the run did
        data["seed"] = config.seed
    return {"data": data, "method": {"name": default_method("segmenter")}}
