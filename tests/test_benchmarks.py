"""The benchmarks' cases can all be found; their times are nobody's test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def test_every_operator_has_its_cases() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "ops.py", "--list"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    operators = {line.split()[0] for line in done.stdout.splitlines()}
    assert operators >= {"crf", "energy", "par", "varm", "walk", "scorer", "threshold"}


def test_generated_annotations_are_converted() -> None:
    pytest.importorskip("pycocotools")
    command = [sys.executable, BENCHMARKS / "prepare.py", "--images", "5", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "5 photos" in done.stdout and "photos/s" in done.stdout


def test_a_conversion_that_fails_ends_the_measurement(tmp_path: Path) -> None:
    (tmp_path / "pycocotools").mkdir()
    (tmp_path / "pycocotools" / "__init__.py").write_text('raise ImportError("none here")')
    command = [sys.executable, BENCHMARKS / "prepare.py", "--images", "2", "--workers", "1"]
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=90, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode != 0 and "pycocotools" in done.stderr and "photos/s" not in done.stdout
