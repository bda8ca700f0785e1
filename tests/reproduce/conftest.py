"""What the tests of ``reproduce`` share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reproduce.tiny_table import TABLE


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(TABLE, encoding="utf-8")
    return str(path)
