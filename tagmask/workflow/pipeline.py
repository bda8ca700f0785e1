"""``run`` and ``demo``: check → train → label → evaluate → report, with a plan shown first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tagmask import comm
from tagmask.config import RunConfig, load_config, merge, parse_overrides, read_yaml
from tagmask.data import Collection, Item, print_fingerprint
from tagmask.evaluate import print_scores
from tagmask.evaluate.scores import percent
from tagmask.label import Labelled, describe_missing
from tagmask.registry import METHODS
from tagmask.training import RunFolder, Trained, read_json, write_json
from tagmask.workflow.clock import Clock
from tagmask.workflow.plan import Choice, as_mapping, choose
from tagmask.workflow.report_run import report
from tagmask.workflow.runs import default_device, prepare
from tagmask.workflow.score_run import evaluate
from tagmask.workflow.stages import build_networks, disk_plan, print_disk_plan, run_stages, save_stages, saved_stages
from tagmask.workflow.train_run import check_free, resumed, train
from tagmask.workflow.use_run import label, predict


def run(
    configs: Sequence[str | Path | Mapping[str, Any]],
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
    dry_run: build the networks with their weights, so that what is missing or does not fit is said, and stop there.
    """
    folder = RunFolder(out)
    minutes: dict[str, float] = {}
    clock = Clock(minutes)
    if not dry_run:
        check_free(folder, resume)
    going_on = resume and folder.config_file.is_file()
    base = (
        resumed(folder, [*saved_stages(folder), *configs], values, overrides)
        if going_on
        else load_config(*configs, values, overrides=overrides)
    )
    with clock("check"):
        collection, found = prepare(base, None if dry_run and not going_on else folder, resume=going_on)
    sources = [c if isinstance(c, Mapping) else read_yaml(c) for c in configs]
    given: dict[str, Any] = reduce(merge, [*sources, values, parse_overrides(overrides)], {})
    if going_on:
        # All but stages that come to a run without any is as it was.
        new = base.stages is not None and not saved_stages(folder)
        given = base.model_dump(mode="json", exclude={"stages"}) | {"stages": given.get("stages") if new else None}
    choices = [] if going_on and not given["stages"] else choose(found, default_device(base), given)
    # The method's name first: settings of a method go when another one's name comes over them.
    named = {"method": {"name": base.method.name}}
    config = load_config(named, as_mapping(choices), given) if choices else base
    stages = disk_plan(config, folder, found)
    if console is not None:
        print_fingerprint(found, console)
        came = len(collection.items) - found["counts"]["images"] + found["counts"]["unreadable"]
        if came > 0:
            text = f"{came} photos came after this run began: they train nothing and get no masks from tags."
            console.print(text, style="yellow")
        _print_plan(config, choices, console)
        if stages:
            print_disk_plan(stages, console)
    build_networks(config, folder, len(collection.classes))  # weights that are not there, or a method that does not fit
    if dry_run:
        plan = {c.key: c.value for c in choices}
        return {"plan": plan, "stages": stages, "config": config.model_dump(mode="json")}
    save_stages(folder, config)
    alone = config.model_copy(update={"stages": None})  # stages may change after the training, and guard themselves
    with clock("train"):
        trained = train(alone, out, resume=resume, prepared=(collection, found), console=console)
    if comm.rank() > 0:  # of several processes, the first one does the rest
        return {"run": str(out)}
    splits = [s for s in ("train", "val") if collection.splits.get(s)]
    if config.stages is not None:
        return _staged(config, folder, (collection, found), minutes, trained, not resume, console)
    with clock("label"):
        masks = label(out, "+".join(splits), overwrite=not resume, console=console)
        predictions = _predict_untagged(folder, folder, collection, not resume, console)
    scores: list[dict[str, Any]] = []
    with clock("evaluate"):
        scores += _evaluate(folder, collection, console)
    with clock("report"):
        page = report(out)
    write_json(folder.path / "minutes.json", minutes)
    summary = {
        "run": str(out),
        "minutes": minutes,
        "data_share": trained.data_share,
        "masks": masks.summary(),
        "predictions": predictions,
        "scores": scores,
        "classification": folder.metrics().get("classification"),
        "report": str(page),
        "model": str(folder.model),
    }
    if console is not None:
        _print_summary(summary, console)
    return summary


