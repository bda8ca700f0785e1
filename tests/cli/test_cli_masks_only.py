"""Photos with true masks and no tags, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tagmask.config import RunConfig
from tagmask.data import loader
from tagmask.errors import DataError
from tagmask.evaluate.stamp import describe
from tagmask.files import read_json
from tagmask.training import RunFolder
from tagmask.workflow import Run
from tests.cli.calls import call, raise_error

TINY = [
    "encoder.name=test_resnet", "encoder.weights=none", "views.crop=64", "train.steps=4", "train.batch_size=4",
    "train.workers=0", "train.warmup=1", "train.accelerator=cpu", "label.cam_scales=[1.0]", "evaluate.bootstrap=20",
]  # fmt: skip


ASKED = "data.tags_from=masks"


@pytest.fixture(scope="module")
def photos(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos alone; masks lie beside it, one lacks."""
    root = tmp_path_factory.mktemp("masks_only")
    for name in ("images", "masks"):
        shutil.copytree(scenes / name, root / name)
    (root / "masks" / "scene_0003.png").unlink()
    return root / "images"


def config_of(run: Path) -> RunConfig:
    return RunFolder(run).config()


def test_run_learns_from_masks(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    right = loader.read_mask
    monkeypatch.setattr(loader, "read_mask", lambda path, *rest: read.append(path) or right(path, *rest))
    out = tmp_path / "run"
    words = ("run", photos, "--masks", photos.parent / "masks", ASKED, "-o", out, *TINY)
    text = call(*words).output
    assert 'method.name="supervised"' in text and "data.tags_from" in text
    assert config_of(out).method.name == "supervised" and config_of(out).data.tags_from == "masks"
    splits = read_json(out / "data.json")["splits"]
    trained, held_out = set(splits["train"]), set(splits["val"])
    assert held_out and "scene_0003" not in trained | held_out
    assert {path.stem for path in read} == trained, "masks of val are for scores only"
    scores = {(s["name"], s["stamp"]["split"]): s["stamp"] for s in read_json(out / "metrics.json")["scores"]}
    stamp = scores["segmenter", "val"]
    assert stamp["tags"] is False and stamp["run"]["supervision"] == "true masks" and "tags_from" not in stamp
    assert "tags of true masks given" in describe(scores["masks", "train"])
    assert {p.stem for p in (out / "predictions").glob("*.png")} == {"scene_0003"}
    assert "true masks" in (out / "model" / "README.md").read_text()
    assert "holds a run" not in call("run", "--resume", "-o", out).output


def test_train_with_masks_alone(photos: Path, tmp_path: Path) -> None:
    call("train", photos, "--masks", photos.parent / "masks", ASKED, "-m", "supervised", "-o", tmp_path / "run", *TINY)
    run = Run(tmp_path / "run")
    assert run.config.data.tags_from == "masks" and run.collection.tags_of_masks
    assert run.model_note["supervision"] == "true masks"


def test_a_method_of_tags_takes_the_masks_classes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "read_mask", lambda *_: pytest.fail("a method of tags reads no mask in training"))
    out = tmp_path / "run"
    call(
        "run", photos, "--masks", photos.parent / "masks", ASKED, "-m", "baseline", "-o", out, *TINY, "method.warmup=2"
    )
    assert config_of(out).method.name == "baseline"
    scores = {(s["name"], s["stamp"]["split"]): s["stamp"] for s in read_json(out / "metrics.json")["scores"]}
    assert scores["segmenter", "val"]["run"]["supervision"] == "tags of true masks"
    assert scores["cam", "val"]["tags_from"] == "masks"
    assert "tags of true masks" in (out / "model" / "README.md").read_text()
    plan = json.loads(call("run", "--labels-of", out, "--dry-run", "--json", *TINY).stdout)["config"]
    assert plan["data"]["tags_from"] == "masks" and plan["method"]["name"] == "supervised"


def test_stages_on_tags_of_masks_follow_the_recipe(photos: Path) -> None:
    words = (
        photos,
        "--masks",
        photos.parent / "masks",
        "--dry-run",
        "--json",
        *TINY,
        ASKED,
        "stages={masks: {}, segmenter: {}}",
    )
    plan = json.loads(call("run", *words).stdout)
    assert plan["config"]["method"]["name"] == "baseline" and "segmenter" in plan["config"]["stages"]


def test_check_says_what_it_found(photos: Path, tmp_path: Path) -> None:
    words = ("check", photos, "--masks", photos.parent / "masks", ASKED, "--save", tmp_path / "found.json")
    text = " ".join(call(*words).output.split())
    assert (
        "The tags of a photo are the classes in its mask" in text and "15 with tags" in text and "1 unlabelled" in text
    )
    assert read_json(tmp_path / "found.json")["tags_of_masks"] is True


@pytest.mark.parametrize("verb", ["check", "run", "train"])
def test_tags_that_were_forgotten(verb: str, photos: Path, tmp_path: Path) -> None:
    out = ("--save", tmp_path / "f") if verb == "check" else ("-o", tmp_path / "run")
    with pytest.raises(DataError, match=r"no tags.*tags\.csv"):
        raise_error(verb, photos, *out)
    with pytest.raises(DataError, match=r"no tags.*data\.tags_from=masks"):
        raise_error(verb, photos, "--masks", photos.parent / "masks", *out)
