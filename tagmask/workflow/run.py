"""``tagmask run`` and ``demo``: check → train → masks and scores → report, with a plan shown first."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tagmask import comm
from tagmask.config import RunConfig, TrainConfig, load_config, merge, parse_overrides, read_yaml
from tagmask.data import print_fingerprint
from tagmask.errors import ConfigError, TrainingError
from tagmask.evaluate import print_scores
from tagmask.evaluate.scores import percent
from tagmask.files import read_record, write_json
from tagmask.label import Labelled, LabelWriter, describe_missing
from tagmask.label.look import Ahead, MaskPass
from tagmask.label.ray_engine import check_engine
from tagmask.label.share import help_out, led
from tagmask.lock import alone
from tagmask.registry import METHODS
from tagmask.training import RunFolder
from tagmask.workflow.card import write_card
from tagmask.workflow.disk import disk_plan, print_disk_plan
from tagmask.workflow.evaluate import evaluate, print_classification
from tagmask.workflow.label import own_masks
from tagmask.workflow.matching import match
from tagmask.workflow.opened import Run, default_device
from tagmask.workflow.plan import ROUNDS, Choice, Effort, as_mapping, choose, masks_teach
from tagmask.workflow.predict import predict
from tagmask.workflow.quality import print_estimates
from tagmask.workflow.report import report
from tagmask.workflow.scoring import Scoring
from tagmask.workflow.stages import Stages, written
from tagmask.workflow.steps import Steps, work
from tagmask.workflow.suspects import print_suspects, suspects_of
from tagmask.workflow.timing import expected_minutes
from tagmask.workflow.train import check_free, resumed, train
from tagmask.workflow.verdict import verdict

WORTH_TIMING = 40
"""Steps of the longest training from which on the minutes of a run are measured beforehand."""


def run(
    configs: Sequence[str | Path | Mapping[str, Any]],
    values: Mapping[str, Any],
    overrides: Sequence[str],
    out: str | Path,
    resume: bool = False,
    dry_run: bool = False,
    console: Console | None = None,
    effort: Effort | None = None,
) -> dict[str, Any]:
    """From photos and tags to masks, a segmenter, scores where there are true masks, and a report, in ``out``.

    configs, values, overrides: as in ``load_config``; what they leave open is chosen from the data and the machine.
    Returns a JSON-able summary: plan, minutes of each step, scores, files. console: where progress is printed.
    effort: how much the plan does; default: 'standard', or 'quick' where method or stages are named, for several
        devices, and where the true masks teach (``data.tags_from``).
    dry_run: build the networks with their weights, so that what is missing or does not fit is said, and stop there.
    """
    place = Path(out)

    def lead(over: bool) -> dict[str, Any]:
        begun = over and RunFolder(place).config_file.is_file()
        return _run(configs, values, overrides, place, resume or over, dry_run, console, None if begun else effort)

    if dry_run:
        return lead(False)
    sources = [c if isinstance(c, Mapping) else read_yaml(c) for c in configs]
    given: dict[str, Any] = reduce(merge, [*sources, values, parse_overrides(overrides)], {})
    saved = RunFolder(place).config().train if resume and RunFolder(place).config_file.is_file() else TrainConfig()
    train = saved.model_dump() | (given.get("train") or {})
    if train["devices"] == 1 and train["nodes"] == 1:
        return led(place, {"verb": "run", "given": given, "effort": effort}, lead)
    with alone(place):  # the first process holds it for all that train together, and leads after the training
        result = lead(False)
    if comm.rank() > 0 and not help_out(place)[0]:
        raise TrainingError(
            f"{place}: the first process was killed after the training; go on with tagmask run --resume -o {place}."
        )
    return result


def _run(
    configs: Sequence[str | Path | Mapping[str, Any]],
    values: Mapping[str, Any],
    overrides: Sequence[str],
    out: Path,
    resume: bool,
    dry_run: bool,
    console: Console | None,
    effort: Effort | None,
) -> dict[str, Any]:
    began = time.perf_counter()
    opening = Run(out)
    folder = opening.folder
    if not dry_run:
        check_free(folder, resume)
    going_on = resume and opening.begun
    if going_on:
        opening.config = resumed(folder, configs, values, overrides)
    else:
        opening.config = load_config(*configs, values, overrides=overrides)
    check_engine(opening.config.engine)
    opening.begin(resume=going_on, save=not dry_run)
    opening.config, choices = _planned(opening, going_on, configs, values, overrides, effort, console)
    if console is not None:
        _print_check(opening, console)
        _print_plan(opening.config, choices, console)
    stages = Stages(opening)
    disk = disk_plan(opening, stages, stages.networks())
    if disk and console is not None:
        print_disk_plan(disk, console)
    longest = max(part.train.steps for part in (opening.config, *stages.configs.values()))
    expected = expected_minutes(opening, stages) if longest >= WORTH_TIMING else {}
    if expected and console is not None:
        parts = ", ".join(f"{name} {minutes:.1f}" for name, minutes in expected.items() if minutes)
        total = f"About {sum(expected.values()):.0f} minutes on this machine, as it is now ({parts})."
        console.print(total, highlight=False, soft_wrap=True)
    if dry_run:
        plan = {c.key: c.value for c in choices}
        config = opening.config.model_dump(mode="json")
        return {"plan": plan, "stages": disk, "expected_minutes": expected, "config": config}
    checked = round((time.perf_counter() - began) / 60, 3)
    again = f"tagmask run --resume -o {shlex.quote(str(folder.path))}"
    steps = _all_steps(opening, stages, not resume, console)
    results, minutes = work(opening, steps, again, expected, console)
    if comm.rank() > 0:  # of several processes, the first one does the rest
        return {"run": str(out)}
    write_card(opening)
    summary = _summary(opening, stages, results, {"check": checked, **minutes}, expected)
    write_json(folder.path / "minutes.json", summary["minutes"])
    if console is not None:
        _print_summary(summary, console)
    return summary


def training_steps(
    run: Run, stages: Stages, console: Console | None, write: Callable[[LabelWriter], None] | None = None
) -> Steps:
    """The steps that train and write label files: of a run without stages only 'train'.

    write: what takes the training photos to the writer of stage 'masks'; default: a pass over them.
    """

    def masks() -> dict[str, Any]:
        if write is None:
            return stages.masks(console)
        writer = stages.mask_writer()
        write(writer)
        return written(writer.finish(), console)

    steps: Steps = {
        "train": lambda: train(run, resume=True, console=console),
        "cams": lambda: stages.seeds(console),
        "affinity": lambda: stages.train("affinity", console),
        "masks": masks,
    }
    named = run.config.stages.named() if run.config.stages is not None else []
    steps = {name: step for name, step in steps.items() if name == "train" or name in named}
    if "rounds" in named:
        for number in range(1, len(stages.segmenters) + 1):
            steps[f"round {number}"] = partial(stages.round, number, console)
        steps["final masks"] = lambda: written(stages.final_masks(console), console)
    elif "segmenter" in named:
        steps["segmenter"] = lambda: stages.train("segmenter", console)
    return steps


def _all_steps(run: Run, stages: Stages, overwrite: bool, console: Console | None) -> Steps:
    """All that ``run`` does after its check."""
    scoring = Scoring(run, stages, console)
    by_ray = run.config.engine.name == "ray"  # then photos are looked at once more to be scored

    def label_all() -> dict[str, Any]:
        writer = own_masks(run, overwrite)
        if by_ray:
            ahead: Ahead = "logits" if run.inference.source == "segmenter" else "cams"
            MaskPass(run.inference, writer, "masks", ahead, console=console).make("masks", {})
        else:
            scoring.score_with(writer)
        return writer.finish().summary()

    def score_all() -> list[dict[str, Any]]:
        scoring.score(["val", "train", "test"])
        if rounds:
            for split in [s for s in scoring.masked if s != "test"]:
                scoring.scores += evaluate(run, split, ["masks"], console=console)
        if stages.last is not run:
            for split in [s for s in scoring.scored if s != "train"]:
                scoring.scores += evaluate(stages.last, split, console=console)
            scoring.quality.look_at(scoring.scored, console)
        scoring.quality.finish()
        return scoring.scores

    def report_all() -> str:
        if stages.last is not run:
            report(stages.last)
        return str(report(run, gallery=scoring.gallery))

    steps: Steps = {"suspects": lambda: suspects_of(run, console)}
    steps |= training_steps(run, stages, console, None if by_ray else scoring.score_with)
    rounds = run.config.stages is not None and run.config.stages.rounds is not None
    if run.config.stages is None:
        steps["masks"] = label_all
    steps["evaluate"] = score_all
    steps["predict"] = lambda: _predict_untagged(run, stages.last, overwrite, console)
    steps["report"] = report_all
    return steps


def _planned(
    run: Run,
    going_on: bool,
    configs: Sequence[str | Path | Mapping[str, Any]],
    values: Mapping[str, Any],
    overrides: Sequence[str],
    effort: Effort | None,
    console: Console | None,
) -> tuple[RunConfig, list[Choice]]:
    """The configuration with what the plan chooses, and the choices. A run that is resumed stays as it is, but for
    stages that are new to it."""
    base = run.config
    sources = [c if isinstance(c, Mapping) else read_yaml(c) for c in configs]
    given: dict[str, Any] = reduce(merge, [*sources, values, parse_overrides(overrides)], {})
    if going_on:
        if effort is not None:
            raise ConfigError(f"{run.folder.path}: how much is done was decided when it began; leave --effort away.")
        if base.stages is None or run.folder.config().stages is not None:
            return base, []
        given = base.model_dump(mode="json", exclude={"stages"}) | {"stages": given["stages"]}
        if METHODS.get(base.method.name).reads_classes:
            raise ConfigError(
                f"{run.folder.path}: method '{base.method.name}' trained nothing that stages could go on from. Begin a "
                "run with these stages in another folder (--out); its first masks take minutes."
            )
    chosen = "stages" in given or "name" in (given.get("method") or {}) or masks_teach(run.fingerprint, given)
    alone = base.train.devices == 1 and base.train.nodes == 1  # as stages run
    effort = effort or ("quick" if chosen or not alone else "standard")
    matched = None
    free = base.plan and alone and not chosen and not given.get("method")
    if free and effort in ROUNDS and base.encoder.weights != "none":
        matched = match(base, run.collection, given.get("encoder") or {}, console)
    choices = choose(run.fingerprint, default_device(base), given, base, effort, matched)
    if not choices:
        return base, []
    # The method's name first: settings of a method go when another one's name comes over them.
    named = {"method": {"name": base.method.name}}
    return load_config(named, as_mapping(choices), given), choices


def _predict_untagged(run: Run, last: Run, overwrite: bool, console: Console | None) -> dict[str, Any] | None:
    """Masks in the run's predictions/ of photos without tags, by the segmenter of ``last``; None where one lacks."""
    untagged = [item for item in run.collection.split("all") if item.tags is None]
    if not untagged or not METHODS.get(last.config.method.name).has_segmenter:
        return None
    place = run.folder.path / "predictions"
    note = place / "classes.json"
    if note.is_file() and read_record(note)["model"] != last.model_note["digest"]:
        overwrite = True  # of another segmenter: one that was trained again, or the classifier's own
    return predict(last, untagged, place, overwrite=overwrite, console=console).summary()


