"""``tagmask report``: one HTML page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagmask.cli import common
from tagmask.errors import ConfigError


@common.app.command(epilog="Example: `tagmask report runs/first`")
def report(
    run: common.RunPath,
    overrides: common.Overrides = None,
    split: Annotated[str | None, typer.Option(help="whose photos to show; default: train")] = None,
    photos: Annotated[
        int | None, typer.Option(help="how many photos to show, and some whose masks lack a class; default: 16")
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="instead of the page, write the viewer with all photos there, as files"),
    ] = None,
    json: common.Json = False,
) -> None:
    """Write RUN/report.html: pictures, curves, scores, configuration; one file that needs nothing else."""
    from tagmask import workflow
    from tagmask.workflow.report import PHOTOS

    if site is not None:
        if split is not None or photos is not None:
            raise ConfigError("--site writes all photos: leave --split and --photos away.")
        from tagmask.view.site import write_site

        path = write_site(workflow.opened(run, overrides or ()), site, None if json else common.screen())
    else:
        path = workflow.report(run, split, PHOTOS if photos is None else photos, overrides or ())
    if json:
        common.print_json({"report": str(path)})
    else:
        common.say(f"report: {path}")
