"""How much disk the stages of a run take at most, shown before they begin."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tagmask.config import RunConfig
from tagmask.methods import Method
from tagmask.workflow.opened import Run
from tagmask.workflow.stages import Stages

PNG_EXTRA = 1200
"""Bytes of a label PNG besides its pixels: palette, header, checksums."""


def disk_plan(run: Run, stages: Stages, networks: Iterable[tuple[str, Method]]) -> list[dict[str, Any]]:
    """Disk that each stage takes at most, as {stage, makes, where, bytes, less}: bytes an image × training images.

    Label PNGs and soft maps are counted uncompressed. A network is counted by its parameters: the model, and one
    checkpoint more than are kept, each with the optimiser's state. A new one is written before the oldest is deleted.
    An image has the mean size of the data set's images. less: settings that lower the bytes; None where there are
    none. networks: names and networks of the run and its stages that are still to be trained.
    """
    config, found = run.config, run.fingerprint
    configs = {"classifier": config, **stages.configs}
    places = {name: run.folder.path / ("" if name == "classifier" else name) for name in configs}
    to_train = {name: network_row(name, configs[name], places[name], method) for name, method in networks}
    if config.stages is None:
        return []
    images = found["splits"].get("train", {}).get("labelled", found["counts"]["labelled"])
    tags = sum(found["tags"].values()) / max(1, found["counts"]["labelled"])
    png, half = bytes_of_maps(config, found)
    rows: list[dict[str, Any]] = []

    def network(name: str) -> None:
        if name in to_train:
            key = "train.keep=1" if name == "classifier" else f"stages.{Path(name).name}.train.keep=1"
            rows.append(to_train[name] | {"less": key if configs[name].train.keep > 1 else None})
        else:
            done = {"makes": "trained already", "where": str(places[name]), "bytes": 0, "less": None}
            rows.append({"stage": name, **done})

    def labels(name: str, folder: str, soft: bool = False, count: int = images) -> None:
        where = run.folder.path / folder
        makes = f"{count} label maps of up to {human(png)}"
        each, less = png, f"stages.{name}.soft=false" if soft else None
        if soft:
            maps = half * (tags if name == "cams" else tags + 1)
            makes += f" and soft maps of up to {human(maps)}"
            each += maps
        rows.append({"stage": name, "makes": makes, "where": str(where), "bytes": round(each * count), "less": less})

    network("classifier")
    if config.stages.cams is not None:
        labels("cams", "seeds", config.stages.cams.soft)
    if config.stages.affinity is not None:
        network("affinity")
    if config.stages.masks is not None:
        labels("masks", stages.first_masks, config.stages.masks.soft)
    for number, name in enumerate(stages.segmenters):
        if number > 0:
            labels(f"round {number + 1}", stages.labels[name])
        network(name)
    if config.stages.rounds is not None:
        held_out = found["splits"].get("val", {}).get("labelled", 0)
        labels("final masks", "masks", count=images + held_out)
    return rows


def bytes_of_maps(config: RunConfig, found: dict[str, Any]) -> tuple[float, float]:
    """Bytes of a mean photo's label PNG, uncompressed, and of one soft map in half precision."""
    sizes = found["sizes"]
    if not sizes:
        return PNG_EXTRA, 0
    width, height = (sizes[side]["median"] for side in ("width", "height"))
    short = config.views.short_side or min(width, height)
    factor = min(1.0, short / max(1, min(width, height)), config.label.max_side / max(1, width, height))
    return sizes["pixels"] + sizes["height"]["max"] + PNG_EXTRA, 2 * sizes["pixels"] * factor**2


def network_row(name: str, config: RunConfig, where: Path, method: Method) -> dict[str, Any]:
    """Disk that a network takes at most in the run folder ``where``, as an entry of ``disk_plan``."""
    method.param_groups(config.train.lr, config.train.head_lr, config.train.freeze_norm)  # says what is trained
    sizes = {key: t.numel() * t.element_size() for key, t in method.state_dict().items()}
    weights = sum(sizes.values())
    model = sum(size for key, size in sizes.items() if key.partition(".")[0] not in method.training_only)
    trained = sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)
    train = config.train
    moments = 2 if train.optimizer == "adamw" else 1 if train.momentum else 0
    checkpoint = weights * (2 if train.ema else 1) + trained * moments
    scored = train.steps // train.evaluate_every if train.evaluate_every else 0  # a checkpoint comes before each score
    written = -(-train.steps // train.checkpoint_every) + scored
    count = min(train.keep + 1, written)
    makes = f"model of {human(model)}, up to {count} checkpoint{'s' if count > 1 else ''} of {human(checkpoint)}"
    return {"stage": name, "makes": makes, "where": str(where), "bytes": model + count * checkpoint}


def print_disk_plan(rows: list[dict[str, Any]], console: Console) -> None:
    """The stages with what they write and how much that is at most; says when the disk has less room."""
    table = Table("stage", "makes", "in", "at most", title="Stages", title_justify="left")
    for row in rows:
        table.add_row(row["stage"], row["makes"], row["where"], human(row["bytes"]))
    console.print(table)
    total = sum(row["bytes"] for row in rows)
    place = next(p for p in (Path(rows[0]["where"]), *Path(rows[0]["where"]).resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    console.print(f"{human(total)} on disk at most; {human(free)} are free.", highlight=False)
    if free < total:
        largest = max(rows, key=lambda row: row["bytes"])
        less = f"set {largest['less']}, or " if largest["less"] else ""
        text = f"That may not fit, and '{largest['stage']}' takes most: {less}write elsewhere (--out)."
        console.print(text, style="yellow", soft_wrap=True)


def human(size: float) -> str:
    """Bytes for people: '1.2 MB' (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
