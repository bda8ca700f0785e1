"""``tagmask analyse``: what a run did, in tables and pictures as papers have them."""

from __future__ import annotations

from typing import Annotated

import typer

from tagmask.cli import common
from tagmask.errors import ConfigError


@common.app.command(epilog="Example: `tagmask analyse runs/first cams --split val`")
def analyse(
    run: common.RunPath,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            show_default=False,
            help="training (scores and figures over the steps), cams (each kind of CAM at every threshold), or what "
            "the method has of its own: confidence, perplexity, regions, affinity, loops",
        ),
    ],
    overrides: common.Overrides = None,
    split: Annotated[str, typer.Option(help="whose photos are looked at: train, val, test or all")] = "val",
    photo: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="a photo whose maps are drawn; repeatable; default: a sample")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="X,Y", help="a place of the photos, pixels, for affinity; default: the middle")
    ] = None,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="at each checkpoint that is kept (train.keep), not at the end")
    ] = False,
    json: common.Json = False,
) -> None:
    """Write RUN/analysis/WHAT.csv and WHAT.png: curves, accuracies and maps. Accuracies need true masks."""
    from tagmask import workflow

    paths = workflow.analyse(run, what, split, photo or (), _place(at), checkpoints, overrides or ())
    if json:
        common.print_json({name: str(path) for name, path in paths.items()})
    else:
        for name, path in paths.items():
            common.say(f"{name}: {path}")


def _place(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--at {text}: two numbers are expected, as in --at 120,80.") from error
    return x, y
