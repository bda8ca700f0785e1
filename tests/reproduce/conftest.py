"""What the tests of ``reproduce`` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tagmask.data import write_demo
from tagmask.reproduce import job
from tests.reproduce.tiny_table import TABLE


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(TABLE, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes that no test changes."""
    return write_demo(tmp_path_factory.mktemp("data") / "scenes", images=12, size=(64, 80))


@pytest.fixture
def forbid_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, a row that trains is an error."""

    def never(*args: object) -> None:
        raise AssertionError("nothing has to be trained")

    return lambda: monkeypatch.setattr(job, "training_steps", never)
