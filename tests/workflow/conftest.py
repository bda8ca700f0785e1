"""Scenes and staged runs that several files of tests here look at and none of them changes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tagmask.config import RunConfig, load_config
from tagmask.data import write_demo
from tagmask.files import read_json
from tagmask.workflow import Run, train
from tagmask.workflow.run import training_steps
from tagmask.workflow.stages import Stages
from tagmask.workflow.steps import work

STAGES = [
    "classifier",
    {"cams": {"crf": "none", "high": 0.6, "low": 0.3}},
    {"affinity": {"method": {"radius": 3}}},
    {"masks": {"walk": {"walk_steps": 16}}},
    "segmenter",
]
BASE = {
    "encoder": {"name": "test_resnet", "weights": "none"},
    "views": {"crop": 64},
    "method": {"name": "baseline", "warmup": 1, "head_options": {"hidden": 16}},
    "train": {
        "steps": 2, "batch_size": 2, "workers": 0, "warmup": 0, "accelerator": "cpu", "checkpoint_every": 1,
        "optimizer": "sgd", "lr": 0.01, "channels_last": False,
    },
    "label": {"cam_scales": [1.0]},
    "evaluate": {"bootstrap": 0},
}  # fmt: skip


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_demo(folder, images=8, size=(64, 80), seed=3)
    return folder


@pytest.fixture(scope="session")
def config(scenes: Path) -> RunConfig:
    data = {"root": str(scenes), "train": "train.txt", "val": "val.txt", "test": "test.txt", "masks": "masks"}
    own = {"method": {"head": "largefov", "head_options": {"hidden": 16}}}
    return load_config(BASE, {"data": data, "stages": [*STAGES[:4], {"segmenter": own}]})


@pytest.fixture(scope="session")
def classifier(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose first stage is done."""
    out = tmp_path_factory.mktemp("runs") / "first"
    train(config, out)
    return out


@pytest.fixture(scope="session")
def staged(config: RunConfig, classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with all stages done, never interrupted.

    While they are, the true masks of training photos are files that are not there: opening one would fail.
    """
    run = Run(tmp_path_factory.mktemp("staged") / "run", config)
    shutil.copytree(classifier, run.folder.path)
    trains = set(run.collection.splits["train"])
    hidden = [replace(i, mask=Path("nowhere.png")) if i.id in trains else i for i in run.collection.items]
    run.collection = replace(run.collection, items=hidden)
    through_stages(run)
    return run.folder.path


def through_stages(run: Run, console: Console | None = None, last: str = "segmenter") -> dict[str, Any]:
    """Train a run and do its stages up to ``last``, where they are not done. Returns what each step gave, by name."""
    run.begin(resume=True)
    steps = training_steps(run, Stages(run), console)
    wanted = list(steps)[: list(steps).index(last) + 1] if last in steps else list(steps)
    return work(run, {name: steps[name] for name in wanted}, "again")[0]


def without(source: Path, out: Path, folders: Sequence[str]) -> Path:
    """A copy of a run folder in ``out``, but for some of its stages' folders."""
    return Path(shutil.copytree(source, out, ignore=shutil.ignore_patterns(*folders)))


def made(run: Path) -> dict[str, bytes]:
    """Label files by name, and the digests of the networks' weights, of the stages that are there."""
    found = {str(p.relative_to(run)): p.read_bytes() for name in ("seeds", "masks") for p in (run / name).glob("*.png")}
    for name in (name for name in ("affinity", "segmenter") if (run / name).is_dir()):
        found[name] = read_json(run / name / "model" / "classes.json")["digest"].encode()
    return found
