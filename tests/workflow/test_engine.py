"""Which engine makes masks: what is said where Ray cannot be had; and that stages give the same by it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tagmask.config import load_config
from tagmask.errors import ConfigError
from tagmask.workflow import Run, label, run
from tests.cli.calls import raise_error
from tests.label.test_ray_engine import files, in_process  # noqa: F401
from tests.workflow.conftest import BASE, made, through_stages, without
from tests.workflow.test_shared import scores


def test_without_ray_the_way_to_it_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"needs Ray: pip install 'tagmask\[ray\]'"):
        raise_error("run", tmp_path, "--engine", "ray", "-o", tmp_path / "run")
    assert not (tmp_path / "run" / "data.json").exists()
    with pytest.raises(ConfigError, match=r"engine\.gpus"):
        load_config({"engine": {"gpus": 1.5}})


def test_masks_of_a_run_and_its_stages_are_the_same_by_workers(
    staged: Path,
    tmp_path: Path,
    in_process: list[str],  # noqa: F811
) -> None:
    """A worker gets the networks and what makes the labels as bytes: for confident labels, walks and a run's masks."""
    copy = without(staged, tmp_path / "run", ["seeds", "masks", "segmenter"])
    by_ray = Run(copy, Run(staged).using(["engine.name=ray"]).config)
    through_stages(by_ray, last="masks")
    photos = by_ray.collection.splits["train"]
    assert sorted(in_process) == sorted(2 * photos) and made(copy) == {
        k: v for k, v in made(staged).items() if k != "segmenter"
    }
    for folder, overrides in (("local", []), ("ray", ["engine.name=ray"])):
        done = label(staged, "train", tmp_path / folder, overrides=overrides)
        assert done.written == len(photos)
    assert files(tmp_path / "ray") == files(tmp_path / "local") and len(in_process) == 3 * len(photos)


@pytest.mark.slow
def test_a_whole_run_by_workers_has_the_same_masks_and_scores(
    scenes: Path,
    tmp_path: Path,
    in_process: list[str],  # noqa: F811
) -> None:
    data = {"root": str(scenes), "train": "train.txt", "val": "val.txt", "test": "test.txt", "masks": "masks"}
    for engine in ("local", "ray"):
        run([BASE], {"data": data, "plan": False}, [f"engine.name={engine}"], tmp_path / engine)
    assert made(tmp_path / "ray") == made(tmp_path / "local") and scores(tmp_path / "ray") == scores(tmp_path / "local")
    splits = Run(tmp_path / "ray").collection.splits
    assert sorted(in_process) == sorted([*splits["train"], *splits["val"]])
