"""``tagmask label``: masks for tagged photos."""

from __future__ import annotations

from typing import Annotated

import typer

from tagmask.cli import common


@common.app.command(epilog="Example: `tagmask label runs/first --split all`")
def label(
    run: common.RunPath,
    overrides: common.Overrides = None,
    split: Annotated[str, typer.Option(help="train, val, test or all")] = "train",
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="folder or URI of the masks; default: RUN/masks")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="make masks again that are there already")] = False,
    engine: common.Engine = None,
    json: common.Json = False,
) -> None:
    """Write a mask (palette PNG, 255 where unsure) for each photo that has tags; only its tags can appear in it."""
    from tagmask import workflow

    done = workflow.label(run, split, out, overwrite=overwrite, overrides=common.with_engine(overrides, engine))
    report_masks(done.summary(), json)


def report_masks(summary: dict, json: bool) -> None:
    """Print a ``Labelled.summary``; exit with 1 where photos failed."""
    from tagmask.errors import plain
    from tagmask.label import describe_missing

    if json:
        common.print_json(summary)
    else:
        kept = f", {summary['skipped']} were there already" if summary["skipped"] else ""
        untagged = f", {summary['untagged']} without tags left out" if summary["untagged"] else ""
        unsure = f", {summary['unsure_share']:.1%} of the pixels unsure" if summary["unsure_share"] else ""
        common.say(f"{summary['written']} masks in {summary['folder']}{kept}{untagged}{unsure}")
        if lacking := describe_missing(summary):
            common.say(lacking, "yellow")
        for note in summary["notes"]:
            common.say(plain(note), "yellow")
        for failure in summary["failed"]:
            common.say(plain(f"left out: {failure['why']}"), "red")
    if summary["failed"]:
        raise typer.Exit(1)