def _summary(
    run: Run, stages: Stages, results: dict[str, Any], minutes: dict[str, float], expected: dict[str, float]
) -> dict[str, Any]:
    """What ``run`` returns: files, scores, what each step gave."""
    own = ("suspects", "train", "evaluate", "predict", "report")
    return {
        "run": str(run.folder.path),
        "verdict": verdict(run),
        "minutes": minutes,
        "expected_minutes": expected,
        "data_share": results["train"].data_share,
        "stages": {name: made for name, made in results.items() if name not in own} if run.config.stages else {},
        "masks": results.get("final masks", results.get("masks", Labelled(run.folder.masks).summary())),
        "predictions": results["predict"],
        "scores": results["evaluate"],
        "classification": run.folder.metrics().get("classification"),
        "quality": run.folder.metrics().get("quality"),
        "suspects": results["suspects"],
        "report": results["report"],
        "model": str(stages.last.folder.model),
    }


def demo(out: str | Path, overrides: Sequence[str] = (), console: Console | None = None) -> dict[str, Any]:
    """``run`` on drawn scenes (configuration 'demo'), then a table of masks against truth. A finished run is shown."""
    opening = Run(out)
    resume = opening.begun
    if resume and console is not None:
        console.print(f"{out} is there already and is shown again; delete it to start over.", style="yellow")
    data = {"data": {"root": str(opening.folder.path / "scenes")}}
    result = run(["demo"], data, overrides, out, resume=resume, console=console, effort=None if resume else "quick")
    wanted = [
        ("plain CAM", "tags", "cam", "train"),
        ("CAM refined by colours", "tags", "refined", "train"),
        ("masks as delivered", "tags", "masks", "train"),
        ("segmenter, unseen scenes", "no tags", "segmenter", "test"),
    ]
    found = {(s["name"], s["stamp"]["split"]): s for s in result["scores"]}
    table = Table("masks", "at test", "mIoU", title="Learned from tags alone, compared with the true masks")
    rows = []
    for title, used, name, split in [row for row in wanted if (row[2], row[3]) in found]:
        miou = found[name, split]["miou"]
        rows.append({"masks": title, "at test": used, "split": split, "miou": miou})
        table.add_row(title, used, percent(miou))
    if console is not None:
        console.print(table)
    return {**result, "table": rows}


