"""How much a click of the viewer mends: masks of a run after one, two, three clicks a photo, by their true masks.

    python benchmarks/clicks.py runs/first --split val --clicks 4

Each click is in the middle of the largest fault, with the true class. Photos have a file in masks/ and a true mask.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt, label
from torch import from_numpy

from tagmask.data import read_image, read_mask
from tagmask.evaluate import ConfusionMatrix
from tagmask.view.spread import spread
from tagmask.workflow import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--clicks", type=int, default=4)
    given = parser.parse_args()
    run = Run(given.run)
    collection, classes = run.collection, len(run.collection.classes)
    counts = [ConfusionMatrix(classes + 1) for _ in range(given.clicks + 1)]
    photos, asked, spent = 0, 0, 0.0
    for item in collection.split(given.split):
        path = run.folder.masks / f"{item.id}.png"
        if item.mask is None or not path.is_file():
            continue
        photos += 1
        photo = read_image(item.image).permute(1, 2, 0).numpy()
        truth = read_mask(item.mask, classes, collection.colour_map).numpy()
        made = read_mask(path, classes).numpy()
        now, seeds = made, []
        counts[0].update(from_numpy(now), from_numpy(truth))
        for count in counts[1:]:
            seed = middle_of_the_largest_fault(now, truth)
            if seed is not None:
                seeds.append(seed)
                began = time.process_time()
                now = spread(photo, made, seeds)
                asked, spent = asked + 1, spent + time.process_time() - began
            count.update(from_numpy(now), from_numpy(truth))
    print(f"{photos} photos of {given.split}; {spent / max(asked, 1):.2f} s of processor time a click")
    for clicks, count in enumerate(counts):
        print(f"{clicks} clicks: {100 * count.miou():.1f} mIoU")


def middle_of_the_largest_fault(made: np.ndarray, truth: np.ndarray) -> tuple[int, int, int] | None:
    """x, y and true label; None where nothing is wrong."""
    regions, found = label((made != truth) & (truth != 255))
    if not found:
        return None
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    depth = distance_transform_edt(np.pad(regions == sizes.argmax(), 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y), int(truth[y, x])


if __name__ == "__main__":
    main()
