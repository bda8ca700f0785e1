"""The command line: one file a verb, each a thin call into the library. Importing a file adds its verb to ``app``."""

from __future__ import annotations

import io
import os
import sys

from rich.console import Console

from tagmask.cli import (  # noqa: F401
    analyse,
    check,
    compare,
    convert,
    demo,
    doctor,
    evaluate,
    export,
    label,
    methods,
    predict,
    push,
    report,
    reproduce,
    review,
    run,
    train,
    view,
)
from tagmask.cli.common import app
from tagmask.errors import Helped, Stopped, TagmaskError, plain
from tagmask.files import of_system
from tagmask.lock import first
from tagmask.stop import at_once, on_signal


def main() -> None:
    """Entry point: errors that users can act on are printed without a traceback, exit status 1."""
    # OpenMP reads it when a verb loads torch. Threads that wait for each other sleep then, where else they spin, which
    # is slow beside other programs. Processes that this one starts inherit it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Several processes look for heads that took no part in a step. torch warns where they find none.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # terminals and pipes that are not UTF-8
    try:
        with on_signal(at_once):
            app()
    except Stopped as stop:
        if not first():  # of several processes, the first one speaks; it is not hurried by another's exit status
            sys.exit(0)
        Console(stderr=True).print(plain(stop), style="yellow", markup=False, highlight=False, soft_wrap=True)
        sys.exit(128 + stop.number)
    except Helped as helped:
        print(plain(helped), file=sys.stderr)
    except TagmaskError as error:
        _say(error)
    except OSError as error:
        _say(of_system(error))
    except UnicodeError as error:
        _say(f"A name or text holds signs that are not UTF-8 ({error}). Rename the file, folder or class.")
    except MemoryError:
        _say("Memory ran out. Close other programs, lower train.batch_size or views.crop, or use smaller photos.")


def _say(error: object) -> None:
    Console(stderr=True).print(f"error: {plain(error)}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)
