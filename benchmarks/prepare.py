"""How fast COCO's instance annotations become masks and tags, and how much memory that takes.

    python benchmarks/prepare.py --images 1000 4000 --workers 2

Annotations are generated with COCO's statistics (train2014: 604,907 of 82,783 photos): photos of 640 x 480, 7.3 objects
each in any order in the file, one polygon in five of two parts, about 20 corners a part, sizes as skewed as COCO's (two
in five objects are under 32 x 32 pixels), one object in a hundred a crowd as run lengths. Each size is converted in a
process of its own: all from reading the JSON to the last PNG is timed, and the largest resident memory of the process
and of its workers is what the system says.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEIGHT = 640, 480
OBJECTS = 604_907 / 82_783


def polygon(rng: np.random.Generator, x: float, y: float, radius: float) -> list[float]:
    """An irregular polygon of 12 to 28 corners around a point, inside the photo."""
    corners = int(rng.integers(12, 29))
    angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
    radii = radius * rng.uniform(0.6, 1.2, corners)
    xs = np.clip(x + radii * np.cos(angles), 0, WIDTH - 1).round(2)
    ys = np.clip(y + radii * np.sin(angles), 0, HEIGHT - 1).round(2)
    return np.stack([xs, ys], axis=1).ravel().tolist()


def crowd(rng: np.random.Generator) -> dict[str, Any]:
    """Run lengths of 40 to 400 pieces down the columns, as those of COCO's crowds."""
    ends = np.sort(rng.choice(WIDTH * HEIGHT, int(rng.integers(40, 400)), replace=False))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(np.concatenate([[0], ends, [WIDTH * HEIGHT]])).tolist()}


def write_annotations(path: Path, images: int, seed: int = 0) -> int:
    """``instances_train2014.json`` of generated scenes; returns how many objects it has."""
    from tagmask.data.source_coco import COCO_CATEGORIES

    rng = np.random.default_rng(seed)
    categories = list(COCO_CATEGORIES)
    path.parent.mkdir(parents=True, exist_ok=True)
    owners = rng.permutation(np.repeat(np.arange(1, images + 1), rng.poisson(OBJECTS, images)))
    with path.open("w", encoding="utf-8") as file:
        file.write('{"images": [')
        for i in range(1, images + 1):
            image = {"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "height": HEIGHT, "width": WIDTH}
            file.write((", " if i > 1 else "") + json.dumps(image))
        file.write('], "annotations": [')
        for number, owner in enumerate(owners.tolist()):
            is_crowd = bool(rng.random() < 0.01)
            radius = float(np.exp(rng.normal(3.3, 0.9)))
            x, y = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
            parts = 2 if rng.random() < 0.2 else 1
            shape = crowd(rng) if is_crowd else [polygon(rng, x + 40 * k, y, min(radius, 300)) for k in range(parts)]
            entry = {
                "segmentation": shape, "area": 1.0, "iscrowd": int(is_crowd), "image_id": owner,
                "bbox": [0.0, 0.0, 1.0, 1.0], "category_id": int(rng.choice(categories)), "id": number,
            }  # fmt: skip
            file.write((", " if number else "") + json.dumps(entry))
        named = [{"id": id, "name": name} for id, name in COCO_CATEGORIES.items()]
        file.write(f'], "categories": {json.dumps(named)}}}')
    return len(owners)


def convert(path: Path, workers: int) -> dict[str, float]:
    """Convert in this process and say the seconds and the largest memory, in MB, before and after, and of a worker."""
    from tagmask.convert import coco_masks
    from tagmask.convert.coco import mask_tools

    mask_tools()
    before = peak(resource.RUSAGE_SELF)
    began = time.perf_counter()
    counts = coco_masks(path, workers=workers)
    seconds = time.perf_counter() - began
    own, others = peak(resource.RUSAGE_SELF), peak(resource.RUSAGE_CHILDREN)
    return {**counts, "seconds": seconds, "before": before, "own": own, "worker": others}


def peak(who: int) -> float:
    """Largest resident memory of this process, or of one of its children, so far, MB."""
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 4000], help="photos of each conversion")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")  # a fork would start with the memory of this process
    for images in args.images:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "annotations" / "instances_train2014.json"
            objects = write_annotations(path, images)
            size = path.stat().st_size
            with ProcessPoolExecutor(1, context) as pool:
                found = pool.submit(convert, path, args.workers).result()
            print(
                f"{images} photos, {objects} objects, {size / 1e6:.0f} MB of JSON, {args.workers} workers: "
                f"{images / found['seconds']:.0f} photos/s; largest memory {found['own']:.0f} MB "
                f"(+{found['own'] - found['before']:.0f} over the imports), of a worker {found['worker']:.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
