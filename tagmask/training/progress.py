"""Progress of a training run: losses, images a second and time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def shown_progress(
    steps: int, start: int, console: Console | None, visible: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives a function that shows a record of the log: in a bar, or on ten lines where a terminal cannot redraw.

    visible: false in all processes but the main one.
    """
    console = console or Console(stderr=True)
    live = visible and console.is_terminal
    columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[losses]}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not live)
    task = bar.add_task("train", total=steps, completed=start, losses="")
    printed = start

    def show(record: dict[str, Any]) -> None:
        nonlocal printed
        step = record["step"]
        printed = min(printed, step)  # it may have begun again
        losses = " ".join(f"{name} {value:.3f}" for name, value in record["losses"].items())
        text = f"{losses}  {record['images_per_second']:.1f} images/s"
        bar.update(task, completed=step, losses=text)
        due = step - printed >= max(1, steps // 10) or step == steps
        if visible and not live and due:
            printed = step
            left = (steps - step) * record["seconds"] / step
            console.print(f"step {step}/{steps}  {text}  {left:.0f} s left", highlight=False)

    with bar:
        yield show
