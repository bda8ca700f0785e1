"""The command line: one file a verb, each a thin call into the library. Importing a file adds its verb to ``app``."""

from __future__ import annotations

import sys

from rich.console import Console

from tagmask.cli import check, convert, demo, doctor, evaluate, label, methods, predict, report, reproduce, run, train  # noqa: F401
from tagmask.cli.common import app
from tagmask.errors import TagmaskError


def main() -> None:
    """Entry point: errors that users can act on are printed without a traceback, exit status 1."""
    try:
        app()
    except TagmaskError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "stopped; train and run go on from their last checkpoint with --resume", style="yellow"
        )
        sys.exit(130)
