"""Progress bar of a training run: losses, images a second and time left."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainProgress:
    """Context manager around rich's bar; on a terminal that cannot redraw it prints a line now and then."""

    def __init__(self, steps: int, start: int, console: Console | None, visible: bool) -> None:
        self.console = console or Console(stderr=True)
        self.steps = steps
        self.visible = visible
        self.live = visible and self.console.is_terminal
        self.lines = max(1, steps // 10)
        self.printed = start
        self.bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("train", total=steps, completed=start, losses="")

    def __enter__(self) -> TrainProgress:
        self.bar.start()
        return self

    def update(self, step: int, record: dict[str, Any]) -> None:
        """Show the log record of ``step``."""
        losses = " ".join(f"{name} {value:.3f}" for name, value in record["losses"].items())
        text = f"{losses}  {record['images_per_second']:.1f} images/s"
        self.bar.update(self.task, completed=step, losses=text)
        due = step - self.printed >= self.lines or step == self.steps
        if self.visible and not self.live and due:
            self.printed = step
            left = (self.steps - step) * record["seconds"] / max(step, 1)
            self.console.print(f"step {step}/{self.steps}  {text}  {left:.0f} s left", highlight=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
