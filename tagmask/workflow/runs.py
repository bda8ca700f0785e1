"""A run and its data: opened, frozen in the run folder, and opened again as they were."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any

import torch

from tagmask.config import RunConfig, load_config, parse_overrides
from tagmask.data import Collection, clean, fingerprint, open_data
from tagmask.errors import ConfigError, DataError
from tagmask.methods import Method
from tagmask.training import RunFolder, load_model, make_fabric, read_json, write_json

CHANGEABLE: dict[str, Set[str] | None] = {
    "label": None,
    "evaluate": None,
    "data": {"root", "tags", "images", "masks", "colour_map"},
    "train": {"accelerator", "devices", "precision", "workers"},
    "views": {"short_side"},
}
"""Settings that may change once a run is trained: how it is used, and where things lie on this machine. Of a method's
own those that it names as ``at_use``."""


def default_device(config: RunConfig) -> torch.device:
    """The first device that training would use."""
    return make_fabric(config.train.model_copy(update={"devices": 1, "nodes": 1, "strategy": "auto"})).device


def working_grid(config: RunConfig) -> str:
    """What photos are reduced to before CAMs and segmentations, for the stamp on scores."""
    return grid_of(config.views.short_side, config.label.max_side)


def grid_of(short: int | None, longest: int) -> str:
    """``working_grid`` of views.short_side and label.max_side."""
    return ("photos' own size" if short is None else f"short side {short}") + f", at most {longest}"


def run_stamp(config: RunConfig, method: Method) -> dict[str, Any]:
    """What a protocol says of the trained run."""
    return {
        "crop": config.views.crop,
        "seed": config.seed,
        "weights": method.encoder.weights_origin,
        "method": config.method.name,
        "use": method.use,
        "encoder": config.encoder.name,
    }


def cam_stamp(config: RunConfig) -> dict[str, Any]:
    """What a protocol says of how CAMs are made."""
    return {
        "scales": config.label.cam_scales,
        "flip": config.label.cam_flip,
        "merge": "sum",
        "grid": working_grid(config),
        "precision": config.train.precision,
    }


def prepare(
    config: RunConfig, folder: RunFolder | None = None, resume: bool = False
) -> tuple[Collection, dict[str, Any]]:
    """Open the data, look at every file once, leave unreadable ones out.

    With a folder, saves fingerprint.json and data.json (classes and splits) there. Raises DataError when that folder
    lies among the photos: its masks would be taken for photos the next time. resume: a run in the folder that has
    begun keeps what is saved there, and photos that came later take no part (see ``reopen``).
    """
    if resume and folder is not None and folder.config_file.is_file():
        return reopen(folder, config), read_json(folder.fingerprint_file)
    collection = open_collection(config)
    if folder is not None and folder.path.resolve().is_relative_to(collection.root.resolve()):
        raise DataError(f"{folder.path}: lies in the data's folder {collection.root}; write the run elsewhere (--out).")
    found = fingerprint(collection)
    collection = clean(collection, found)
    if folder is not None:
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json(folder.fingerprint_file, found)
        write_json(folder.data_file, {"classes": collection.classes, "splits": collection.splits})
    return collection, found


def open_collection(config: RunConfig) -> Collection:
    """The data that a configuration names, with its splits. Raises DataError."""
    return open_data(config.data, config.seed if config.data.seed is None else config.data.seed)


def reopen(folder: RunFolder, config: RunConfig) -> Collection:
    """The run's data with the classes and splits that it was trained on, whatever was added to the folder since.

    Raises DataError when the classes have changed or photos of a split are gone.
    """
    collection = open_collection(config)
    if not folder.data_file.is_file():
        raise DataError(f"{folder.data_file}: missing; it says which photos the run was trained on. Train again.")
    frozen = read_json(folder.data_file)
    if collection.classes != frozen["classes"]:
        raise DataError(
            f"{collection.root}: the classes are now {', '.join(collection.classes)}; the run was trained on "
            f"{', '.join(frozen['classes'])}. Restore the tags, or set data.classes."
        )
    collection = clean(collection, read_json(folder.fingerprint_file))
    there = {item.id for item in collection.items}
    gone = [name for ids in frozen["splits"].values() for name in ids if name not in there]
    if gone:
        raise DataError(f"{collection.root}: {len(gone)} photos of the run are gone ('{gone[0]}' is the first).")
    return replace(collection, splits=frozen["splits"])


def open_run(run: Any, overrides: Sequence[str] = ()) -> tuple[RunFolder, RunConfig, Method]:
    """Run folder, its configuration with overrides, and the trained method on the best device at hand.

    Raises ConfigError for an override of what training has decided already.
    """
    folder = RunFolder(run)
    saved = folder.config()
    changeable = CHANGEABLE | {"method": saved.method.at_use}
    for section, values in parse_overrides(overrides).items():
        allowed = changeable.get(section, set())
        wrong = (
            [section] if not isinstance(values, dict) else sorted(set(values) - allowed) if allowed is not None else []
        )
        if wrong:
            raise ConfigError(f"{section}.{wrong[0]} was decided when {run} was trained; it cannot be overridden now.")
    config = load_config(saved.model_dump(mode="json"), overrides=overrides)
    method, _, _ = load_model(folder.model, default_device(config), config.method)
    return folder, config, method
