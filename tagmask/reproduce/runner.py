"""Runs a table row by row and seed by seed; what is done is not done again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Grid

from tagmask import workflow
from tagmask.config import RunConfig, load_config
from tagmask.data import TrainLoader, TrainViews
from tagmask.errors import ConfigError, nearest
from tagmask.methods import build_method
from tagmask.registry import METHODS
from tagmask.reproduce.render import render
from tagmask.reproduce.table import Row, Table, read_table
from tagmask.training import RunFolder, make_fabric, read_json, write_json, write_text
from tagmask.workflow import resumed


def reproduce(
    name: str,
    data: Path | None,
    out: Path,
    overrides: Sequence[str] = (),
    rows: Sequence[str] | None = None,
    seeds: int | None = None,
    plan: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run a table (path or packaged name) on ``data`` into ``out``/<table>; write table.md and table.json there.

    overrides: settings over every row's. rows: names of the rows to run. seeds: number of seeds a row. plan: only
    say what it would cost. A run that was cut off is resumed; one that is finished is read. Raises ConfigError when
    a finished run has another configuration.
    """
    table = read_table(name)
    known = [row.name for row in table.rows]
    for wanted in rows or ():
        if wanted not in known:
            raise ConfigError(f"{name}: there is no row '{wanted}'.{nearest(wanted, known)}")
    chosen = [row for row in table.rows if not rows or row.name in rows]
    home = out / Path(name).with_suffix("").name if Path(name).is_file() else out / name
    jobs = [
        Job(row, seed, home, configure(table, row, seed, data, home, overrides))
        for row in chosen
        for seed in table.seeds_of(row, seeds)
    ]
    if not jobs:
        raise ConfigError(f"{name}: there is nothing to run; --seeds is the number of seeds, one at least.")
    if plan:
        return show_plan(table, jobs, console)
    for number, job in enumerate(jobs):
        if console is not None:
            state = "done" if job.done() else "running"
            console.print(f"[{number + 1}/{len(jobs)}] {job.row.name}, seed {job.seed}: {state}", highlight=False)
        if not job.done():
            job.run(table, console)
        summary = render(table, finished(table, home))
        home.mkdir(parents=True, exist_ok=True)
        write_json(home / "table.json", summary)
        write_text(home / "table.md", summary["markdown"])
    if console is not None:
        console.print(summary["markdown"], markup=False, highlight=False, soft_wrap=True)
        console.print(f"table: {home / 'table.md'}", highlight=False)
    return summary


class Job:
    """One row with one seed: a run folder and, when finished, its result.json."""

    def __init__(self, row: Row, seed: int, home: Path, config: RunConfig) -> None:
        self.row = row
        self.seed = seed
        self.config = config
        self.folder = run_path(home, row.name, seed)

    def done(self) -> bool:
        """Whether the result is there. Raises ConfigError when the folder holds another configuration's run."""
        folder = RunFolder(self.folder)
        if folder.config_file.is_file():
            resumed(folder, [], self.config.model_dump(mode="json"), [])
        return (self.folder / "result.json").is_file()

    def result(self) -> dict[str, Any]:
        """Scores by split and name, with what they cost."""
        return read_json(self.folder / "result.json")

    def run(self, table: Table, console: Console | None) -> None:
        """Train (or resume), label where asked, score every column, write the result."""
        began = time.perf_counter()
        trained = workflow.train(self.config, self.folder, resume=True, console=console)
        if self.row.label:
            workflow.label(self.folder, "train", console=console)
        scores: list[dict[str, Any]] = []
        # val first: the other splits are scored at its threshold, too.
        splits = sorted({c.split for c in table.columns}, key=lambda s: (s != "val", s))
        for split in splits:
            names = list(dict.fromkeys(base_score(c.score) for c in table.columns if c.split == split))
            names = [n for n in names if _can(METHODS.get(self.config.method.name), n, self.row)]
            if names:
                scores += workflow.evaluate(self.folder, split, names, console=console)
        minutes = (time.perf_counter() - began) / 60
        log = RunFolder(self.folder).log()
        steps = [r for r in log if "seconds" in r]
        write_json(
            self.folder / "result.json",
            {
                "scores": scores,
                "minutes": round(minutes, 2),
                "train_minutes": round(trained.seconds / 60, 2),
                "seconds_per_step": steps[-1]["seconds"] / steps[-1]["step"] if steps else None,
                "environment": read_json(RunFolder(self.folder).environment_file),
            },
        )
        shutil.rmtree(RunFolder(self.folder).checkpoints, ignore_errors=True)


