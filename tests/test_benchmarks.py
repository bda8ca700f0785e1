"""The benchmarks' cases can all be found; their times are nobody's test."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def test_every_operator_has_its_cases() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "ops.py", "--list"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    operators = {line.split()[0] for line in done.stdout.splitlines()}
    assert operators >= {"crf", "energy", "par", "varm", "walk", "scorer", "threshold"}


def test_generated_annotations_are_converted() -> None:
    command = [sys.executable, BENCHMARKS / "prepare.py", "--images", "5", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "5 photos" in done.stdout and "photos/s" in done.stdout
