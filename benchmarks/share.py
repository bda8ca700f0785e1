"""How much faster several processes label together than one.

    OMP_NUM_THREADS=1 python benchmarks/share.py runs/first --split all --processes 2 --set label.crf=afa

One process and several take turns on the same photos; each has the network loaded before the clock starts. Printed:
seconds a photo, and the ratio of one process's to theirs, with the smallest and the largest of the turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from tagmask.errors import Helped
from tagmask.workflow import Run, label


def work(run: Run, split: str, out: Path, settings: list[str], begin: Any) -> None:
    """Label in this process, together with the others."""
    begin.wait()
    with suppress(Helped):
        label(run, split, out, overrides=settings)


def seconds(run: Run, split: str, settings: list[str], processes: int) -> float:
    """Seconds of one labelling by so many processes."""
    context = multiprocessing.get_context("fork")  # which have the network then
    begin = context.Barrier(processes + 1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "masks"
        workers = [context.Process(target=work, args=(run, split, out, settings, begin)) for _ in range(processes)]
        for worker in workers:
            worker.start()
        begin.wait()
        began = time.perf_counter()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value")
    parser.add_argument("--split", default="all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    run = Run(given.run)
    photos = len(run.collection.split(given.split))
    run.method  # noqa: B018 (loaded before the processes begin)
    run.model_note  # noqa: B018
    found = [
        [seconds(run, given.split, given.set, number) for number in (1, given.processes)] for _ in range(given.turns)
    ]
    ratios = [one / several for one, several in found]
    for number, times in zip((1, given.processes), zip(*found)):
        print(f"{number} processes: {median(times) / photos:.3f} s a photo")
    print(f"{median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}), {photos} photos")


if __name__ == "__main__":
    main()
