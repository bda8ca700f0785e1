"""Staged runs that are killed, called again, or given other photos and settings later."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tagmask.config import RunConfig, dump_yaml, load_config
from tagmask.errors import ConfigError
from tagmask.training import RunFolder, read_json, write_text
from tagmask.workflow import prepare, resumed, run, run_stages, staged_run, train
from tagmask.workflow.stages import network_config, save_stages
from tests.workflow.conftest import BASE, STAGES, made


def kill_at(patch: pytest.MonkeyPatch, what: str, times: int) -> None:
    """Make the ``times``-th call of a function die: of ``write_json`` before it writes, of others afterwards."""
    room, name = what.rsplit(".", 1)
    original, calls = getattr(import_module(room), name), []

    def killing(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == times and name == "write_json":
            raise KeyboardInterrupt
        result = original(*args, **options)
        if len(calls) == times:
            raise KeyboardInterrupt
        return result

    patch.setattr(import_module(room), name, killing)


LABEL = "tagmask.label.engine.write_mask"
CHECKPOINT = "tagmask.training.loop.save_checkpoint"
MODEL = "tagmask.training.model_files.write_json"
"""Called once a photo, once a step (two steps a network), and once a model, whose weights are there already then."""
DONE = {"seeds": "cams", "affinity": "affinity", "masks": "masks", "segmenter": "segmenter"}


@pytest.mark.parametrize(
    "where,what,times",
    [
        ("classifier", CHECKPOINT, 1),
        ("classifier", MODEL, 1),
        ("cams", LABEL, 2),
        ("affinity", CHECKPOINT, 1),
        ("affinity", MODEL, 1),
        ("masks", LABEL, 2),
        ("segmenter", CHECKPOINT, 3),
        ("segmenter", MODEL, 2),
    ],
)
def test_a_killed_run_goes_on_and_gives_the_same_masks(
    where: str,
    what: str,
    times: int,
    config: RunConfig,
    classifier: Path,
    staged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    if where != "classifier":
        shutil.copytree(classifier, out)
    count = len(prepare(config)[0].split("train"))
    with monkeypatch.context() as patch:
        kill_at(patch, what, times + count * (where == "masks"))
        with pytest.raises(KeyboardInterrupt):
            staged_run(config, out, ())
    begun = [stage for folder, stage in DONE.items() if (out / folder).is_dir()]
    assert begun == list(DONE.values())[: list(DONE.values()).index(where) + 1 if where in DONE.values() else 0]
    done = staged_run(config, out, ())["stages"]
    if what == LABEL:
        assert done[where]["skipped"] == 2 and done[where]["written"] == count - 2
    assert made(out) == made(staged)
    assert read_json(out / "model" / "classes.json") == read_json(classifier / "model" / "classes.json")


def test_soft_maps_that_were_cut_short_are_made_again(
    config: RunConfig, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = load_config(config.model_dump(mode="json"), overrides=["stages.cams.soft=true", "stages.affinity=null"])
    asked = load_config(asked.model_dump(mode="json"), overrides=["stages.masks=null", "stages.segmenter=null"])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        shutil.copytree(classifier, out)
    staged_run(asked, whole, ())

    def half(path: Path, **arrays: Any) -> None:
        path.write_bytes(b"PK")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("numpy.savez_compressed", half)
        with pytest.raises(KeyboardInterrupt):
            staged_run(asked, cut, ())
    assert len(list((cut / "seeds").glob("*.npz"))) == 1
    staged_run(asked, cut, ())
    files = [{p.name: p.read_bytes() for p in (out / "seeds").iterdir()} for out in (whole, cut)]
    assert files[0] == files[1] and any(name.endswith(".npz") for name in files[0])


@pytest.mark.slow
def test_a_process_that_is_killed_in_every_stage_gives_the_same_masks(scenes: Path, tmp_path: Path) -> None:
    """SIGKILL, as a machine that goes down: nothing is cleaned up. Once a stage, each while it is half done."""
    words = ["run", str(scenes), "--masks", str(scenes / "masks"), "-e", "resnet18", "--weights", "none", "--json"]
    words += ["views.crop=64", "train.steps=12", "train.checkpoint_every=1", "train.batch_size=2", "train.workers=0"]
    words += ["train.accelerator=cpu", "train.precision=fp32", "label.cam_scales=[1.0]", "evaluate.bootstrap=0"]
    words += ["method.warmup=1", "train.warmup=0", "data.train=train.txt", "data.val=val.txt", "data.test=test.txt"]
    words += ["stages=[classifier, cams, affinity, masks, segmenter]", "stages.cams.high=0.6", "stages.cams.low=0.3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(words: list[str], out: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "tagmask", *words, "-o", str(out)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    process = start(words, whole)
    assert process.wait(300) == 0, process.stderr.read()  # type: ignore[union-attr]
    for sign in ("checkpoints/*.ckpt", "seeds/*.png", "affinity/checkpoints/*.ckpt", "masks/*.png",
                 "segmenter/checkpoints/*.ckpt"):  # fmt: skip
        process = start(words if not killed.exists() else ["run", "--resume", "--json"], killed)
        while process.poll() is None and not any(killed.glob(sign)):
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (sign, process.stderr.read())  # type: ignore[union-attr]
    process = start(["run", "--resume", "--json"], killed)
    assert process.wait(300) == 0, process.stderr.read()  # type: ignore[union-attr]
    assert made(killed) == made(whole)


def test_stages_may_change_after_a_training_that_saved_them(config: RunConfig, tmp_path: Path) -> None:
    """As after ``tagmask train -c rcm_mam_voc``, whose config.yaml holds the stages of that file."""
    folder = RunFolder(tmp_path / "run")
    folder.create(config)
    changed = resumed(folder, [], {}, ["stages.masks.walk.walk_steps=2"])
    assert changed.stages is not None and changed.stages.masks is not None
    assert changed.stages.masks.walk == {"walk_steps": 2}
    assert resumed(folder, [], {}, ["stages=null"]).stages is None
    with pytest.raises(ConfigError, match="train.lr differ"):
        resumed(folder, [], {}, ["train.lr=0.5", "stages=null"])


def test_nothing_is_done_twice(config: RunConfig, staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(staged)
    monkeypatch.setattr("tagmask.workflow.train_run.train_method", None)
    done = run_stages(config, staged, prepare(config))
    assert done["cams"]["written"] == done["masks"]["written"] == 0 and made(staged) == before


@pytest.mark.parametrize("stages", [True, False])
def test_what_is_trained_needs_neither_checkpoints_nor_weights(
    stages: bool, config: RunConfig, classifier: Path, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    out = folder.path
    shutil.copytree(staged if stages else classifier, out)
    asked = load_config(config.model_dump(mode="json"), {"encoder": {"weights": str(tmp_path / "gone.pth")}})
    write_text(folder.config_file, dump_yaml(asked.model_copy(update={"stages": None})))
    if stages:
        save_stages(folder, asked)
        for name in ("affinity", "segmenter"):
            write_text(out / name / "config.yaml", dump_yaml(network_config(asked, name, folder)))
    for checkpoint in out.rglob("*.ckpt"):
        checkpoint.unlink()
    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    spent = [r["seconds"] for r in folder.log() if "seconds" in r][-1]
    monkeypatch.setattr("tagmask.workflow.train_run.train_method", None)
    run([], {}, [], out, resume=True, dry_run=True)
    result = run([], {}, [], out, resume=True)
    assert set(result.get("stages", {})) == (set(DONE.values()) if stages else set())
    assert {path: path.read_bytes() for path in out.rglob("*.safetensors")} == before
    assert train(folder.config(), out, resume=True).seconds == spent > 0
    with pytest.raises(ConfigError, match="--resume"):
        train(folder.config(), out)


def test_photos_that_come_later_leave_a_run_as_it_is(scenes: Path, tmp_path: Path) -> None:
    """Without lists a share of the photos is held out: with more of them, others would be."""
    photos, out = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(scenes / "images", photos)
    table = (scenes / "tags.csv").read_text()
    (photos / "tags.csv").write_text(table)
    config = load_config(BASE, {"data": {"root": str(photos), "val_share": 0.4}, "stages": STAGES[:2]})
    collection = prepare(config)[0]
    staged_run(config, out, ())
    kept = {p: p.read_bytes() for p in (out / "data.json", out / "fingerprint.json", *(out / "seeds").iterdir())}
    rows = []
    for path in sorted(photos.glob("*.png")):
        shutil.copy(path, path.with_stem(f"new_{path.stem}"))
        rows.append(f"new_{path.name},\n")
    (photos / "tags.csv").write_text(table + "".join(rows))
    later = prepare(config)[0]
    assert set(collection.splits["train"]) & set(later.splits["val"]), "or this shows nothing"
    # Each as if it had been killed: in the training, and before its seeds were through.
    (out / "model" / "README.md").unlink()
    train(RunFolder(out).config(), out, resume=True)
    staged_run(config, out, ())
    run([], {}, [], out, resume=True)
    seeds = set((out / "seeds").iterdir())
    assert all(path.read_bytes() == content for path, content in kept.items()) and seeds <= set(kept)
    assert {p.stem for p in (out / "seeds").glob("*.png")} == set(collection.splits["train"])


def test_other_settings_are_not_mixed(config: RunConfig, staged: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(staged, out)
    collection, found = prepare(config)
    fewer = replace(collection, splits=collection.splits | {"train": collection.splits["train"][1:]})
    with pytest.raises(ConfigError, match="affinity.*other photos.*delete"):
        run_stages(config, out, (fewer, found))
    with pytest.raises(ConfigError, match="masks.*other settings.*delete"):
        run_stages(
            load_config(config.model_dump(mode="json"), overrides=["stages.masks.crf=psa"]), out, prepare(config)
        )
    other = load_config(config.model_dump(mode="json"), overrides=["stages.cams.high=0.9"])
    with pytest.raises(ConfigError, match="seeds.*delete"):
        run_stages(other, out, prepare(config))
    shutil.rmtree(out / "seeds")
    with pytest.raises(ConfigError, match="affinity.*other labels.*delete"):
        run_stages(other, out, prepare(config))
    slower = load_config(config.model_dump(mode="json"), overrides=["stages.affinity.train.lr=0.5"])
    shutil.rmtree(out / "seeds")
    with pytest.raises(ConfigError, match="train.lr differ"):
        run_stages(slower, out, prepare(config))
