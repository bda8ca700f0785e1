"""What a table would cost: steps, hours by a short measurement on this machine, and disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table as Grid
from torch.nn import functional as F

from tagmask import workflow
from tagmask.config import EncoderConfig, RunConfig, load_config
from tagmask.data import Collection, Item, TrainLoader, TrainViews, read_image, tag_vector
from tagmask.encoders.weights import find_weights, trained_encoder
from tagmask.errors import WeightsError
from tagmask.methods import Method, build_method
from tagmask.reproduce.job import Job, base_score
from tagmask.reproduce.table import SPECIAL_KEYS, Table
from tagmask.training import RunFolder, make_fabric
from tagmask.training.checkpoint import checkpoints
from tagmask.types import Batch
from tagmask.workflow.scoring import FILES, Scorer
from tagmask.workflow.stages import PNG_EXTRA, disk_plan, human, is_trained, network_row

Prepared = tuple[Collection, dict[str, Any]]


def show_plan(table: Table, jobs: Sequence[Job], home: Path, console: Console | None) -> dict[str, Any]:
    """Steps, hours and disk of what is not done yet.

    One step of each training of a row is timed here, and one photo of each split that is scored. Disk is what a row
    writes at most: models and label maps, and the checkpoints that go when it is done. What stages add besides their
    networks' training (labels, walks) is not timed. Weights that are missing are told, and counted as there.
    """
    opened: dict[str, Prepared] = {}
    training: dict[str, list[float]] = {}
    scoring: dict[str, float] = {}
    lines = []
    for job in jobs:
        name, done = job.row.name, job.done()
        trains = job.trains()
        line: dict[str, Any] = {"row": name, "seed": job.seed, "done": done, "steps": 0, "seconds_per_step": 0.0}
        line |= {"staged": trains and job.row.stages, "bytes": 0}
        line |= {"hours": 0.0, "scoring_hours": 0.0}
        if done:
            line["seconds_per_step"] = job.result()["seconds_per_step"] or 0.0
        else:
            collection, found = _open(job.config, opened)
            if name not in scoring:
                scoring[name] = time_scoring(job, collection)
            line["scoring_hours"] = scoring[name]
        if trains:
            networks = job.networks()
            if name not in training:
                training[name] = [time_step(config, collection) for config in networks.values()]
            left = [steps_left(RunFolder(path), config) for path, config in networks.items()]
            seconds = sum(each * steps for each, steps in zip(training[name], left, strict=True))
            line |= {"steps": sum(left), "hours": seconds / 3600, "bytes": disk(job, found)}
            line["seconds_per_step"] = seconds / sum(left) if any(left) else 0.0
        lines.append(line)
    total = sum(line["hours"] + line["scoring_hours"] for line in lines)
    size = sum(line["bytes"] for line in lines)
    missing = missing_weights(jobs)
    if console is not None:
        _print(table, lines, total, size, home, console)
        for text in missing:
            console.print(text, style="yellow", markup=False, highlight=False)
    return {"title": table.title, "plan": lines, "hours": total, "bytes": size, "missing": missing}


def check_weights(jobs: Sequence[Job]) -> None:
    """Raise WeightsError for weights that rows would lack when it is their turn, or their last stage's."""
    missing = missing_weights(jobs)
    if missing:
        raise WeightsError("\n".join(missing) + "\nOr run the rows that have theirs (--rows).")


def missing_weights(jobs: Sequence[Job]) -> list[str]:
    """'Rows a, b: why' for each network's pretrained weights that are not found, of all that is still to be trained."""
    why: dict[str, str] = {}
    rows: dict[str, list[str]] = {}
    for job in jobs:
        networks = job.networks() if job.trains() else {}
        untrained = [config for path, config in networks.items() if not is_trained(RunFolder(path))]
        for encoder in (encoder for config in untrained for encoder in _encoders(config)):
            key = encoder.model_dump_json()
            if key not in why:
                why[key] = _why_missing(encoder)
            if why[key] and job.row.name not in rows.setdefault(why[key], []):
                rows[why[key]].append(job.row.name)
    return [f"Row{'s' if len(names) > 1 else ''} {', '.join(names)}: {reason}" for reason, names in rows.items()]


def _why_missing(encoder: EncoderConfig) -> str:
    try:
        if trained_encoder(encoder) is None:
            find_weights(encoder)
    except WeightsError as error:
        return str(error)
    return ""


def steps_left(run: RunFolder, config: RunConfig) -> int:
    """Steps of a training that its newest checkpoint has not behind it."""
    if is_trained(run):
        return 0
    behind = max((int(path.stem.removeprefix("step_")) for path in checkpoints(run.checkpoints)), default=0)
    return max(0, config.train.steps - behind)


def _print(
    table: Table, lines: Sequence[Mapping[str, Any]], hours: float, size: int, home: Path, console: Console
) -> None:
    grid = Grid("row", "seed", "steps left", "s/step", "hours", "scoring", "disk", title=table.title)
    for line in lines:
        steps = "done" if line["done"] else str(line["steps"])
        cells = [f"{line[key]:.3f}" for key in ("seconds_per_step", "hours", "scoring_hours")]
        grid.add_row(line["row"], str(line["seed"]), steps, *cells, human(line["bytes"]))
    console.print(grid)
    place = next(p for p in (home, *home.resolve().parents) if p.exists())
    console.print(
        f"{hours:.2f} hours in all on this machine by one process; {human(size)} on disk at most, "
        f"{human(shutil.disk_usage(place).free)} are free.",
        highlight=False,
    )
    if any(line["staged"] for line in lines):
        console.print("Labels and walks of stages, where a row has stages, come on top.", highlight=False)