def _predict_untagged(
    folder: RunFolder, model: RunFolder, collection: Collection, overwrite: bool, console: Console | None
) -> dict[str, Any] | None:
    """Masks in the run's predictions/ of photos without tags, by the segmenter of ``model``; None where one lacks."""
    untagged = [item for item in collection.split("all") if item.tags is None]
    if not untagged or not METHODS.get(model.config().method.name).has_segmenter:
        return None
    place = folder.path / "predictions"
    note = place / "classes.json"
    if note.is_file() and read_json(note)["model"] != read_json(model.model / "classes.json")["digest"]:
        overwrite = True  # of another segmenter: one that was trained again, or the classifier's own
    return predict(model.path, untagged, place, overwrite=overwrite, console=console).summary()


def _evaluate(
    folder: RunFolder, collection: Collection, console: Console | None, splits: Sequence[str] = ("val", "train", "test")
) -> list[dict[str, Any]]:
    # val before the others: it gives the CAM threshold that they are also scored at.
    there = [s for s in splits if any(i.tags is not None or i.mask is not None for i in _items(collection, s))]
    return [score for split in there for score in evaluate(folder.path, split, console=console)]


def _staged(
    config: RunConfig,
    folder: RunFolder,
    prepared: tuple[Collection, dict[str, Any]],
    minutes: dict[str, float],
    trained: Trained,
    overwrite: bool,
    console: Console | None,
) -> dict[str, Any]:
    """The rest of a run with stages. The classifier's scores are of CAMs and masks, the segmenter's of its own run."""
    clock, collection = Clock(minutes), prepared[0]
    done = run_stages(config, folder.path, prepared, console, clock)
    runs = [folder, *([RunFolder(done["segmenter"]["run"])] if "segmenter" in done else [])]
    with clock("label"):
        predictions = _predict_untagged(folder, runs[-1], collection, overwrite, console)
    with clock("evaluate"):
        scores = _evaluate(folder, collection, console)
        if "segmenter" in done:
            scores += _evaluate(runs[-1], collection, console, ("val", "test"))
    with clock("report"):
        pages = [report(run.path) for run in runs]
    write_json(folder.path / "minutes.json", minutes)
    nothing = Labelled(folder.masks).summary()
    summary = {
        "run": str(folder.path),
        "minutes": minutes,
        "data_share": trained.data_share,
        "stages": done,
        "masks": done.get("masks", nothing),
        "predictions": predictions,
        "scores": scores,
        "classification": folder.metrics().get("classification"),
        "report": str(pages[-1]),
        "model": str(runs[-1].model),
    }
    if console is not None:
        _print_summary(summary, console)
    return summary


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
    for title, used, name, split in [row for row in wanted if (row[2], row[3]) in found]:
        miou = found[name, split]["miou"]
        rows.append({"masks": title, "at test": used, "split": split, "miou": miou})
        table.add_row(title, used, percent(miou))
    if console is not None:
        console.print(table)
    return {**result, "table": rows}


def _items(collection: Collection, split: str) -> list[Item]:
    return collection.split(split) if collection.splits.get(split) else []


def _print_summary(summary: dict[str, Any], console: Console) -> None:
    if summary["scores"]:
        print_scores(summary["scores"], console)
    print_classification(summary["classification"], console)
    if lacking := describe_missing(summary["masks"]):
        console.print(lacking, style="yellow", markup=False, highlight=False, soft_wrap=True)
    for made in (summary["masks"], summary["predictions"]):
        for failure in made["failed"] if made else ():
            console.print(f"left out: {failure['why']}", style="red", markup=False, highlight=False, soft_wrap=True)
    minutes = summary["minutes"]
    spent = ", ".join(f"{name} {value:.1f}" for name, value in minutes.items())
    console.print(f"minutes: {spent}; in all {sum(minutes.values()):.1f}", highlight=False)
    for name, place in [
        ("masks", summary["masks"]["folder"]),
        ("model", summary["model"]),
        ("report", summary["report"]),
    ]:
        console.print(f"{name}: {place}", markup=False, highlight=False, soft_wrap=True)


def print_classification(found: Mapping[str, Any] | None, console: Console) -> None:
    """One line a split: mean average precision of the classifier against the tags."""
    for split, entry in (found or {}).items():
        if entry["map"] is not None:
            line = f"classifier on {split}: {percent(entry['map'])} % mAP against the tags of {entry['images']} photos"
            console.print(line, highlight=False)


def _print_plan(config: RunConfig, choices: list[Choice], console: Console) -> None:
    if not choices and config.plan:
        return
    table = Table("setting", "value", "because", title="Plan", title_justify="left")
    for choice in choices:
        table.add_row(choice.key, str(choice.value), choice.why)
    console.print(table if choices else "The configuration is complete (plan: false): nothing is planned.")
    console.print(
        f"{config.method.name} on {config.encoder.name}, {config.train.steps} steps of {config.train.batch_size} "
        f"photos at {config.views.crop} px, {config.train.precision}, seed {config.seed}.",
        highlight=False,
    )
