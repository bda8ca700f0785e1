"""What a table would cost: steps, hours by a short measurement on this machine, and disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Grid

from tagmask.config import RunConfig, load_config
from tagmask.data import Collection, Item, clean, fingerprint, read_image, tag_vector
from tagmask.errors import DataError
from tagmask.label import Inference, Look
from tagmask.methods import Method, build_method
from tagmask.reproduce.checks import missing_truth, missing_weights
from tagmask.reproduce.job import Job, base_score, of_cost, runs_of
from tagmask.reproduce.table import SPECIAL_KEYS, Table
from tagmask.training import RunFolder
from tagmask.training.checkpoint import checkpoints
from tagmask.workflow.disk import bytes_of_maps, disk_plan, human, network_row
from tagmask.workflow.opened import Run, open_collection
from tagmask.workflow.scorer import FILES, LOCALIZATION, Scorer, photos_of
from tagmask.workflow.stage_labels import ConfidentLabels, MakePlaces
from tagmask.workflow.stages import Stages, mask_maker, stage_configs
from tagmask.workflow.timing import bare, on_device, second, time_step

Prepared = tuple[Collection, dict[str, Any]]


def show_plan(table: Table, jobs: Sequence[Job], home: Path, console: Console | None) -> dict[str, Any]:
    """Steps, hours and disk of what is not done yet.

    One step of each training of a row is timed here, and one photo of each split that is scored and of the label files
    that a row or its stages write. Disk is what a row writes at most: models and label maps, and the checkpoints that
    go when it is done. Weights that are missing are told, and counted as there.
    """
    opened: dict[str, Prepared] = {}
    timed: dict[str, dict[str, Any]] = {}
    lines = []
    for job in jobs:
        line: dict[str, Any] = {"row": job.row.name, "seed": job.seed, "done": job.done(), "steps": 0}
        line |= {"seconds_per_step": 0.0, "bytes": 0, "hours": 0.0, "label_hours": 0.0, "scoring_hours": 0.0}
        if line["done"]:
            line["seconds_per_step"] = job.result()["seconds_per_step"] or 0.0
        else:
            collection, found = _open(job.config, opened)
            seconds = timed.setdefault(job.row.name, {})
            if not seconds:
                seconds |= {"scoring": time_scoring(job, collection), "labels": time_label_files(job, collection)}
                seconds["steps"] = [time_step(config, collection) for config in job.networks().values()]
            line["scoring_hours"] = seconds["scoring"] / 3600
            if job.trains():
                left = [steps_left(RunFolder(path), config) for path, config in job.networks().items()]
                training = sum(each * steps for each, steps in zip(seconds["steps"], left, strict=True))
                line |= {"steps": sum(left), "hours": training / 3600, "bytes": disk(job, collection, found)}
                line["seconds_per_step"] = training / sum(left) if any(left) else 0.0
                line["label_hours"] = seconds["labels"] / 3600
        lines.append(line)
    total = sum(line["hours"] + line["label_hours"] + line["scoring_hours"] for line in lines)
    size = sum(line["bytes"] for line in lines)
    missing = [*missing_weights(jobs), *missing_truth(jobs)]
    if console is not None:
        _print(table, lines, total, size, home, console)
        for text in missing:
            console.print(text, style="yellow", markup=False, highlight=False)
    return {"title": table.title, "plan": lines, "hours": total, "bytes": size, "missing": missing}


def steps_left(run: RunFolder, config: RunConfig) -> int:
    """Steps of a training that its newest checkpoint has not behind it."""
    if Run(run.path).trained:
        return 0
    behind = max((int(path.stem.removeprefix("step_")) for path in checkpoints(run.checkpoints)), default=0)
    return max(0, config.train.steps - behind)


def _print(
    table: Table, lines: Sequence[Mapping[str, Any]], hours: float, size: int, home: Path, console: Console
) -> None:
    grid = Grid("row", "seed", "steps left", "s/step", "training h", "labels h", "scoring h", "disk", title=table.title)
    for line in lines:
        steps = "done" if line["done"] else str(line["steps"])
        cells = [f"{line[key]:.3f}" for key in ("seconds_per_step", "hours", "label_hours", "scoring_hours")]
        grid.add_row(line["row"], str(line["seed"]), steps, *cells, human(line["bytes"]))
    console.print(grid)
    place = next(p for p in (home, *home.resolve().parents) if p.exists())
    console.print(
        f"{hours:.2f} hours in all on this machine by one process; {human(size)} on disk at most, "
        f"{human(shutil.disk_usage(place).free)} are free.",
        highlight=False,
    )
    console.print(
        "Not timed: starting, weights, checkpoints, scores while training, comparing label files, bootstrap intervals, "
        "columns of cost.",
        highlight=False,
    )


def _open(config: RunConfig, opened: dict[str, Prepared]) -> Prepared:
    """The data of a row; rows share it."""
    key = config.data.model_dump_json(exclude={"train_masks"})
    if key not in opened:
        collection = open_collection(config)
        found = fingerprint(collection)
        opened[key] = clean(collection, found), found
    return opened[key]


def time_label_files(job: Job, collection: Collection) -> float:
    """Seconds of the label files of all training photos that a row or its stages write, from one photo's.

    Of a photo of nothing a stage makes no maps.
    """
    config, stages = job.config, job.config.stages
    photos = [item for item in collection.split("train") if item.tags is not None]
    shown = [item for item in photos if item.tags]
    if not shown or not (job.row.label or stages):
        return 0.0
    inference = Inference(on_device(config, collection).eval(), config)
    makers: list[tuple[MakePlaces, int]] = []
    if job.row.label:
        makers.append((lambda look, present: look.mask, len(photos)))
    if stages is not None and stages.cams is not None:
        makers.append((ConfidentLabels(stages.cams), len(shown)))
    if stages is not None and stages.masks is not None and stages.masks.source == "segmenter":
        makers.append((lambda look, present: look.mask, len(shown)))
    elif stages is not None and stages.masks is not None:
        affinity = stage_configs(config, RunFolder(job.folder)).get("affinity")
        walker = None if affinity is None else on_device(affinity, collection).eval()
        makers.append((mask_maker(config, inference, walker, affinity), len(shown)))
    photo, present = read_image(shown[0].image), torch.tensor(shown[0].tags)
    tags = tag_vector(shown[0].tags or (), len(collection.classes))

    def one(make: MakePlaces) -> float:
        return second(lambda: make(Look(inference, photo, tags), present), inference.device)

    seconds = sum(count * one(make) for make, count in makers)
    if stages is not None and stages.rounds is not None:  # each round's segmenter makes masks of all photos
        config = stage_configs(config, RunFolder(job.folder))["segmenter"]
        inference = Inference(on_device(config, collection).eval(), config)
        seconds += stages.rounds.count * len(photos) * one(lambda look, present: look.mask)
    return seconds


def time_scoring(job: Job, collection: Collection) -> float:
    """Seconds of scoring a row's columns: seconds on the first photo of each split, times the split's photos.

    Scores of label files take no network and are left out, as are columns of cost; localisation and spread count as
    CAMs.
    """
    groups: dict[tuple[tuple[str, ...], str, bool], list[str]] = {}
    for settings, split, name in job.missing():
        base = "cam" if name in SPECIAL_KEYS else base_score(name)
        if base not in FILES and not of_cost(name):
            groups.setdefault((settings, split, name == LOCALIZATION), []).append(base)
    own = stage_configs(job.config, RunFolder(job.folder)).get("segmenter")
    methods: dict[str, Method] = {}
    seconds = 0.0
    for (settings, split, boxed), names in groups.items():
        try:
            items = photos_of(LOCALIZATION if boxed else names[0], collection, split)
        except DataError:  # told with the plan, see missing_truth
            items = []
        for part, given in runs_of(sorted(set(names)), own is not None):
            if items:
                config = job.config if part == "." or own is None else own
                if part not in methods:
                    methods[part] = on_device(config, collection)
                config = load_config(config.model_dump(mode="json"), overrides=[*job.scored, *settings])
                seconds += _time_photo(methods[part], config, collection, given, items[0]) * len(items)
    return seconds


def _time_photo(method: Method, config: RunConfig, collection: Collection, names: Sequence[str], item: Item) -> float:
    """Seconds of one photo's scores; of its CAMs where it has no mask: that is localisation."""
    photo = read_image(item.image)
    inference = Inference(method, config)
    tags = None if item.tags is None else tag_vector(item.tags, len(collection.classes))
    scorers = [Scorer(inference, config.evaluate, collection, names) for _ in range(2)]

    def once() -> None:
        scorer, look = scorers.pop(), Look(inference, photo, tags)  # a photo is scored once by each
        if item.mask is None:
            look.cams  # noqa: B018 (made here)
        scorer.add(item, look)

    return second(once, inference.device)


def disk(job: Job, collection: Collection, found: dict[str, Any]) -> int:
    """Bytes that a row writes at most, with the checkpoints that go when it is done."""
    run = Run(job.folder, job.config)
    run.collection, run.fingerprint = collection, found
    stages = Stages(run)
    configs = {"classifier": run.config} | stages.configs
    networks = ((name, build_method(bare(own), len(collection.classes))) for name, own in configs.items())
    if run.config.stages is not None:
        return sum(row["bytes"] for row in disk_plan(run, stages, networks))
    size = sum(network_row(name, run.config, run.folder.path, method)["bytes"] for name, method in networks)
    if job.row.label and found["sizes"]:
        images = found["splits"].get("train", {}).get("labelled", found["counts"]["labelled"])
        size += images * bytes_of_maps(run.config, found)[0]
    return size
