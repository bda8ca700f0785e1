"""``tagmask train``: everything around the loop, from data to a run folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tagmask import comm
from tagmask.config import RunConfig, load_config
from tagmask.data import Item
from tagmask.errors import ConfigError, DataError, Stopped, nearest
from tagmask.files import read_record
from tagmask.label import Inference, Look, go_over
from tagmask.lock import alone, first
from tagmask.methods import Method
from tagmask.methods.base import MAIN
from tagmask.registry import METHODS
from tagmask.strict import differing
from tagmask.training import RunFolder, Trained, make_fabric, train_method
from tagmask.training.checkpoint import checkpoints
from tagmask.workflow.opened import Run
from tagmask.workflow.scorer import Scorer
from tagmask.workflow.stamp import keep_masks_note


def train(
    run: Run | RunConfig, out: str | Path | None = None, resume: bool = False, console: Console | None = None
) -> Trained:
    """Train a configuration's method on the 'train' split into the run folder ``out``. Raises TagmaskError.

    run: a configuration, or a Run that knows its folder. resume: go on from the newest checkpoint; the configuration
    must be that of the run (see ``resumed``). A run that is trained to its end is left as it is, whether its
    checkpoints and pretrained weights are there or not.
    """
    if isinstance(run, RunConfig):
        if out is None:
            raise ConfigError("train(config, out): 'out' is missing, the folder to write the run to.")
        run = Run(out, run)
    elif out is not None:
        raise ConfigError(f"train(run, out): the run knows its folder, {run.folder.path}; leave 'out' away.")
    with alone(run.folder.path):
        try:
            return _train(run, resume, console)
        except Stopped as stop:
            if run.begun:
                stop.again = f"tagmask train --resume -o {shlex.quote(str(run.folder.path))}"
            raise


def _train(run: Run, resume: bool, console: Console | None) -> Trained:
    folder, config = run.folder, run.config
    check_free(folder, resume)
    if run.trained:
        return _finished(run)
    check_schedule(config)
    if folder.model.is_dir() and not checkpoints(folder.checkpoints):
        raise DataError(
            f"{folder.model}: files are gone, and no checkpoint is left to make them from. Restore them, or delete the "
            "folder to train again."
        )
    run.begin(resume)
    config = run.config  # which says now whether tags were read from masks
    if not folder.data_file.is_file():
        run.save_data()
    items, without = training_items(run)
    if without:
        (console or Console(stderr=True)).print(f"{without} training photos have no mask and are left out.")
    method = run.untrained
    check_use(method, config, run.collection.classes)
    if first():
        folder.create(_anchored(config))
    alone = config.model_copy(update={"stages": None})  # which are no part of the model
    if method.reads_masks and config.data.train_masks is not None:
        keep_masks_note(folder, config.data.train_masks)
    try:
        return train_method(
            method,
            alone,
            items,
            run.collection.classes,
            folder,
            resume=resume,
            evaluate=_watch(run, method),
            colour_map=run.collection.colour_map,
            console=console,
        )
    finally:  # what was made of other weights: those that training starts from, or another model's
        for part in ("untrained", "method", "inference", "model_note"):
            run.__dict__.pop(part, None)


def _watch(run: Run, method: Method) -> Any:
    """What scores val during the training, for the log; None where there is nothing to score.

    CAMs have two scores: at the threshold in force, and at that which is best on these very photos. Raises ConfigError
    where ``train.watch`` names what the method does not have.
    """
    watched = [item for item in run.collection.listed("val") if item.mask is not None]
    known = ["segmenter"] * method.has_segmenter + ["cam"] * method.has_cams
    names = run.config.train.watch or known[:1]
    for which, maps in method.others().items():
        known += [f"segmenter_{which}"] * (maps.segment is not None) + [f"cam_{which}"] * (maps.cam_maps is not None)
    for name in names:
        if name not in known:
            raise ConfigError(f"train.watch: '{name}' is nothing that is scored. There is: {', '.join(known)}.")
    if run.config.train.watch and not watched:
        raise ConfigError("train.watch: no photo of val has a true mask; give them (data.masks), or leave it out.")
    if not watched or not names:
        return None
    # Only the mIoU is read: the rims, which take as long again, are not counted.
    settings = run.config.evaluate.model_copy(update={"boundary": 0.0, "bootstrap": 0})

    def evaluate_now(current: Method, step: int) -> dict[str, float]:
        scorers = {}
        for name in names:
            score, _, which = name.partition("_")
            scorers[name] = Scorer(Inference(current, run.config, which or MAIN), settings, run.collection, [score])
            scorers[name].networks = False  # no class scores

        def add(item: Item, look: Look | DataError) -> None:
            for scorer in scorers.values():
                scorer.add(item, look if isinstance(look, DataError) else Look(scorer.inference, look.photo, look.tags))

        go_over(scorers[names[0]].inference, watched, [add], f"val, step {step}", Console(quiet=True))
        found = {}
        for name, scorer in scorers.items():
            (stream,) = scorer.streams.values()
            found[f"val/{name}"] = stream.confusion.miou()
            if scorer.curve is not None:
                found[f"val/{name} (best threshold)"] = scorer.curve.peak()[1]
        return found

    return evaluate_now


def check_free(folder: RunFolder, resume: bool) -> None:
    """Raise ConfigError when the folder holds a run and this is no resume: nothing is overwritten."""
    if not resume and (checkpoints(folder.checkpoints) or folder.model.is_dir()):
        raise ConfigError(
            f"{folder.path}: holds a run already. Use --resume to go on with it, or choose another folder (--out)."
        )


def _finished(run: Run) -> Trained:
    """What a training that ended had cost, by its log. Settings that may differ on a resume are saved."""
    make_fabric(run.config.train).launch()  # several processes have to know of each other still
    if comm.rank() == 0:
        run.folder.save(_anchored(run.config))
    last = next((r for r in reversed(run.folder.log()) if "seconds" in r), {"seconds": 0.0, "data_share": 0.0})
    return Trained(run.config.train.steps, last["seconds"], last["data_share"])


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
                f"{key}={steps // 5}, or raise train.steps."
            )


def _anchored(config: RunConfig) -> RunConfig:
    """The configuration with the data's places made absolute: a run is used from other folders than it was made in."""
    names = ("root", "tags", "images", "masks", "train_masks", "classes", "colour_map", "reviewed")
    places = {name: getattr(config.data, name) for name in names}
    found = {name: place.resolve() for name, place in places.items() if isinstance(place, Path) and place.exists()}
    return config.model_copy(update={"data": config.data.model_copy(update=found)})