def finished(table: Table, home: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Results of all rows and seeds that lie in ``home``, those of earlier calls included."""
    results = {}
    for row in table.rows:
        for path in sorted((home / row.name).glob("seed*/result.json")):
            results[row.name, int(path.parent.name.removeprefix("seed"))] = read_json(path)
    return results


def base_score(name: str) -> str:
    """The name that ``evaluate`` takes for a score: 'cam (val threshold)' is a by-product of 'cam'."""
    return name.partition(" (")[0]


def _can(method: Any, score: str, row: Row) -> bool:
    if score in ("cam", "refined"):
        return method.has_cams
    if score == "masks":
        return row.label
    return method.has_segmenter


def run_path(home: Path, row: str, seed: int) -> Path:
    """Folder of one row's run with one seed."""
    return home / row / f"seed{seed}"


def configure(table: Table, row: Row, seed: int, data: Path | None, home: Path, overrides: Sequence[str]) -> RunConfig:
    """The configuration of one run: the table's, the row's, then the caller's settings."""
    values: dict[str, Any] = {"seed": seed}
    if data is not None:
        values["data"] = {"root": str(data)}
    if row.masks_from is not None:
        values.setdefault("data", {})["train_masks"] = str(run_path(home, row.masks_from, seed) / "masks")
    return load_config(*table.configs, *row.configs, values, overrides=[*table.set, *row.set, *overrides])


def show_plan(table: Table, jobs: list[Job], console: Console | None) -> dict[str, Any]:
    """Steps and hours of what is not done yet, from a finished run of the row or from timing its last step here."""
    known: dict[str, float] = {}
    opened: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    for job in jobs:
        name = job.row.name
        if job.done():
            known[name] = job.result()["seconds_per_step"] or 0.0
        elif name not in known:
            known[name] = time_step(job.config, opened)
        steps = 0 if job.done() else job.config.train.steps
        lines.append(
            {
                "row": name,
                "seed": job.seed,
                "done": job.done(),
                "steps": steps,
                "seconds_per_step": round(known[name], 3),
                "hours": round(steps * known[name] / 3600, 3),
            }
        )
    hours = sum(line["hours"] for line in lines)
    if console is not None:
        grid = Grid("row", "seed", "steps left", "s/step", "hours", title=table.title)
        for line in lines:
            cells = [line[k] for k in ("row", "seed", "steps", "seconds_per_step", "hours")]
            grid.add_row(*map(str, cells[:2]), "done" if line["done"] else str(cells[2]), *map(str, cells[3:]))
        console.print(grid)
        console.print(f"{hours:.2f} hours of training in all; scoring comes on top.", highlight=False)
    return {"title": table.title, "plan": lines, "hours": hours}


def time_step(config: RunConfig, opened: dict[str, Any]) -> float:
    """Seconds of one training step after all warm-ups, forward and backward, measured here; weights are random.

    opened: collections by their settings, filled here: rows share their data.
    """
    key = config.data.model_dump_json(exclude={"train_masks"})
    if key not in opened:
        opened[key] = workflow.prepare(config)[0]
    collection = opened[key]
    bare = config.model_copy(deep=True)
    bare.encoder.weights = "none"
    if config.data.train_masks is not None and not config.data.train_masks.is_dir():
        bare.data.train_masks = None  # made by a row that is not done yet: any mask takes as long
    fabric = make_fabric(bare.train.model_copy(update={"devices": 1, "nodes": 1, "strategy": "auto"}))
    method = build_method(bare, len(collection.classes)).train().to(fabric.device)
    if bare.train.channels_last:
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = TrainLoader(
        workflow.training_items(bare, collection)[0],
        len(collection.classes),
        TrainViews(config.views, method.wanted_views),
        batch_size=config.train.batch_size // config.train.accumulate,
        steps=2,
        seed=config.seed,
        workers=0,
        masks=method.reads_masks,
        colour_map=collection.colour_map,
    )
    seconds = 0.0
    for batch in loader:
        batch = batch.to(fabric.device, torch.Generator(device=fabric.device).manual_seed(0))
        began = time.perf_counter()
        with fabric.autocast():
            losses = method.losses(batch, config.train.steps - 1)
        losses.total.backward()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began  # of the last one: the first warms up
    return seconds * config.train.accumulate
