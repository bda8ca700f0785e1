"""How long the network waits while masks are made: one photo after the other, and with the thread that writes.

    python benchmarks/overlap.py runs/first --split val --set label.crf=afa

Both ways take turns on the same photos. Printed: seconds a photo, and the share in which no network runs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from tagmask.label import LabelWriter, Look, go_over
from tagmask.workflow import Run
from tagmask.workflow.opened import opened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value")
    parser.add_argument("--split", default="val")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    run = opened(Run(given.run).last, given.set)
    items, inference, console = run.collection.split(given.split), run.inference, Console(quiet=True)
    running, busy = inference.running, 0.0

    @contextmanager
    def timed() -> Iterator[None]:
        nonlocal busy
        began = time.perf_counter()
        with running():
            yield
        busy += time.perf_counter() - began

    inference.running = timed  # type: ignore[method-assign]
    found: dict[str | None, list[tuple[float, float]]] = {None: [], "logits": []}
    for _ in range(given.rounds):
        for ahead, kept in found.items():
            with tempfile.TemporaryDirectory() as folder:
                writer = LabelWriter(Path(folder), items, run.collection.classes, {}, made)
                busy, began = 0.0, time.perf_counter()
                go_over(inference, writer.todo, [writer.add], "masks", console, ahead=ahead)
                wall = time.perf_counter() - began
                kept.append((wall / len(items), 1 - busy / wall))
    for ahead, kept in found.items():
        seconds, idle = sorted(kept)[len(kept) // 2]
        way = "with the thread" if ahead else "one by one"
        print(f"{way}: {seconds:.3f} s a photo, the network is idle {idle:.0%} of the time")


def made(item: object, look: Look) -> tuple:
    return *look.prediction, ()


if __name__ == "__main__":
    main()
