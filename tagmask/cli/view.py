"""``tagmask view``: look at a run in a browser, decide about photos, correct tags and masks."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from tagmask.cli import common
from tagmask.errors import ConfigError


@common.app.command(epilog="Example: `tagmask view runs/first`")
def view(
    run: common.RunPath,
    other: Annotated[
        Path | None, typer.Argument(metavar="[OTHER]", help="another run of the same photos, to compare")
    ] = None,
    host: Annotated[
        str, typer.Option(help="address to listen on; 0.0.0.0: other computers may ask, too")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = 0,
    clicks: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="a promptable model (SAM, SAM 2, …) answers clicks: folder or hub name"),
    ] = None,
    browser: Annotated[bool, typer.Option(help="open the page in a browser")] = True,
) -> None:
    """Look at photos and masks, accept and reject them, correct tags and masks. Ends with Ctrl-C.

    Decisions go into review.jsonl in the run's folder; 'tagmask run --reviewed RUN' trains with them.
    """
    try:
        from tagmask.view.server import serve, spread
    except ImportError as error:
        raise ConfigError("'tagmask view' needs more packages: pip install 'tagmask[view]'.") from error
    from tagmask.workflow import Run

    def say(address: str) -> None:
        common.say(f"Open {address}   (Ctrl-C ends)")
        if browser:
            webbrowser.open(address)

    answer = spread
    if clicks is not None:
        from tagmask.guides.promptable import Promptable

        answer = Promptable(clicks).spread
    serve([Run(path) for path in (run, other) if path is not None], host, port, say, answer)
