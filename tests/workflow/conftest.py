"""Scenes and staged runs that several files of tests here look at and none of them changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tagmask.config import RunConfig, load_config
from tagmask.data import write_demo
from tagmask.training import read_json
from tagmask.workflow import prepare, run_stages, train

STAGES = [
    "classifier",
    {"cams": {"crf": "none", "high": 0.6, "low": 0.3}},
    {"affinity": {"method": {"radius": 3}}},
    {"masks": {"walk": {"walk_steps": 16}}},
    "segmenter",
]
BASE = {
    "encoder": {"name": "resnet18", "weights": "none"},
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
    """The same with all stages done, never interrupted."""
    out = tmp_path_factory.mktemp("staged") / "run"
    shutil.copytree(classifier, out)
    run_stages(config, out, prepare(config))
    return out


def made(run: Path) -> dict[str, bytes]:
    """Label files by name, and the networks' weights by their digest."""
    found = {str(p.relative_to(run)): p.read_bytes() for name in ("seeds", "masks") for p in (run / name).glob("*.png")}
    for name in ("affinity", "segmenter"):
        found[name] = read_json(run / name / "model" / "classes.json")["digest"].encode()
    return found
