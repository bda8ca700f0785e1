"""The benchmarks' cases can all be found; their times are nobody's test."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tagmask.config import DataConfig
from tagmask.data import open_data, write_demo

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TINY = ["views.crop=64", "train.batch_size=2", "train.accelerator=cpu", "train.workers=0", "train.precision=fp32"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A benchmark by its name, as a module."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.slow
def test_every_operator_has_its_cases() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "ops.py", "--list"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    operators = {line.split()[0] for line in done.stdout.splitlines()}
    assert operators >= {"crf", "energy", "par", "varm", "walk", "scorer", "threshold"}


@pytest.mark.slow
def test_generated_annotations_are_converted() -> None:
    pytest.importorskip("pycocotools")
    command = [sys.executable, BENCHMARKS / "prepare.py", "--images", "5", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "5 photos" in done.stdout and "photos/s" in done.stdout


@pytest.mark.slow
def test_a_conversion_that_fails_ends_the_measurement(tmp_path: Path) -> None:
    (tmp_path / "pycocotools").mkdir()
    (tmp_path / "pycocotools" / "__init__.py").write_text('raise ImportError("none here")')
    command = [sys.executable, BENCHMARKS / "prepare.py", "--images", "2", "--workers", "1"]
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode != 0 and "pycocotools" in done.stderr and "photos/s" not in done.stdout


@pytest.mark.slow
def test_hours_are_those_of_both_phases(tmp_path: Path) -> None:
    size = ["--steps", "2", "--skip", "1", "--images", "6", "--size", "48", "64"]
    command = [sys.executable, BENCHMARKS / "schedule.py", "tscd_voc", *size, "--json", tmp_path / "found.json"]
    command += ["--set", "encoder.name=mit_b0", *TINY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "found.json").read_text())
    assert (row["steps"], row["batch"], row["crop"]) == (20000, 2, 64) and row["memory"] > 2**27
    assert row["workers"] == 0 and 0 < row["waiting"] < 1
    assert row["hours"] == pytest.approx((2000 / row["warmup_rate"] + 18000 / row["rate"]) / 3600)
    assert "| tscd_voc | CPU" in done.stdout


def test_networks_of_stages_learn_from_drawn_masks(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = script("schedule")
    photos = schedule.write_photos(tmp_path / "photos", 4, 48, 64)
    shared = ["--steps", "1", "--skip", "1", "--one", str(photos), "--set", "encoder.name=test_resnet", *TINY]
    schedule.main(["crt_voc:segmenter", *shared])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (row["configuration"], row["steps"], row["batch"]) == ("crt_voc:segmenter", 20000, 2)
    with pytest.raises(SystemExit, match="'crt_voc' has no stage 'masks'"):
        schedule.main(["crt_voc:masks", *shared])


def test_every_stage_has_its_files_and_memory(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    stages = script("stages")
    scenes = write_demo(tmp_path / "scenes", 8, (64, 80))
    found = {name: stages.one_stage(name, str(scenes), str(tmp_path / "run"), "test_resnet") for name in stages.STAGES}
    assert all(0 < each["idle"] <= each["peak"] and each["disk"] > 0 for each in found.values())
    assert {name for name, each in found.items() if each["soft"]} == set(stages.LABELS)
    assert found["classifier"]["listed"] > 0
    more = {name: {key: 2 * value for key, value in each.items()} for name, each in found.items()}
    rows = stages.law([found, more], [5, 10], [64, 80], 100, [128, 160])
    assert len(rows) == 7 and "| masks, soft maps |" in stages.table(rows, [5, 10], [64, 80], 100, [128, 160])


def test_a_step_beside_busy_processes(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    busy = script("busy")
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n2\n"))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        busy.serve(busy.trainer("test_resnet", 64, 2))
    begun, *seconds = said.getvalue().split()
    assert begun == "begun" and len(seconds) == 2 and all(float(each) > 0 for each in seconds)
    with busy.started([sys.executable, "-c", busy.BUSY], dict(os.environ)) as process:
        assert process.poll() is None
    assert process.returncode == 0, "it ends with its input"
    found = busy.table({"alone": {"without": [2.0, 3.0, 8.0], "with": [2.0, 2.0, 2.0]}})
    assert found.splitlines()[-1] == "| alone | 3.00 s | 2.00 s | 1.50 (1.00 to 4.00) |"


@pytest.mark.slow
def test_memory_of_one_photos_labels(tmp_path: Path) -> None:
    tiny = """
encoder: {name: test_resnet, weights: none}
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


def test_what_a_soak_calls_flat(script: Callable[[str], ModuleType]) -> None:
    soak = script("soak")
    flat = [(90.0, 12), *[(100.0 + i, 10) for i in range(9)]]
    assert soak.judge(flat, 20) == [] and soak.judge([], 1) == []
    assert soak.judge(flat, 4) == ["memory grows by 5 MB"]
    assert soak.judge([*flat[:9], (100.0, 11)], 20) == ["open files grow from 10 to 11"]
    before = soak.look()
    with open(__file__, encoding="utf-8"):
        assert soak.look()[1] == before[1] + 1


@pytest.mark.slow
def test_memory_and_open_files_stay_flat(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    soak = script("soak")
    size = ["--out", str(tmp_path), "--steps", "60", "--photos", "400", "--side", "256", "--every", "0.01"]
    # A photo is 0.8 MB in memory as floats: 160 MB, if those of the second half of a phase stayed there.
    assert soak.main([*size, "--bound", "48"]) == []
    seen = [json.loads(line)["phase"] for line in (tmp_path / "soak.jsonl").read_text().splitlines()]
    assert seen.count("train") >= 50 and seen.count("label") >= 50
    assert len(list((tmp_path / "run" / "masks").glob("*.png"))) == 400
    (tmp_path / "run" / "masks" / "00000007.png").unlink()
    assert soak.main([*size, "--every", "60"]) == [] and (tmp_path / "run" / "masks" / "00000007.png").is_file(), (
        "it goes on"
    )


@pytest.mark.slow
def test_bytes_held_of_a_photo(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = script("held")
    monkeypatch.setattr("tagmask.data.source_shards.read_index", held.made_up)
    (tmp_path / "00000.tar").touch()
    tracemalloc.start()
    try:
        collection = open_data(DataConfig(root=tmp_path))
        assert len(collection.items) == held.A_SHARD
        assert 300 < tracemalloc.get_traced_memory()[0] / held.A_SHARD < 1300
    finally:
        tracemalloc.stop()
