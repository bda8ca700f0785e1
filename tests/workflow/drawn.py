"""Drawn photos of any number of classes: coloured shapes on grey noise."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 48


def draw(folder: Path, classes: int, photos: int, many: bool = False, empty: bool = False) -> Path:
    """Write ``photos`` pictures and tags.csv; gives the folder. Photo i has class i mod ``classes``.

    many: up to two further classes, where there are so many. empty: every other photo has none.
    """
    (folder / "images").mkdir(parents=True)
    rows = ["image,tags"]
    for i in range(photos):
        random = np.random.default_rng([classes, i])
        image = random.integers(90, 160, (SIZE, SIZE, 3)).astype(np.uint8)
        there = {(i + 7 * extra) % classes for extra in range(random.integers(1, 4) if many else 1)}
        if empty and i % 2:
            there = set()
        for k in there:
            half = int(random.integers(6, 11))
            y, x = random.integers(half, SIZE - half, 2)
            dy, dx = np.abs(np.mgrid[-y : SIZE - y, -x : SIZE - x])
            shape = (dy + dx < half) if k % 2 else (np.maximum(dy, dx) < half)
            image[shape] = np.array(colorsys.hsv_to_rgb(k / classes, 1.0, 0.6 + 0.4 * (k % 3) / 2)) * 255
        Image.fromarray(image).save(folder / "images" / f"{i:04d}.png")
        rows.append(f"{i:04d}.png," + ";".join(f"class{k:02d}" for k in sorted(there)))
    (folder / "tags.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
