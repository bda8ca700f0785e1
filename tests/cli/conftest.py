"""Drawn scenes and a finished run on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagmask.data import write_demo
from tests.cli.calls import SPLITS, TINY, call


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_demo(folder, images=20, size=(64, 80), seed=3)
    return folder


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `tagmask run` on scenes with masks."""
    out = tmp_path_factory.mktemp("runs") / "first"
    call("run", scenes, "--masks", scenes / "masks", "-o", out, *SPLITS, *TINY)
    return out
