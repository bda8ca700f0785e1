"""``tagmask run``: from photos and tags to masks, a segmenter and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tagmask.cli import common
from tagmask.cli.train import Resume


@common.app.command(epilog="Example: `tagmask run photos --tags tags.csv -o runs/first`")
def run(
    words: common.Words = None,
    tags: common.Tags = None,
    masks: common.Masks = None,
    method: common.Method = None,
    encoder: common.Encoder = None,
    weights: common.Weights = None,
    seed: common.Seed = None,
    configs: common.Configs = None,
    out: common.Out = Path("runs/latest"),
    resume: Resume = False,
    labels_of: common.LabelsOf = None,
    reviewed: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="this run again, with the tags and masks of its review, and what that gained"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the plan, see that weights and parts fit, and stop")
    ] = False,
    effort: Annotated[
        Literal["quick", "standard", "best"] | None,
        typer.Option(
            help="quick: one training; standard: first masks, then two segmenters, each taught by the one before; "
            "best: three, trained twice as long. Default: standard, or quick where a method, stages or several "
            "devices are set"
        ),
    ] = None,
    engine: common.Engine = None,
    json: common.Json = False,
) -> None:
    """Check, train, label, evaluate and report in one go. What is not set is chosen from the data and the machine."""
    from tagmask import workflow

    values, overrides = common.settings(words, tags, masks, method, encoder, weights, seed)
    overrides = common.with_engine(overrides, engine)
    console = None if json else common.screen()
    taught = [workflow.labels_of(labels_of, not dry_run, console)] if labels_of else []
    if reviewed is not None:
        taught.append(workflow.reviewed_settings(reviewed, out, resume, keep=not dry_run))
    result = workflow.run([*taught, *(configs or [])], values, overrides, out, resume, dry_run, console, effort)
    if reviewed is not None and not dry_run:
        result["gain"] = workflow.gain(reviewed, out)
        if console is not None:
            workflow.print_gain(result["gain"], reviewed, console)
    if json:
        common.print_json(result)
