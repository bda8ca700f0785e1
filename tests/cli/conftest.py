"""Drawn scenes and a finished run on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tagmask.data import write_demo
from tests.cli.calls import SPLITS, TINY, call


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes that no test changes."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_demo(folder, images=16, size=(64, 80), seed=3)
    return folder


@pytest.fixture(scope="session")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `tagmask run` on scenes with masks, which no test changes."""
    out = tmp_path_factory.mktemp("runs") / "first"
    call("run", scenes, "--masks", scenes / "masks", "-o", out, "--effort", "quick", *SPLITS, *TINY)
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture(scope="session")
def plain(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `tagmask run`, of seed 1, on photos and a table of tags: no masks, no splits."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    call("run", scenes / "images", "--tags", scenes / "tags.csv", "-o", out, "--seed", 1, "--effort", "quick", *TINY)
    return out
