"""``tagmask demo``: the whole path on scenes that tagmask draws itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagmask.cli import common


@common.app.command(epilog="Example: `tagmask demo -o runs/demo`")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="run folder to write")] = Path("runs/demo"),
    overrides: common.Overrides = None,
    json: common.Json = False,
) -> None:
    """Draw scenes, learn from their tags alone, and compare the masks with the truth: a few minutes on two cores."""
    from tagmask import workflow

    result = workflow.demo(out, overrides or (), None if json else common.screen())
    if json:
        common.print_json(result)
