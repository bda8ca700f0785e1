"""``tagmask doctor``: what this installation and machine can do."""

from __future__ import annotations

import typer
from rich.table import Column, Table
from rich.text import Text

from tagmask.cli import common

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@common.app.command(epilog="Example: `tagmask doctor`")
def doctor(json: common.Json = False) -> None:
    """Try versions, devices, threads, disk, memory, weights and extras; train and label for some seconds as a test.

    Says for each problem what to do. Exits with 1 if a check fails; warnings do not count.
    """
    from dataclasses import asdict

    from tagmask.workflow.doctor import doctor as look

    if json:
        checks = look()
        common.print_json([asdict(check) for check in checks])
    else:
        with common.screen().status("Looking, and computing for some seconds"):
            checks = look()
        table = Table("", *(Column(title, overflow="fold") for title in ("check", "found", "what to do")), box=None)
        for check in checks:
            table.add_row(Text(check.state, STYLES[check.state]), *map(Text, (check.name, check.found, check.way)))
        common.screen().print(table)
    raise typer.Exit(any(check.state == "fail" for check in checks))
