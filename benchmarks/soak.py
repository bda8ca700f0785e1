"""Whether memory and open files stay flat over a long training and over many labelled photos.

    python benchmarks/soak.py --out soak                                  # 10,000 steps, 100,000 photos
    python benchmarks/soak.py --out soak                                  # again: goes on where it was stopped
    python benchmarks/soak.py --out soak --device cuda --batch 16 --workers 4

The photos are noise in tar shards, written once. A small network trains on them, then labels all of them. Meanwhile a
thread looks at this process and its children, all together: memory of their own that is in use (RssAnon), and open
files. All it sees is kept in OUT/soak.jsonl. For each tenth of a phase the median memory and the fewest open files are
printed: a file that is open for a moment is no leak, one that stays open raises the fewest of all tenths that follow.
Exits with 1 where the last tenth has more open files than the fifth one, or more memory by --bound MB. A phase that
goes on after a stop is judged from there. Linux only.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

A_SHARD = 10_000
DIFFERENT = 50
"""Photos that are drawn; all others have the pixels of one of them under a key of their own."""
TENTHS = 10
BEGINNING = 4
"""Tenths that are not judged: data are opened, workers start, and caches fill."""


def write_shards(folder: Path, photos: int, side: int) -> Path:
    """Shards of ``photos`` JPEGs of noise, tagged 'a', 'b' or both. Those that are there stay."""
    import numpy as np
    from PIL import Image

    from tagmask.files import written

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for i in range(DIFFERENT):
        file = io.BytesIO()
        coarse = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side)).save(file, "JPEG")
        drawn.append(file.getvalue())
    for first in range(0, photos, A_SHARD):
        path = folder / f"{first // A_SHARD:05d}.tar"
        if path.is_file():
            continue
        with written(path) as part, tarfile.open(part, "w") as tar:
            for key in range(first, min(first + A_SHARD, photos)):
                tags = json.dumps({"tags": [["a"], ["b"], ["a", "b"]][key % 3]}).encode()
                for name, content in ((f"{key:08d}.jpg", drawn[key % DIFFERENT]), (f"{key:08d}.json", tags)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def processes(top: int) -> list[int]:
    """A process and all that it began."""
    found = [top]
    for pid in found:
        for task in _listed(f"/proc/{pid}/task"):
            try:
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
            except OSError:  # it has ended
                continue
    return found


def look() -> tuple[float, int]:
    """MB of memory of their own and open files, of this process and its children."""
    memory, files = 0, 0
    for pid in processes(os.getpid()):
        files += len(_listed(f"/proc/{pid}/fd"))
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        memory += sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
    return memory / 1024, files


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


class Watch:
    """Looks at the process every ``every`` seconds while it is the context, and keeps what it saw."""

    def __init__(self, phase: str, file: Path, every: float) -> None:
        self.phase, self.file, self.every = phase, file, every
        self.seen: list[tuple[float, int]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        with self.file.open("a", encoding="utf-8") as kept:
            while not self._end.wait(self.every):
                self.seen.append(look())
                memory, files = self.seen[-1]
                line = {"phase": self.phase, "time": time.time(), "memory": round(memory, 1), "files": files}
                kept.write(json.dumps(line) + "\n")
                kept.flush()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._thread.join()

    def tenths(self) -> list[tuple[float, int]]:
        """Median memory, MB, and fewest open files of each tenth; none where too little was seen."""
        step = len(self.seen) // TENTHS
        parts = [self.seen[i * step : (i + 1) * step] for i in range(TENTHS)] if step else []
        return [(median(memory for memory, _ in part), min(files for _, files in part)) for part in parts]


def judge(tenths: Sequence[tuple[float, int]], bound: float) -> list[str]:
    """What has grown from the fifth tenth to the last one."""
    if not tenths:
        return []
    said = []
    (before, fewest), (after, last) = tenths[BEGINNING], tenths[-1]
    if last > fewest:
        said.append(f"open files grow from {fewest} to {last}")
    grown = after - before
    if grown > bound:
        said.append(f"memory grows by {grown:.0f} MB")
    return said


def main(words: Sequence[str] | None = None) -> list[str]:
    """Run both phases and print what was seen; gives what is not flat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of shards, run and what was seen")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=96, help="of a photo, pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--encoder", default="test_resnet")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two looks")
    parser.add_argument("--bound", type=float, default=64.0, help="MB that memory may grow from the fifth tenth on")
    args = parser.parse_args(words)

    from tagmask.config import load_config
    from tagmask.workflow import label, train
    from tagmask.workflow.opened import Run

    shards = write_shards(args.out / "shards", args.photos, args.side)
    config = load_config(
        {
            "data": {"root": str(shards), "val_share": 0},
            "encoder": {"name": args.encoder, "weights": "none"},
            "method": {"name": "baseline", "warmup": 1, "head_options": {"hidden": 8}},
            "train": {
                "accelerator": args.device, "batch_size": args.batch, "steps": args.steps, "workers": args.workers,
                "precision": "fp32", "warmup": 1, "checkpoint_every": max(1, args.steps // 20), "keep": 2,
            },
            "views": {"crop": 64},
            "label": {"cam_scales": [1.0]},
        }
    )  # fmt: skip
    run = Run(args.out / "run", config)
    wrong = []
    for phase in ("train", "label"):
        with Watch(phase, args.out / "soak.jsonl", args.every) as watch:
            if phase == "train":
                train(run, resume=True)
            else:
                done = label(run, "train")
                print(f"label: {done.written} masks written, {done.skipped} were there, {len(done.failed)} failed")
        print(f"| {phase}, tenth | memory, MB | fewest open files |\n|---|---|---|")
        tenths = watch.tenths()
        for i, (memory, files) in enumerate(tenths, 1):
            print(f"| {i} | {memory:.1f} | {files} |")
        wrong += [f"{phase}: {what}" for what in judge(tenths, args.bound)]
    print("; ".join(wrong) or "flat: memory and open files", flush=True)
    return wrong


if __name__ == "__main__":
    raise SystemExit(1 if main() else 0)
