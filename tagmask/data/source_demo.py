"""Source 'demo': procedural scenes with tags and true masks, written to a folder once."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from tagmask.config import DataConfig
from tagmask.data.collection import Collection
from tagmask.data.pixels import write_mask
from tagmask.data.scenes import CLASSES, scene
from tagmask.data.source_table import table
from tagmask.errors import DataError
from tagmask.files import cache_folder, read_json
from tagmask.registry import SOURCES

VERSION = 1
"""Counted up whenever the same seed draws other scenes."""
MARK = "demo.json"
SHARES = {"train": 0.65, "val": 0.1, "test": 0.25}


def write_demo(folder: str | Path, images: int = 160, size: tuple[int, int] = (128, 160), seed: int = 0) -> Path:
    """Write ``images`` scenes of ``size`` (height, width) as a data set, and give its folder.

    images/*.png, masks/*.png (palette), tags.csv, classes.txt, train.txt, val.txt, test.txt (65, 10 and 25 %). The
    same arguments give the same pixels; scene i does not depend on how many there are. A folder that holds these
    scenes already is left as it is. Raises DataError when it holds anything else, or cannot be written.
    """
    folder = Path(folder)
    parameters = {"version": VERSION, "images": images, "size": list(size), "seed": seed}
    if _is_there(folder, parameters):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Drawn beside its place and moved there whole, so that an interrupted run leaves no half data set.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
            drawn = Path(beside, folder.name)
            drawn.mkdir()
            _write(drawn, parameters)
            if folder.is_dir():
                folder.rmdir()
            drawn.rename(folder)
    except OSError as error:
        # Another process may have been quicker.
        if not _is_there(folder, parameters):
            raise DataError(f"{folder}: cannot write the demo data ({error}). Set data.root to another one.") from error
    return folder


def _is_there(folder: Path, parameters: dict) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    mark = folder / MARK
    if not mark.is_file():
        raise DataError(
            f"{folder}: holds something else; the demo data is written to a new or empty folder (data.root)."
        )
    if read_json(mark) != parameters:
        raise DataError(f"{folder}: holds other demo scenes than {parameters}. Delete it, or set data.root.")
    return True


def _write(folder: Path, parameters: dict) -> None:
    count, size = parameters["images"], parameters["size"]
    names = [f"scene_{i:04d}" for i in range(count)]
    rows = ["image,tags"]
    (folder / "images").mkdir()
    for i, name in enumerate(names):
        image, labels = scene(np.random.default_rng([parameters["seed"], i]), *size)
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        write_mask(folder / "masks" / f"{name}.png", labels)
        rows.append(f"{name}.png," + ";".join(CLASSES[k - 1] for k in np.unique(labels) if k))
    lists = {"tags.csv": rows, "classes.txt": CLASSES}
    train, val = (round(SHARES[s] * count) for s in ("train", "val"))
    for split, part in zip(SHARES, (names[:train], names[train : train + val], names[train + val :])):
        lists[f"{split}.txt"] = part
    for file, lines in lists.items():
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / MARK).write_text(json.dumps(parameters) + "\n", encoding="utf-8")


@SOURCES.register("demo")
def demo(config: DataConfig) -> Collection:
    """The demo data in ``data.root``, or else in the user's cache folder, drawn if it is not there yet.

    The scenes do not depend on the run's seed, so that runs of several seeds can be compared.
    """
    folder = config.root
    if folder is None:
        folder = cache_folder() / f"demo-{VERSION}-{config.demo_images}"
    write_demo(folder, config.demo_images)
    return replace(table(DataConfig(root=folder)), source="demo")
