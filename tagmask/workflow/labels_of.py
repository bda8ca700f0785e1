"""A run's masks as the data of another run: the second stage of a staged method, from one run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from tagmask.errors import DataError
from tagmask.training import RunFolder
from tagmask.workflow.runs import reopen
from tagmask.workflow.use_run import label


def labels_of(run: str | Path, make: bool = True, console: Console | None = None) -> dict[str, Any]:
    """Settings that train 'supervised' on the masks which ``run`` gives its training photos: its data, its splits.

    Masks that are missing are made first, as ``tagmask label`` makes them; ``make=False`` only says what would be
    trained. Works for every method: for one without a segmenter they are its refined CAMs. To be merged under what
    the user sets. Raises DataError for a folder without a trained model, and where no photo gets a mask.
    """
    folder = RunFolder(run)
    config = folder.config()
    if not folder.model.is_dir():
        raise DataError(f"{folder.path}: is not trained to its end; 'tagmask train --resume -o {folder.path}' goes on.")
    if make:
        wanted = [item for item in reopen(folder, config).split("train") if item.tags is not None]
        if not all((folder.masks / f"{item.id}.png").is_file() for item in wanted):
            done = label(run, "train", console=console)
            if not done.written + done.skipped:
                raise DataError(f"{folder.masks}: no training photo could be labelled ({done.failed[:1]}).")
    data = config.data.model_dump(mode="json")
    data["train_masks"] = str(folder.masks)
    if data["seed"] is None:  # another seed of this training must not hold out other photos than the run did
        data["seed"] = config.seed
    return {"data": data, "method": {"name": "supervised"}}
