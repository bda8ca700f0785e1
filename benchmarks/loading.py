"""How fast the training loader is, and how long a training step would wait for it.

    python benchmarks/loading.py --root DATA --crop 224 --batch 16 --workers 2 --step-time 0.7

Without --root the demo scenes are used. With --step-time the loop sleeps that many seconds after each batch, in the
place of a training step, and the share of time spent waiting for data is printed. A sleep leaves the processor free:
the share is that of a step which runs on an accelerator.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from tagmask.config import DataConfig, ViewConfig
from tagmask.data import TrainLoader, TrainViews, open_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a data set; default: the demo scenes")
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--views", default="", help="further views, by comma: strong,local")
    parser.add_argument("--step-time", type=float, default=0.0, help="seconds that a training step takes")
    args = parser.parse_args()

    torch.set_num_threads(1)
    data = DataConfig(root=args.root, source="auto" if args.root else "demo")
    collection = open_data(data)
    config = ViewConfig.model_validate({"crop": args.crop, "local": {"size": min(args.crop, 96)}})
    views = TrainViews(config, frozenset(v for v in args.views.split(",") if v))
    # The first batch pays for starting the workers and is not counted.
    loader = TrainLoader(
        collection.split("train"), len(collection.classes), views, args.batch, args.steps + 1, 0, args.workers
    )
    batches = iter(loader)
    begin = time.perf_counter()
    next(batches)
    first = time.perf_counter() - begin
    waited, begin = 0.0, time.perf_counter()
    for _ in range(args.steps):
        time.sleep(args.step_time)
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
    total = time.perf_counter() - begin
    print(f"{collection.source}, {len(collection.split('train'))} images, crop {args.crop}, batch {args.batch}")
    print(f"workers {args.workers}: first batch after {first:.2f} s")
    print(f"{args.steps * args.batch / total:.1f} images/s over {args.steps} steps")
    if args.step_time:
        print(f"waiting for data: {waited / total:.1%} of a step of {args.step_time:g} s")


if __name__ == "__main__":
    main()