def _print_summary(summary: dict[str, Any], console: Console) -> None:
    if summary["verdict"] and summary["verdict"]["text"]:
        console.print(summary["verdict"]["text"], style="bold red", markup=False, highlight=False, soft_wrap=True)
    if summary["scores"]:
        print_scores(summary["scores"], console)
    print_classification(summary["classification"], console)
    print_estimates(summary["quality"], console)
    print_suspects(summary["suspects"], console)
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


def _print_check(run: Run, console: Console) -> None:
    found = run.fingerprint
    print_fingerprint(found, console)
    came = len(run.collection.items) - found["counts"]["images"] + found["counts"]["unreadable"]
    if came > 0:
        text = f"{came} photos came after this run began: they train nothing and get no masks from tags."
        console.print(text, style="yellow")


def _print_plan(config: RunConfig, choices: list[Choice], console: Console) -> None:
    if not choices and config.plan:
        return
    title = "Plan, as settings that you may set otherwise:" if choices else "Nothing is planned (plan: false)."
    console.print(title, highlight=False)
    settings = [f"{choice.key}={json.dumps(choice.value)}" for choice in choices]
    column = max(map(len, settings), default=0)
    for setting, choice in zip(settings, choices):
        console.print(Text(f"  {setting:<{column}}  ").append(choice.why, "dim"), soft_wrap=True)
    console.print(
        f"{config.method.name} on {config.encoder.name}, {config.train.steps} steps of {config.train.batch_size} "
        f"photos at {config.views.crop} px, {config.train.precision}, seed {config.seed}.",
        highlight=False,
    )
