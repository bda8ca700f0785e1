"""``tagmask train``: everything around the loop, from data to a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tagmask import comm
from tagmask.config import RunConfig, dump_yaml, load_config
from tagmask.data import Collection, Item, read_ahead
from tagmask.errors import ConfigError, DataError, nearest
from tagmask.label import Inference
from tagmask.methods import Method, build_method
from tagmask.registry import METHODS
from tagmask.training import RunFolder, Trained, make_fabric, read_json, train_method, write_text
from tagmask.training.checkpoint import checkpoints
from tagmask.workflow.runs import prepare
from tagmask.workflow.scoring import Scorer
from tagmask.workflow.trained_on import keep_masks

FREE = {
    "workers",
    "accelerator",
    "devices",
    "nodes",
    "strategy",
    "log_every",
    "checkpoint_every",
    "keep",
    "tensorboard",
}
"""Fields of ``train`` that change how a run is computed or logged, not what comes out."""


def train(
    config: RunConfig,
    out: str | Path,
    resume: bool = False,
    prepared: tuple[Collection, dict[str, Any]] | None = None,
    console: Console | None = None,
) -> Trained:
    """Train ``config``'s method on the 'train' split into the run folder ``out``. Raises TagmaskError.

    resume: go on from the newest checkpoint in ``out``; the configuration must be that of the run (see ``resumed``).
    A run that is trained to its end is left as it is, whether its checkpoints and pretrained weights are there or not.
    """
    folder = RunFolder(out)
    check_free(folder, resume)
    if is_trained(folder):
        return _finished(config, folder)
    check_schedule(config)
    collection, _ = prepared or prepare(config, folder, resume)
    items, without = training_items(config, collection)
    if without:
        (console or Console(stderr=True)).print(f"{without} training photos have no mask and are left out.")
    torch.manual_seed(config.seed)
    method = build_method(config, len(collection.classes))
    check_use(method, config, collection.classes)
    folder.create(_anchored(config))
    if method.reads_masks and config.data.train_masks is not None:
        keep_masks(folder, config.data.train_masks)
    watched = [item for item in _split(collection, "val") if item.mask is not None]
    name = "segmenter" if method.has_segmenter else "cam" if method.has_cams else None

    # Only the mIoU is read: the rims, which take as long again, are not counted.
    watching = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"boundary": 0.0})})

    def evaluate_now(current: Method, step: int) -> dict[str, float]:
        scorer = Scorer(current, watching, collection, [str(name)])
        for item, photo in read_ahead(watched):
            scorer.add(item, photo)
        return {f"val/{name}": scorer.streams[str(name)].confusion.miou()}

    return train_method(
        method,
        config,
        items,
        collection.classes,
        folder,
        resume=resume,
        evaluate=evaluate_now if watched and name else None,
        colour_map=collection.colour_map,
        console=console,
    )


def check_free(folder: RunFolder, resume: bool) -> None:
    """Raise ConfigError when the folder holds a run and this is no resume: nothing is overwritten."""
    if not resume and (checkpoints(folder.checkpoints) or folder.model.is_dir()):
        raise ConfigError(
            f"{folder.path}: holds a run already. Use --resume to go on with it, or choose another folder (--out)."
        )


def is_trained(folder: RunFolder) -> bool:
    """Whether a training ended: its model's card is the last file that it writes."""
    return (folder.model / "README.md").is_file()


def _finished(config: RunConfig, folder: RunFolder) -> Trained:
    """What a training that ended had cost, by its log. Settings that may differ on a resume are saved."""
    make_fabric(config.train).launch()  # several processes have to know of each other still
    if comm.rank() == 0:
        write_text(folder.config_file, dump_yaml(_anchored(config)))
    last = next((r for r in reversed(folder.log()) if "seconds" in r), {"seconds": 0.0, "data_share": 0.0})
    return Trained(config.train.steps, last["seconds"], last["data_share"])


