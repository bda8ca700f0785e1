"""The steps of a run, one after the other, with the minutes that are left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn

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

    expected: minutes of the steps, as ``expected_minutes`` has them; ``console`` then shows how much is left of all, by
    how long the steps before took: in a bar, or on a line a step where a terminal cannot redraw. An error says what is
    done and how to go on (``again``): what earlier steps made is kept.
    """
    results: dict[str, Any] = {}
    minutes: dict[str, float] = {}
    with _shown(expected, console) as show:
        for number, (name, step) in enumerate(steps.items(), start=1):
            began = time.perf_counter()
            show(f"[{number}/{len(steps)}] {name}", name, minutes, list(steps)[number - 1 :])
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


Show = Callable[[str, str, Mapping[str, float], Sequence[str]], None]
"""Takes a title, the step that begins, the minutes of those before, and the names of what is left."""


@contextmanager
def _shown(expected: Mapping[str, float], console: Console | None) -> Iterator[Show]:
    if console is None or not expected:
        yield lambda *_: None
    elif console.is_terminal and not console.is_dumb_terminal:
        with Overall(expected, console) as bar:
            yield bar.begin
    else:
        yield lambda title, name, spent, names: console.print(
            f"{title}: about {minutes_left(expected, spent, names):.0f} minutes left", markup=False
        )


class Overall(Progress):
    """One bar over all steps, above that of the step at work. It goes on with the clock while a step runs."""

    def __init__(self, expected: Mapping[str, float], console: Console) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[left]}"))
        self.expected, self.left, self.later = expected, sum(expected.values()), 0.0
        self.before = self.longest = 0.0
        self.began = time.perf_counter()
        super().__init__(*columns, console=console, transient=True)
        self.whole = self.add_task("", total=self.left, left="")

    def begin(self, title: str, name: str, spent: Mapping[str, float], names: Sequence[str]) -> None:
        """A step begins: what ``Show`` takes."""
        self.left = minutes_left(self.expected, spent, names)
        self.later = minutes_left(self.expected, spent, names[1:])
        self.before = sum(self.expected.get(done, 0.0) for done in spent)
        self.longest, self.began = self.expected.get(name, 0.0), time.perf_counter()
        self.update(self.whole, description=title, refresh=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        gone = (time.perf_counter() - self.began) / 60
        for task in self.tasks:
            left = f"about {max(self.later, self.left - gone):.0f} minutes left"
            self.update(task.id, completed=self.before + min(gone, self.longest), left=left)
        return super().get_renderables()


def minutes_left(expected: Mapping[str, float], spent: Mapping[str, float], names: Sequence[str]) -> float:
    """Expected minutes of the steps ``names``, times how much longer than expected those before took.

    A fifth of the whole counts as having gone as expected, so that one short step does not decide.
    """
    known = sum(expected.values()) / 5
    before = sum(expected.get(name, 0.0) for name in spent)
    took = sum(spent[name] for name in spent if name in expected)
    factor = (took + known) / (before + known) if known else 1.0
    return factor * sum(expected.get(name, 0.0) for name in names)
