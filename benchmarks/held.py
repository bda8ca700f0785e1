"""How many bytes a photo the data holds in memory, for a million photos in shards, by default.

    python benchmarks/held.py --photos 100000 1000000

The photos are simulated: shards of 10,000 samples whose indexes are made up, so that nothing is written or decoded. All
that follows is the package's own: ids, tags, splits, the digest, an epoch's order. Each number is measured in a process
of its own: resident memory over that of the imports, when the data is open, at its largest, and as a worker of the
loader receives the items. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import pickle
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

A_SHARD = 10_000
CLASSES = 20


def made_up(place: str) -> dict[str, Any]:
    """The index of a shard that is not there: photos of about 100 kB with one to three tags."""
    number = int(Path(place).stem)
    samples = []
    for i in range(A_SHARD):
        key = number * A_SHARD + i
        tags = [f"class {(key * 7 + j * 3) % CLASSES}" for j in range(1 + key % 3)]
        samples.append([f"{key:09d}.jpg", 1536 + i * 102_400, 98_000 + key % 4000, {"json": {"tags": tags}}, None])
    return {"samples": samples, "lost": [], "notes": []}


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def held(photos: int) -> dict[str, float]:
    """Bytes a photo: open, at the peak of opening, pickled for a worker, of an epoch's order; and seconds to open."""
    from tagmask.config import DataConfig
    from tagmask.data import open_data
    from tagmask.data.collection import hash_items
    from tagmask.data.loader import epoch_order

    with tempfile.TemporaryDirectory() as folder, patch("tagmask.data.source_shards.read_index", made_up):
        for i in range(photos // A_SHARD):
            Path(folder, f"{i:05d}.tar").touch()
        before, began = resident(), time.perf_counter()
        collection = open_data(DataConfig(root=Path(folder)))
        seconds = time.perf_counter() - began
        hash_items(collection.classes, collection.items)
        after = resident() - before
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        assert len(collection.items) == photos
        worker = len(pickle.dumps(collection.items[:A_SHARD])) * photos / A_SHARD
        order = epoch_order(photos, 0, 0)
        found = {"open": after, "peak": peak, "pickled": worker, "order": order.numel() * order.element_size()}
    return {name: size / photos for name, size in found.items()} | {"seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[1_000_000], help=f"multiples of {A_SHARD}")
    args = parser.parse_args()
    print("| photos | bytes a photo, open | at the peak | pickled | an epoch's order | opened in |")
    print("|---|---|---|---|---|---|")
    for photos in args.photos:
        if photos % A_SHARD:
            parser.error(f"--photos {photos}: no multiple of {A_SHARD}")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(held, photos).result()
        numbers = " | ".join(f"{found[name]:.0f}" for name in ("open", "peak", "pickled", "order"))
        print(f"| {photos:,} | {numbers} | {found['seconds']:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
