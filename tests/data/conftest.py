"""Small data sets that the tests write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Writes a random image of (height, width) and gives its path."""

    def write(path: Path, size: tuple[int, int] = (8, 10), seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def mask() -> Callable[..., Path]:
    """Writes a grey PNG of the given values and gives its path."""

    def write(path: Path, values: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def photos(tmp_path: Path, picture: Callable[..., Path], mask: Callable[..., Path]) -> Path:
    """Twelve photos of different sizes with tags.csv (classes a, b, c) and masks; two rows empty, two rows missing."""
    rows = ["image,tags"]
    for i in range(12):
        size = (9 + i, 20 - i)
        picture(tmp_path / "images" / f"p{i:02d}.png", size, i)
        mask(tmp_path / "masks" / f"p{i:02d}.png", np.full(size, i % 4))
        if i < 10:
            rows.append(f"p{i:02d}.png," + ("" if i % 5 == 4 else "abc"[i % 3] + (";c" if i % 3 == 0 else "")))
    (tmp_path / "tags.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "tagmask"
