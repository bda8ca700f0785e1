"""Seconds of a training step with OMP_WAIT_POLICY=PASSIVE and without, alone on the machine and beside busy processes.

    python benchmarks/busy.py                                    # ResNet-18, two threads, beside two busy processes
    python benchmarks/busy.py --encoder tf_efficientnet_lite0 --busy 4

Two processes train a network with random weights on noise, one with the policy and one without, by tagmask's own step
(``baseline`` after its warm-up). They take turns, and change who is first: one waits while the other makes its steps. A
busy process multiplies matrices on one thread. Other programs on the machine make the row "alone" a busy one, too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import repeat
from statistics import median

POLICY = "OMP_WAIT_POLICY"
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
BUSY = """
import os, sys, threading
import numpy
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
matrix = numpy.ones((256, 256))
print("begun", flush=True)
while True:
    matrix @ matrix
"""
"""Ends when its input does, and so with the process that started it."""
Seconds = dict[str, list[float]]


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", type=int, default=2, help="busy processes")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of a turn; their median counts")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.serve:
        serve(trainer(args.encoder, args.crop, args.batch))
        return
    command = [sys.executable, __file__, "--serve", "--encoder", args.encoder]
    command += ["--crop", str(args.crop), "--batch", str(args.batch)]
    bare = {key: value for key, value in os.environ.items() if key not in (POLICY, "GOMP_SPINCOUNT")}
    bare |= {f"{name}_NUM_THREADS": str(args.threads) for name in ("OMP", "MKL")}
    with ExitStack() as stack:
        trainers = {
            "with": stack.enter_context(started(command, bare | {POLICY: "PASSIVE"})),
            "without": stack.enter_context(started(command, bare)),
        }
        found: dict[str, Seconds] = {"alone": {}, f"beside {args.busy} busy processes": {}}
        for turn in range(args.turns):
            names = sorted(trainers, reverse=turn % 2 == 1)
            for place, busy in zip(found, (0, args.busy)):
                with ExitStack() as others:
                    for _ in range(busy):
                        others.enter_context(started([sys.executable, "-c", BUSY], bare | ONE_THREAD))
                    for name in names:
                        seconds = ask(trainers[name], args.steps)
                        found[place].setdefault(name, []).append(seconds)
                        print(f"{place}, {name} the policy: {seconds:.2f} s", file=sys.stderr)
    print(table(found))


@contextmanager
def started(command: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A process that has said that it has begun; it is ended by the end of its input."""
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "begun\n":
            raise SystemExit("a process of this benchmark did not begin; its error is above.")
        yield process


def ask(process: subprocess.Popen, steps: int) -> float:
    """Let a trainer make some steps: the median of their seconds."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{steps}\n")
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit("a training process of this benchmark ended; its error is above.")
    return float(answer)


def serve(step: Callable[[], None]) -> None:
    """Make as many steps as each line of the input says, and print the median of their seconds."""
    step()
    print("begun", flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        print(median(seconds), flush=True)


def trainer(encoder: str, crop: int, batch_size: int) -> Callable[[], None]:
    """A function that makes one training step of ``baseline``."""
    import torch

    from tagmask.config import load_config
    from tagmask.methods import build_method
    from tagmask.training import make_fabric
    from tagmask.training.step import TrainStep
    from tagmask.types import Batch

    classes = 5
    config = load_config(
        {
            "encoder": {"name": encoder, "weights": "none"},
            "method": {"name": "baseline", "warmup": 0, "cam_scales": [1.0]},
            "train": {"accelerator": "cpu", "batch_size": batch_size, "precision": "fp32", "warmup": 1},
            "views": {"crop": crop},
        }
    )
    fabric = make_fabric(config.train)
    fabric.launch()
    step = TrainStep(build_method(config, classes), config, fabric)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch_size, 3, crop, crop, generator=generator)
    tags = torch.eye(classes)[torch.arange(batch_size) % classes]
    boxes = torch.tensor([[0, 0, crop, crop]]).repeat(batch_size, 1)
    batches = repeat(Batch(images, tags, boxes, {}, [str(i) for i in range(batch_size)], generator))

    def make() -> None:
        step.run(batches, 1)

    return make


def table(found: dict[str, Seconds]) -> str:
    """Median seconds, and how many times faster steps are with the policy: the median of all turns, and their range."""
    lines = ["| | without | with | times faster |", "|---|---|---|---|"]
    for place, seconds in found.items():
        ratios = sorted(slow / fast for slow, fast in zip(seconds["without"], seconds["with"], strict=True))
        both = " | ".join(f"{median(seconds[name]):.2f} s" for name in ("without", "with"))
        lines.append(f"| {place} | {both} | {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
