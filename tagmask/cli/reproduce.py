"""``tagmask reproduce``: a table of runs as one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagmask.cli import common


@common.app.command(epilog="Example: `tagmask reproduce msrc14/baseline --data photos --plan`")
def reproduce(
    table: Annotated[str, typer.Argument(help="YAML file, or the name of a packaged table")],
    overrides: common.Overrides = None,
    data: Annotated[Path | None, typer.Option(help="folder of the data")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the runs and of the finished table")] = Path(
        "runs/tables"
    ),
    rows: Annotated[list[str] | None, typer.Option(help="only these rows; repeatable")] = None,
    seeds: Annotated[int | None, typer.Option(help="number of seeds a row, instead of the table's")] = None,
    encoder: Annotated[str | None, typer.Option("--encoder", "-e", help="encoder instead of the table's")] = None,
    budget: Annotated[
        str, typer.Option(help="full: the paper's schedule; small: one planned for your data and machine")
    ] = "full",
    plan: Annotated[bool, typer.Option("--plan", help="show steps, hours and disk, and stop")] = False,
    json: common.Json = False,
) -> None:
    """Run the rows of an ablation table that are not done yet; write it as Markdown and JSON.

    The same command may run several times at once, on one machine or on many that share the output folder: each
    process takes rows that no other is at.
    """
    from tagmask.reproduce import reproduce as run_table

    console = None if json else common.screen()
    result = run_table(table, data, out, overrides or (), rows, seeds, plan, console, encoder, budget)
    if json:
        common.print_json(result)
