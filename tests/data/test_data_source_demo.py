from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.config import DataConfig
from tagmask.data import open_data, read_mask, write_demo
from tagmask.data.scenes import CLASSES, GROUNDS, OBJECTS, TRAP_CLASS, TRAP_GROUND, _pick_ground, scene
from tagmask.errors import DataError
from tagmask.registry import SOURCES


def pixels(folder: Path) -> dict[str, bytes]:
    return {p.stem: np.array(Image.open(p)).tobytes() for p in sorted((folder / "images").iterdir())}


def test_deterministic_and_independent_of_the_number(tmp_path: Path) -> None:
    small = [write_demo(tmp_path / name, 8, (48, 64), seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    first, again, other = (pixels(folder) for folder in small)
    assert first == again and not set(first.values()) & set(other.values())
    more = pixels(write_demo(tmp_path / "d", 10, (48, 64)))
    assert {name: more[name] for name in first} == first
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_source(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    collection = open_data(DataConfig(root=folder, source="demo", demo_images=20))
    assert collection.source == "demo" and collection.classes == CLASSES and not collection.problems
    assert {n: len(collection.split(n)) for n in ("train", "val", "test", "all")} == {
        "train": 13,
        "val": 2,
        "test": 5,
        "all": 20,
    }
    for item in collection.items:
        assert item.mask is not None
        there = set(read_mask(item.mask, len(CLASSES)).unique().tolist()) - {0}
        assert item.tags == tuple(sorted(label - 1 for label in there))
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    again = SOURCES.get("demo")(DataConfig(root=folder, source="demo", demo_images=20))
    assert again.splits == collection.splits and {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    collection = open_data(DataConfig(source="demo", demo_images=8))
    assert collection.root.parent == tmp_path / "tagmask" and len(collection.items) == 8


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("keep")
    with pytest.raises(DataError, match=r"data\.root"):
        write_demo(tmp_path / "mine", 8)
    write_demo(tmp_path / "demo", 8, (32, 32))
    with pytest.raises(DataError, match=r"data\.root"):
        write_demo(tmp_path / "demo", 9, (32, 32))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.root"):
        write_demo(tmp_path / "file" / "below", 8)


def test_the_trap() -> None:
    rng = np.random.default_rng(0)
    with_boat = [_pick_ground(rng, True) == TRAP_GROUND for _ in range(400)]
    without = [_pick_ground(rng, False) == TRAP_GROUND for _ in range(400)]
    assert 0.9 < np.mean(with_boat) < 1 and 0 < np.mean(without) < 0.1
    assert TRAP_CLASS in OBJECTS and TRAP_GROUND in GROUNDS and len(GROUNDS) == 5 and len(CLASSES) == 6


def test_scenes_are_varied() -> None:
    found = [scene(np.random.default_rng([0, i]), 64, 80) for i in range(40)]
    counts = [len(set(np.unique(labels)) - {0}) for _, labels in found]
    assert {1, 2} <= set(counts) and max(counts) <= 3
    share = np.mean([(labels > 0).mean() for _, labels in found])
    assert 0.05 < share < 0.4
    assert {int(v) for _, labels in found for v in np.unique(labels)} == set(range(7))
    assert all(image.std() > 5 for image, _ in found)