def _open(config: RunConfig, opened: dict[str, Prepared]) -> Prepared:
    """The data of a row; rows share it."""
    key = config.data.model_dump_json(exclude={"train_masks"})
    if key not in opened:
        opened[key] = workflow.prepare(config)
    return opened[key]


def time_step(config: RunConfig, collection: Collection) -> float:
    """Seconds of one training step after all warm-ups, forward and backward, measured here.

    Weights are random, and so are the masks of a method that reads masks: those of earlier rows and stages need not be
    there.
    """
    method = _on_device(config, collection).train()
    device = next(method.parameters()).device
    fabric = make_fabric(config.train)
    loader = TrainLoader(
        collection.split("train"),
        len(collection.classes),
        TrainViews(config.views, method.wanted_views),
        batch_size=config.train.batch_size // config.train.accumulate,
        steps=2,
        seed=config.seed,
        workers=0,
    )
    seconds = 0.0
    for batch in loader:
        batch = batch.to(device, torch.Generator(device=device).manual_seed(0))
        if method.reads_masks:
            batch.masks = _blocks(batch, len(collection.classes)).to(device)
        began = time.perf_counter()
        with fabric.autocast():
            losses = method.losses(batch, config.train.steps - 1)
        losses.total.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began  # of the last one: the first warms up
    return seconds * config.train.accumulate


def _blocks(batch: Batch, classes: int) -> torch.Tensor:
    """Label maps uint8 (B,H,W) of 4 x 4 blocks, each of one label."""
    labels = torch.randint(0, classes + 1, (len(batch.ids), 4, 4), generator=torch.Generator().manual_seed(0))
    return F.interpolate(labels[:, None].float(), size=batch.images.shape[-2:], mode="nearest")[:, 0].byte()


def time_scoring(job: Job, collection: Collection) -> float:
    """Hours of scoring a row's columns: seconds on the first photo of each split, times the split's photos.

    Scores of label files take no network and are left out, localisation and spread count as CAMs, and a stage's
    segmenter is not timed.
    """
    left_out = {*FILES}
    if job.config.stages is not None and job.config.stages.segmenter is not None:
        left_out |= {"segmenter", "segmenter+tags"}
    groups: dict[tuple[tuple[str, ...], str], set[str]] = {}
    for settings, split, name in job.missing():
        base = "cam" if name in SPECIAL_KEYS else base_score(name)
        if base not in left_out:
            groups.setdefault((settings, split), set()).add(base)
    method = _on_device(job.config, collection)
    seconds = 0.0
    for (settings, split), names in groups.items():
        items = [item for item in collection.split(split) if item.mask is not None or item.boxes]
        if items:
            config = with_settings(job.config, [*job.scored, *settings])
            seconds += _time_photo(method, config, collection, sorted(names), items[0]) * len(items)
    return seconds / 3600


def _time_photo(method: Method, config: RunConfig, collection: Collection, names: Sequence[str], item: Item) -> float:
    photo = read_image(item.image)
    seconds = 0.0
    for _ in range(2):  # the first warms up
        scorer = Scorer(method, config, collection, names)
        began = time.perf_counter()
        if item.mask is None:  # localisation
            scorer.inference.cams(photo, tag_vector(item.tags or (), len(collection.classes)))
        scorer.add(item, photo)
        seconds = time.perf_counter() - began
    return seconds


def _on_device(config: RunConfig, collection: Collection) -> Method:
    method = build_method(bare(config), len(collection.classes)).to(make_fabric(config.train).device)
    if config.train.channels_last:
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method


def bare(config: RunConfig) -> RunConfig:
    """The configuration with random weights in every network: time and size are the same."""
    result = config.model_copy(deep=True)
    for encoder in _encoders(result):
        encoder.weights = "none"
    return result


def _encoders(config: RunConfig) -> list[EncoderConfig]:
    """Settings of every encoder in the configuration, those of the method's own networks included."""
    parts: list[BaseModel] = [config.encoder, config.method]
    for part in parts:  # grows
        parts += [value for _, value in part if isinstance(value, BaseModel)]
    return [part for part in parts if isinstance(part, EncoderConfig)]


def disk(job: Job, found: Mapping[str, Any]) -> int:
    """Bytes that a row writes at most, with the checkpoints that go when it is done."""
    folder, config = RunFolder(job.folder), bare(job.config)
    if config.stages is not None:
        return sum(row["bytes"] for row in disk_plan(config, folder, found))
    size = network_row(job.row.name, config, folder.path, len(found["classes"]))["bytes"]
    if job.row.label and found["sizes"]:
        images = found["splits"].get("train", {}).get("labelled", found["counts"]["labelled"])
        size += images * (found["sizes"]["pixels"] + found["sizes"]["height"]["max"] + PNG_EXTRA)
    return size


def with_settings(config: RunConfig, settings: Sequence[str]) -> RunConfig:
    """The configuration with settings of label and evaluate changed."""
    return load_config(config.model_dump(mode="json"), overrides=settings)