def check_use(method: Method, config: RunConfig, classes: Sequence[str]) -> None:
    """Raise ConfigError for settings of labelling and scoring that would fail only after training."""
    if method.has_cams or method.has_segmenter:
        Inference(method, config).saliency  # noqa: B018 (says that it cannot be had)
    for key in ("without", "only"):
        for name in getattr(config.evaluate, key):
            if name not in classes:
                raise ConfigError(f"evaluate.{key} names the unknown class '{name}'.{nearest(name, classes)}")


def training_items(run: Run) -> tuple[list[Item], int]:
    """Items of the 'train' split, with the masks of ``data.train_masks`` where that is set, and those that people drew.

    Also the number that a mask-reading method leaves out for want of a mask. Raises DataError when nothing is left,
    when those masks were made for other classes, or where a softmax (``method.cls_loss``) finds no or several tags.
    """
    config, collection = run.config, run.collection
    items, kind = collection.split("train"), METHODS.get(config.method.name)
    if not kind.reads_masks:
        if not items:
            raise DataError(f"{collection.root}: the split 'train' has no tagged image.")
        other = [item.id for item in items if len(item.tags or ()) != 1]
        if other and getattr(config.method, "cls_loss", None) == "softmax":
            raise DataError(
                f"{collection.root}: method.cls_loss=softmax learns one class a photo; {len(other)} of {len(items)} "
                f"training photos have none or several ('{other[0]}' is the first). Set method.cls_loss=multilabel."
            )
    if not kind.reads_masks and not run.untrained.reads_masks:  # a setting may ask for them
        return items, 0
    folder = config.data.train_masks
    if folder is None and kind.labels_from_tags:
        raise ConfigError(
            f"Method '{config.method.name}' learns from labels that another stage made of tags, never from true masks; "
            "run it as a stage (stages.affinity.method), or set data.train_masks to such labels."
        )
    if folder is not None:
        named = folder / "classes.json"
        if named.is_file() and read_record(named)["classes"][1:] != collection.classes:
            raise DataError(f"{named}: these masks are of other classes than the data set's.")
        made = [replace(item, mask=folder / f"{item.id}.png") for item in items]
        items = [item if item.mask and item.mask.is_file() else replace(item, mask=None) for item in made]
    items = [item if item.corrected is None else replace(item, mask=item.corrected) for item in items]
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

    Settings that change no result (devices, workers, logging) may differ and are taken, and so may stages: they come
    after the training, and each guards what it made.
    """
    saved = folder.config()
    wanted = _anchored(load_config(saved.model_dump(mode="json"), *configs, values, overrides=overrides))
    other = differing(saved, wanted, lambda role: not role.computed)
    if other:
        what = ", ".join(other)
        raise ConfigError(f"{folder.path}: holds a run with other settings: {what} differ. Use another folder (--out).")
    return wanted
