"""Steps of a run, and what is shown of the minutes left."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import track

from tagmask.workflow.steps import Overall, minutes_left, work

EXPECTED = {"train": 10.0, "masks": 20.0, "report": 10.0}


def test_minutes_left_follow_how_long_the_steps_before_took() -> None:
    assert minutes_left(EXPECTED, {}, ["train", "masks", "report"]) == 40
    # A fifth of the whole, 8 minutes, counts as expected: (30 + 8) / (10 + 8) times as long.
    assert minutes_left(EXPECTED, {"train": 30.0}, ["masks", "report"]) == pytest.approx(30 * 38 / 18)
    assert minutes_left(EXPECTED, {"train": 10.0, "suspects": 99.0}, ["masks"]) == 20, "suspects are not expected"


@pytest.mark.parametrize("terminal", [True, False, "dumb"])
def test_what_is_left_is_shown_beside_a_steps_own_bar(monkeypatch: pytest.MonkeyPatch, terminal: bool | str) -> None:
    monkeypatch.setenv("TERM", "dumb" if terminal == "dumb" else "xterm")
    said = io.StringIO()
    console = Console(file=said, force_terminal=bool(terminal), width=90)

    def masks() -> str:
        for _ in track(range(3), "own bar", console=console, disable=not terminal):
            console.print("said between")
        return "made"

    run: Any = SimpleNamespace(trained=True)
    results, minutes = work(run, {"train": lambda: 1, "masks": masks}, "again", EXPECTED, console)
    assert results == {"train": 1, "masks": "made"} and minutes.keys() == results.keys()
    text = said.getvalue()
    assert text.count("said between") == 3 and ("own bar" in text) == bool(terminal)
    assert "[1/2] train" in text and "[2/2] masks" in text
    assert ("[1/2] train: about 30 minutes left\n" in text) == (terminal is not True)


def test_the_bar_goes_on_with_the_clock_but_not_past_its_step() -> None:
    bar = Overall(EXPECTED, Console(file=io.StringIO()))
    bar.begin("[2/3] masks", "masks", {"train": 10.0}, ["masks", "report"])
    for gone, completed, left in ((0, 10, 30), (5, 15, 25), (50, 30, 10)):
        bar.began -= 60 * gone
        list(bar.get_renderables())
        bar.began += 60 * gone
        (task,) = bar.tasks
        assert task.completed == pytest.approx(completed, abs=0.1) and task.total == 40
        assert task.fields["left"] == f"about {left} minutes left"
