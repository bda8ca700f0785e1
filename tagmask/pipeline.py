"""``run`` and ``demo``: check → train → label → evaluate → report, with a plan shown first."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tagmask import workflow
from tagmask.config import RunConfig, load_config, parse_overrides, read_yaml
from tagmask.data import print_fingerprint
from tagmask.evaluate import print_scores
from tagmask.evaluate.scores import percent
from tagmask.plan import Choice, as_mapping, choose
from tagmask.registry import METHODS
from tagmask.training import RunFolder, write_json


def run(
    configs: Sequence[str | Path],
    values: Mapping[str, Any],
    overrides: Sequence[str],
    out: str | Path,
    resume: bool = False,
    dry_run: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """From photos and tags to masks, a segmenter, scores where there are true masks, and a report, in ``out``.

    configs, values, overrides: as in ``load_config``; what they leave open is chosen from the data and the machine.
    Returns a JSON-able summary: plan, minutes of each stage, scores, files. console: where progress is printed.
    """
    folder = RunFolder(out)
    minutes: dict[str, float] = {}
    clock = _Clock(minutes)
    base = load_config(*configs, values, overrides=overrides)
    with clock("check"):
        collection, found = workflow.prepare(base, None if dry_run else folder)
    given = _given(configs, values, overrides)
    choices = [c for c in choose(found, workflow.default_device(base)) if not _is_set(given, c.key)]
    choices = [c for c in choices if _fits(c, given)]
    config = load_config(as_mapping(choices), *configs, values, overrides=overrides)
    if resume and folder.config_file.is_file():
        config = folder.config()
    if console is not None:
        print_fingerprint(found, console)
        _print_plan(config, choices, console)
    if dry_run:
        return {"plan": {c.key: c.value for c in choices}, "config": config.model_dump(mode="json")}
    with clock("train"):
        trained = workflow.train(config, out, resume=resume, prepared=(collection, found), console=console)
    splits = [s for s in ("train", "val") if collection.splits.get(s)] or ["all"]
    with clock("label"):
        labelled = workflow.label(out, "+".join(splits), overwrite=not resume, console=console)
        unlabelled = [item.image for item in collection.split("all") if item.tags is None]
        if unlabelled and callable(getattr(METHODS.get(config.method.name), "segment", None)):
            workflow.predict(out, unlabelled, folder.path / "predictions", overwrite=not resume, console=console)
    scores: list[dict[str, Any]] = []
    with clock("evaluate"):
        # val before the others: it gives the CAM threshold that they are also scored at.
        for split in ("val", "train", "test"):
            if collection.splits.get(split):
                scores += workflow.evaluate(out, split, console=console, need_masks=False)
    with clock("report"):
        page = workflow.report(out)
    write_json(folder.path / "minutes.json", minutes)
    if console is not None:
        if scores:
            print_scores(scores, console)
        spent = ", ".join(f"{name} {value:.1f}" for name, value in minutes.items())
        console.print(f"minutes: {spent}; in all {sum(minutes.values()):.1f}", highlight=False)
        for name, place in [("masks", folder.masks), ("model", folder.model), ("report", page)]:
            console.print(f"{name}: {place}", highlight=False)
    return {
        "run": str(out),
        "minutes": minutes,
        "data_share": trained.data_share,
        "masks": labelled.summary(),
        "scores": scores,
        "classification": folder.metrics().get("classification"),
        "report": str(page),
        "model": str(folder.model),
    }


def demo(out: str | Path, overrides: Sequence[str] = (), console: Console | None = None) -> dict[str, Any]:
    """``run`` on drawn scenes (configuration 'demo'), then a table of masks against truth. A finished run is shown."""
    folder = RunFolder(out)
    resume = folder.config_file.is_file()
    if resume and console is not None:
        console.print(f"{out} is there already and is shown again; delete it to start over.", style="yellow")
    data = {"data": {"root": str(folder.path / "scenes")}}
    result = run(["demo"], data, overrides, out, resume=resume, console=console)
    wanted = [
        ("plain CAM", "tags", "cam", "train"),
        ("CAM refined by colours", "tags", "refined", "train"),
        ("masks as delivered", "tags", "masks", "train"),
        ("segmenter, unseen scenes", "no tags", "segmenter", "test"),
    ]
    found = {(s["name"], s["protocol"]["split"]): s for s in result["scores"]}
    table = Table("masks", "at test", "mIoU", title="Learned from tags alone, compared with the true masks")
    rows = []
    for title, used, name, split in wanted:
        miou = found[name, split]["miou"]
        rows.append({"masks": title, "at test": used, "split": split, "miou": miou})
        table.add_row(title, used, percent(miou))
    if console is not None:
        console.print(table)
    return {**result, "table": rows}


class _Clock:
    """``with clock("train"):`` adds the minutes of a stage."""

    def __init__(self, minutes: dict[str, float]) -> None:
        self.minutes = minutes
        self.name, self.began = "", 0.0

    def __call__(self, name: str) -> _Clock:
        self.name = name
        return self

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.minutes[self.name] = round((time.perf_counter() - self.began) / 60, 3)


def _given(configs: Sequence[str | Path], values: Mapping[str, Any], overrides: Sequence[str]) -> list[Mapping]:
    return [*(read_yaml(c) for c in configs), values, parse_overrides(overrides)]


def _is_set(given: list[Mapping], key: str) -> bool:
    section, name = key.split(".")
    return any(name in (g.get(section) or {}) for g in given)


def _fits(choice: Choice, given: list[Mapping]) -> bool:
    """Settings of the default method do not fit another one that the user names."""
    named = [g["method"]["name"] for g in given if "name" in (g.get("method") or {})]
    return not choice.key.startswith("method.") or named[-1:] in ([], ["baseline"])


def _print_plan(config: RunConfig, choices: list[Choice], console: Console) -> None:
    table = Table("setting", "value", "because", title="Plan", title_justify="left")
    for choice in choices:
        table.add_row(choice.key, str(choice.value), choice.why)
    console.print(table)
    console.print(
        f"{config.method.name} on {config.encoder.name}, {config.train.steps} steps of {config.train.batch_size} "
        f"photos at {config.views.crop} px, {config.train.precision}, seed {config.seed}.",
        highlight=False,
    )
