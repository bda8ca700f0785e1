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
from typing import Any, BinaryIO

import pytest

from tagmask.config import RunConfig, load_config
from tagmask.errors import ConfigError
from tagmask.files import read_json
from tagmask.training import RunFolder
from tagmask.workflow import Run, resumed, run, train
from tagmask.workflow.opened import open_collection
from tagmask.workflow.stages import Stages, network_config
from tests.workflow.conftest import BASE, STAGES, made, through_stages, without

TRAINING = import_module("tagmask.workflow.train")
"""The module; the package has the verb under this name."""


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


LABEL = "tagmask.label.writer.write_mask"
CHECKPOINT = "tagmask.training.loop.save_checkpoint"
MODEL = "tagmask.training.model_files.write_json"
"""Called once a photo, once a step (two steps a network), and once a model, whose weights are there already then."""
DONE = {"seeds": "cams", "affinity": "affinity", "masks": "masks", "segmenter": "segmenter"}
"""What stages leave behind: their folders in the run's, in order."""


@pytest.mark.parametrize(
    "where,what,times",
    [
        ("train", CHECKPOINT, 1),
        ("train", MODEL, 1),
        ("cams", LABEL, 2),
        ("affinity", CHECKPOINT, 1),
        ("affinity", MODEL, 1),
        ("masks", LABEL, 2),
        ("segmenter", CHECKPOINT, 1),
        ("segmenter", MODEL, 1),
    ],
)
def test_a_killed_run_goes_on_and_gives_the_same_masks(
    where: str,
    what: str,
    times: int,
    config: RunConfig,
    staged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each from a run whose stages before are done; what comes after looks only at what a stage leaves."""
    out, stages = tmp_path / "run", ["train", *DONE.values()]
    undone = [folder for folder, stage in DONE.items() if stages.index(stage) >= stages.index(where)]
    if where != "train":
        without(staged, out, undone)
    with monkeypatch.context() as patch:
        kill_at(patch, what, times)
        with pytest.raises(KeyboardInterrupt):
            through_stages(Run(out, config), last=where)
    begun = [stage for folder, stage in DONE.items() if (out / folder).is_dir()]
    assert begun == stages[1 : stages.index(where) + 1]
    opened = Run(out, config)
    kept = len([path for folder, stage in DONE.items() if stage == where for path in (out / folder).glob("*.png")])
    done = through_stages(opened, last=where)
    if what == LABEL:
        # The thread that writes may end a mask more than was asked for.
        assert done[where]["skipped"] == kept in (2, 3)
        assert done[where]["written"] == len(opened.collection.split("train")) - kept
    found = made(out)
    of_stage = {
        name for name in made(staged) if name.partition("/")[0] in DONE and DONE[name.partition("/")[0]] in begun
    }
    assert set(found) == of_stage and found == {name: made(staged)[name] for name in found}
    assert read_json(out / "model" / "classes.json") == read_json(staged / "model" / "classes.json")


def test_soft_maps_that_were_cut_short_are_made_again(
    config: RunConfig, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = load_config(config.model_dump(mode="json"), overrides=["stages.cams.soft=true", "stages.affinity=null"])
    asked = load_config(asked.model_dump(mode="json"), overrides=["stages.masks=null", "stages.segmenter=null"])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        shutil.copytree(classifier, out)
    through_stages(Run(whole, asked))

    def half(file: BinaryIO, **arrays: Any) -> None:
        file.write(b"PK")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("numpy.savez_compressed", half)
        with pytest.raises(KeyboardInterrupt):
            through_stages(Run(cut, asked))
    assert not [path for path in (cut / "seeds").iterdir() if path.name != "classes.json"]
    through_stages(Run(cut, asked))
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
    """As after ``tagmask train -c rcm_mam_voc``, whose configuration has stages."""
    folder = RunFolder(tmp_path / "run")
    folder.create(config)
    assert folder.config() == config
    changed = resumed(folder, [], {}, ["stages.masks.walk.walk_steps=2"])
    assert changed.stages is not None and changed.stages.masks is not None
    assert changed.stages.masks.walk == {"walk_steps": 2}
    assert resumed(folder, [], {}, ["stages=null"]).stages is None
    with pytest.raises(ConfigError, match=r"train\.lr"):
        resumed(folder, [], {}, ["train.lr=0.5", "stages=null"])


def test_nothing_is_done_twice(config: RunConfig, staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(staged)
    monkeypatch.setattr(TRAINING, "train_method", None)
    done = through_stages(Run(staged, config))
    assert done["cams"]["written"] == done["masks"]["written"] == 0 and made(staged) == before


@pytest.mark.parametrize("stages", [True, False])
def test_what_is_trained_needs_neither_checkpoints_nor_weights(
    stages: bool, config: RunConfig, classifier: Path, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    out = folder.path
    shutil.copytree(staged if stages else classifier, out)
    asked = load_config(config.model_dump(mode="json"), {"encoder": {"weights": str(tmp_path / "gone.pth")}})
    folder.save(asked if stages else asked.model_copy(update={"stages": None}))
    if stages:
        for name in ("affinity", "segmenter"):
            RunFolder(out / name).save(network_config(asked, name, folder))
    for checkpoint in out.rglob("*.ckpt"):
        checkpoint.unlink()
    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    spent = [r["seconds"] for r in folder.log() if "seconds" in r][-1]
    monkeypatch.setattr(TRAINING, "train_method", None)
    shown = run([], {}, [], out, resume=True, dry_run=True)
    assert [row["stage"] for row in shown["stages"]] == (["classifier", *DONE.values()] if stages else [])
    if stages:
        through_stages(Run(out))
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
    through_stages(Run(out, config))
    splits = Run(out).collection.splits
    kept = {p: p.read_bytes() for p in (out / "data.json", out / "fingerprint.json", *(out / "seeds").iterdir())}
    rows = []
    for path in sorted(photos.glob("*.png")):
        shutil.copy(path, path.with_stem(f"new_{path.stem}"))
        rows.append(f"new_{path.name},\n")
    (photos / "tags.csv").write_text(table + "".join(rows))
    assert set(splits["train"]) & set(open_collection(config).splits["val"]), "or this shows nothing"
    # Each as if it had been killed: in the training, and before its seeds were through.
    (out / "model" / "README.md").unlink()
    train(RunFolder(out).config(), out, resume=True)
    next((out / "seeds").glob("*.png")).unlink()
    through_stages(Run(out))
    assert set((out / "seeds").iterdir()) <= set(kept)
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert {p.stem for p in (out / "seeds").glob("*.png")} == set(splits["train"])


def test_other_settings_are_not_mixed(config: RunConfig, staged: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(staged, tmp_path / "run"))

    def stages(*overrides: str) -> Stages:
        return Stages(Run(out, load_config(config.model_dump(mode="json"), overrides=overrides)))

    fewer = Run(out, config)
    splits = fewer.collection.splits
    fewer.collection = replace(fewer.collection, splits=splits | {"train": splits["train"][1:]})
    with pytest.raises(ConfigError, match="affinity.* photos .*delete"):
        Stages(fewer).train("affinity")
    with pytest.raises(ConfigError, match="run/masks"):
        stages("stages.masks.crf=psa").mask_writer()
    with pytest.raises(ConfigError, match="run/seeds"):
        stages("stages.cams.high=0.9").seeds()
    shutil.rmtree(out / "seeds")
    stages("stages.cams.high=0.9").seeds()
    with pytest.raises(ConfigError, match="affinity.* labels .*delete"):
        stages("stages.cams.high=0.9").train("affinity")
    with pytest.raises(ConfigError, match=r"affinity.*train\.lr"):
        shutil.copytree(staged / "seeds", out / "seeds", dirs_exist_ok=True)
        stages("stages.affinity.train.lr=0.5").train("affinity")
