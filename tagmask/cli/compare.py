"""``tagmask compare``: what several runs make of the same photos, in one picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tagmask.cli import common


@common.app.command(epilog="Example: `tagmask compare runs/first runs/second --what cam --what masks -o both.html`")
def compare(
    words: Annotated[
        list[str],
        typer.Argument(metavar="RUN... [KEY=VALUE]...", help="run folders; settings to override", show_default=False),
    ],
    what: Annotated[
        list[str] | None,
        typer.Option(
            help="cam, refined, masks (all use the tags) or segmenter, as 'tagmask evaluate' calls them; repeatable; "
            "default: masks"
        ),
    ] = None,
    vary: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUES", help="a picture for each value of a setting, as label.cam_scales=[0.5],[1],[2]"
        ),
    ] = None,
    photos: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", help="photos to show, or a file that lists them; repeatable; default: where pictures differ"
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="where to choose photos from; default: test, else val, else train")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="show and score this class alone")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="the file, .png or .html")] = Path("comparison.png"),
    json: common.Json = False,
) -> None:
    """Draw some photos, their truth and what each run makes of them side by side, with the scores of each photo.

    'tagmask view' shows all photos of two runs in a browser; 'tagmask evaluate' scores a whole split.
    """
    from tagmask import workflow

    runs = [word for word in words if "=" not in word or os.path.isdir(word)]
    overrides = [word for word in words if word not in runs]
    result = workflow.compare(runs, out, what or ("masks",), vary, photos or (), split, class_name, overrides)
    if json:
        common.print_json(result)
    else:
        common.say(f"{result['file']}: {result['chosen']}")
