"""The steps of a run, one after the other, with the minutes that are left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rich.console import Console

from tagmask import comm
from tagmask.errors import Stopped, TagmaskError
from tagmask.workflow.opened import Run

Steps = dict[str, Callable[[], Any]]
"""What is done one after the other, by name."""


def work(
    run: Run,
    steps: Steps,
    again: str,
    expected: Mapping[str, float] = MappingProxyType({}),
    console: Console | None = None,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Do the steps one after the other. Returns what each gave, and its minutes, by name.

    expected: minutes of the steps, as ``expected_minutes`` has them; ``console`` then says before each step how much is
    left of all, by how long those before took. An error says what is done and how to go on (``again``): what earlier
    steps made is kept.
    """
    results: dict[str, Any] = {}
    minutes: dict[str, float] = {}
    for number, (name, step) in enumerate(steps.items(), start=1):
        began = time.perf_counter()
        if console is not None and expected:
            left = minutes_left(expected, minutes, list(steps)[number - 1 :])
            console.print(
                f"[{number}/{len(steps)}] {name}: about {left:.0f} minutes left", markup=False, highlight=False
            )
        try:
            results[name] = step()
        except Stopped as stop:
            stop.again = again
            if run.trained:
                stop.kept = f"Done and kept: {', '.join(results) or 'the training'}. {stop.kept}"
            raise
        except Exception as error:
            if not run.trained:
                raise
            way = (
                f"'{name}' was not finished. Done and kept: {', '.join(results) or 'the training'}; the model is "
                f"in {run.folder.model}. Once this is mended: {again}"
            )
            if isinstance(error, TagmaskError):
                raise type(error)(f"{error}\n{way}") from error
            print(way, file=sys.stderr)
            raise
        minutes[name] = round((time.perf_counter() - began) / 60, 3)
        if comm.rank() > 0:
            break
    return results, minutes


def minutes_left(expected: Mapping[str, float], spent: Mapping[str, float], names: Sequence[str]) -> float:
    """Expected minutes of the steps ``names``, times how much longer than expected those before took.

    A fifth of the whole counts as having gone as expected, so that one short step does not decide.
    """
    known = sum(expected.values()) / 5
    before = sum(expected.get(name, 0.0) for name in spent)
    took = sum(spent[name] for name in spent if name in expected)
    factor = (took + known) / (before + known) if known else 1.0
    return factor * sum(expected.get(name, 0.0) for name in names)
