"""The benchmarks' cases can all be found; their times are nobody's test."""

import json
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
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode != 0 and "pycocotools" in done.stderr and "photos/s" not in done.stdout


def test_hours_are_those_of_both_phases(tmp_path: Path) -> None:
    tiny = ["views.crop=64", "train.batch_size=2", "train.accelerator=cpu", "train.workers=0", "train.precision=fp32"]
    size = ["--steps", "2", "--skip", "1", "--images", "6", "--size", "48", "64"]
    command = [sys.executable, BENCHMARKS / "schedule.py", "tscd_voc", *size, "--json", tmp_path / "found.json"]
    command += ["--set", "encoder.name=mit_b0", *tiny]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "found.json").read_text())
    assert (row["steps"], row["batch"], row["crop"]) == (20000, 2, 64) and row["memory"] > 2**27
    assert row["workers"] == 0 and 0 < row["waiting"] < 1
    assert row["hours"] == pytest.approx((2000 / row["warmup_rate"] + 18000 / row["rate"]) / 3600)
    assert "| tscd_voc | CPU" in done.stdout


@pytest.mark.parametrize("stage,answer", [("segmenter", 0), ("masks", 1)])
def test_networks_of_stages_learn_from_drawn_masks(stage: str, answer: int, tmp_path: Path) -> None:
    tiny = ["views.crop=64", "train.batch_size=2", "train.accelerator=cpu", "train.workers=0", "train.precision=fp32"]
    size = ["--steps", "1", "--skip", "1", "--images", "4", "--size", "48", "64"]
    command = [sys.executable, BENCHMARKS / "schedule.py", f"crt_voc:{stage}", *size, "--json", tmp_path / "found.json"]
    command += ["--set", "encoder.name=resnet18", *tiny]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == answer
    if answer:
        assert "'crt_voc' has no stage 'masks' that trains a network" in done.stderr
        return
    (row,) = json.loads((tmp_path / "found.json").read_text())
    assert (row["steps"], row["batch"]) == (20000, 2)
    assert f"| crt_voc:{stage} | CPU" in done.stdout


def test_memory_of_one_photos_labels(tmp_path: Path) -> None:
    tiny = """
encoder: {name: resnet18, weights: none}
method: {name: baseline, warmup: 1, head_options: {hidden: 8}}
label: {cam_scales: [1.0]}
stages: {classifier: {}, cams: {high: 0.6, low: 0.3}, masks: {}}
"""
    (tmp_path / "tiny.yaml").write_text(tiny, encoding="utf-8")
    found = []
    for size in (["48", "64"], ["960", "1280"]):
        command = [sys.executable, BENCHMARKS / "stages.py", "--size", *size, "--passes", tmp_path / "tiny.yaml"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        rows = [line.split("|") for line in done.stdout.splitlines()[2:]]
        assert [row[1].strip().rpartition(", ")[2] for row in rows] == ["cams", "masks"]
        found.append([float(row[4].split()[0].replace(",", "")) for row in rows])
    # Scores of 20 classes alone, in single precision, are 98 MB more.
    assert all(large > small + 90 for small, large in zip(*found)), found