def check_schedule(config: RunConfig) -> None:
    """Raise ConfigError when a warm-up is as long as the training: what it delays would never happen.

    Of the method these are its ``phases``, but not those of what is switched off.
    """
    steps = config.train.steps
    waiting = [name for name, anything in config.method.phases().items() if anything]
    lengths = {"train.warmup": config.train.warmup}
    lengths |= {f"method.{name}": getattr(config.method, name) for name in waiting}
    for key, length in lengths.items():
        if length and length >= steps:
            raise ConfigError(
                f"{key} is {length}, but there are only {steps} steps: what begins then never would. Set "
                f"{key}={max(1, steps // 5)}, or raise train.steps."
            )


def _anchored(config: RunConfig) -> RunConfig:
    """The configuration with the data's place made absolute: a run is used from other folders than it was made in."""
    if config.data.root is None or config.data.root.is_absolute():
        return config
    data = config.data.model_copy(update={"root": config.data.root.resolve()})
    return config.model_copy(update={"data": data})


def check_use(method: Method, config: RunConfig, classes: Sequence[str]) -> None:
    """Raise ConfigError for settings of labelling and scoring that would fail only after training."""
    if method.has_cams or method.has_segmenter:
        Inference(method, config)
    for key in ("without", "only"):
        for name in getattr(config.evaluate, key):
            if name not in classes:
                raise ConfigError(f"evaluate.{key} names the unknown class '{name}'.{nearest(name, classes)}")


def training_items(config: RunConfig, collection: Collection) -> tuple[list[Item], int]:
    """Items of the 'train' split, with the masks of ``data.train_masks`` where that is set.

    Also the number that a mask-reading method leaves out for want of a mask. Raises DataError when nothing is left,
    or when those masks were made for other classes.
    """
    items = collection.split("train")
    if not METHODS.get(config.method.name).reads_masks:
        if not items:
            raise DataError(f"{collection.root}: the split 'train' has no tagged image.")
        return items, 0
    folder = config.data.train_masks
    if folder is None and getattr(METHODS.get(config.method.name), "labels_from_tags", False):
        raise ConfigError(
            f"Method '{config.method.name}' learns from labels that another stage made of tags, never from true masks; "
            "run it as a stage (stages.affinity.method), or set data.train_masks to such labels."
        )
    if folder is not None:
        named = folder / "classes.json"
        if named.is_file() and read_json(named)["classes"][1:] != collection.classes:
            raise DataError(f"{named}: these masks are of other classes than the data set's.")
        made = [replace(item, mask=folder / f"{item.id}.png") for item in items]
        items = [item if item.mask and item.mask.is_file() else replace(item, mask=None) for item in made]
    found = [item for item in items if item.mask is not None]
    if not found:
        where = folder or collection.root
        raise DataError(f"{where}: no masks of training photos, and '{config.method.name}' learns from masks.")
    return found, len(items) - len(found)


def resumed(
    folder: RunFolder,
    configs: Sequence[str | Path | Mapping[str, Any]],
    values: Mapping[str, Any],
    overrides: Sequence[str],
) -> RunConfig:
    """The saved configuration of a run to go on with. Raises ConfigError for settings given now that differ from it.

    Settings that do not change the result (devices, workers, logging) may differ and are taken, and so may stages: they
    come after the training, and each guards what it made.
    """
    saved = folder.config().model_dump(mode="json")
    wanted = load_config(saved, *configs, values, overrides=overrides)
    now = wanted.model_dump(mode="json")
    differing = [
        f"{section}.{key}"
        for section, fields in saved.items()
        if isinstance(fields, dict) and section != "stages"
        for key, value in fields.items()
        if now[section].get(key) != value
        and not (section == "train" and key in FREE)
        and (section, key) != ("data", "root")
    ]
    if differing or now["seed"] != saved["seed"] or now["method"]["name"] != saved["method"]["name"]:
        what = ", ".join(differing) or "seed"
        raise ConfigError(f"{folder.path}: holds a run with other settings: {what} differ. Use another folder (--out).")
    return wanted


def _split(collection: Collection, name: str) -> list[Item]:
    return collection.split(name) if collection.splits.get(name) else []
