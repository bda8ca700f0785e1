"""Staged runs on drawn scenes and an untrained encoder: what each stage makes, and that it can be killed."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.config import RunConfig, dump_yaml, load_config
from tagmask.errors import ConfigError, WeightsError
from tagmask.methods import build_method
from tagmask.training import RunFolder, load_model, read_json, write_json, write_text
from tagmask.workflow import evaluate, prepare, resumed, run, run_stages, staged_run, train, training_items
from tagmask.workflow.stages import check_stages, network_config, save_stages
from tests.workflow.conftest import BASE, STAGES


def made(run: Path) -> dict[str, bytes]:
    """Label files by name, and the networks' weights by their digest."""
    found = {str(p.relative_to(run)): p.read_bytes() for name in ("seeds", "masks") for p in (run / name).glob("*.png")}
    for name in ("affinity", "segmenter"):
        found[name] = read_json(run / name / "model" / "classes.json")["digest"].encode()
    return found


def test_every_stage_leaves_its_outputs(staged: Path, config: RunConfig) -> None:
    collection = prepare(config)[0]
    names = {item.id for item in collection.split("train")}
    for folder in ("seeds", "masks"):
        assert {p.stem for p in (staged / folder).glob("*.png")} == names
    for item in collection.split("train"):
        allowed = {0} | {t + 1 for t in item.tags or ()}
        for folder, extra in (("seeds", {255}), ("masks", set())):
            values = set(np.unique(np.array(Image.open(staged / folder / f"{item.id}.png"))).tolist())
            assert values <= allowed | extra, (folder, item.id)
    assert not list(staged.rglob("*.npz")), "no soft maps unless asked"
    sub = RunFolder(staged / "segmenter").config()
    assert sub.method.name == "supervised" and sub.stages is None
    assert sub.data.train_masks == staged / "masks"
    (score,) = evaluate(staged, "train", ["masks"])
    assert score["protocol"]["grid"] is None, "label files do not say on which grid they were made"
    assert "random walk (irn" in score["protocol"]["refine"] and "walk_steps 16" in score["protocol"]["refine"]
    assert score["protocol"]["threshold"] == 0.25 and score["protocol"]["supervision"] == "tags"
    (of_segmenter,) = evaluate(staged / "segmenter", "test")
    assert of_segmenter["name"] == "segmenter" and of_segmenter["protocol"]["supervision"] == "masks"
    how = of_segmenter["protocol"]["masks"]
    assert how.startswith("baseline on resnet18, CAMs, scales 1") and "random walk (irn, " in how
    assert "walk_steps 16" in how and str(staged) not in json.dumps(of_segmenter["protocol"])


def test_weights_of_later_stages_are_missed_before_the_first_training(
    config: RunConfig, scenes: Path, tmp_path: Path, classifier: Path
) -> None:
    lacking = load_config(
        config.model_dump(mode="json"), {"stages": {"segmenter": {"encoder": {"weights": "nowhere.pth"}}}}
    )
    with pytest.raises(WeightsError, match="nowhere.pth"):
        staged_run(lacking, tmp_path / "tables", ())
    assert not (tmp_path / "tables" / "model").exists() and not (tmp_path / "tables" / "log.jsonl").exists()
    for dry_run in (True, False):
        with pytest.raises(WeightsError, match="nowhere.pth"):
            run([lacking.model_dump(mode="json")], {}, [], tmp_path / "run", dry_run=dry_run)
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "log.jsonl").exists()


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


def test_staged_run_scores_what_is_wanted(config: RunConfig, staged: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(staged, out)
    for checkpoint in out.rglob("*.ckpt"):
        checkpoint.unlink()  # what is finished needs none
    wanted = [("masks", "train"), ("seeds", "train"), ("cam", "val"), ("cam", "train"), ("segmenter", "test")]
    result = staged_run(config, out, wanted)
    assert made(out) == made(staged) and result["stages"]["masks"]["written"] == 0
    found = [(s["name"], s["protocol"]["split"], s["protocol"]["method"]) for s in result["scores"]]
    assert found == [
        ("cam", "val", "baseline"), ("segmenter", "test", "supervised"), ("masks", "train", "baseline"),
        ("seeds", "train", "baseline"), ("cam", "train", "baseline"), ("cam (val threshold)", "train", "baseline"),
    ]  # fmt: skip
    scores = {s["name"]: s for s in result["scores"] if s["protocol"]["split"] == "train"}
    assert scores["seeds"]["protocol"]["refine"] == "confident labels (high 0.6, low 0.3)"
    assert scores["seeds"]["protocol"]["threshold"] is None and scores["seeds"]["protocol"]["crf"] is None
    assert scores["seeds"]["coverage"] < scores["masks"]["coverage"] == 1
    assert scores["masks"]["protocol"]["refine"].startswith("random walk")
    assert set(result["minutes"]) == {"check", "train", "cams", "affinity", "masks", "segmenter", "evaluate"}


@pytest.mark.parametrize(
    "stages,wanted,message",
    [
        (None, (), "no stages"),
        (["classifier", "cams"], [("masks", "train")], "stage 'masks'"),
        (["classifier", "cams"], [("seeds", "val")], "split 'train' only"),
        (["classifier", "cams"], [("sedes", "train")], "not a score.*seeds"),
    ],
)
def test_staged_run_refuses_before_it_trains(
    stages: Any, wanted: Any, message: str, config: RunConfig, tmp_path: Path
) -> None:
    values = config.model_dump(mode="json") | {"stages": stages}
    with pytest.raises(ConfigError, match=message):
        staged_run(load_config(values), tmp_path / "run", wanted)
    assert not (tmp_path / "run").exists()


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


def test_untagged_photos_are_predicted_by_the_segmenter_of_the_stages(
    config: RunConfig, staged: Path, tmp_path: Path
) -> None:
    out, scenes = tmp_path / "run", tmp_path / "scenes"
    shutil.copytree(staged, out)
    shutil.copytree(config.data.root, scenes)  # type: ignore[arg-type]
    shutil.copy(next((scenes / "images").iterdir()), scenes / "images" / "bare.png")
    save_stages(RunFolder(out), config)
    result = run([], {"data": {"root": str(scenes)}}, [], out, resume=True)
    assert result["predictions"]["written"] == 1 and (out / "predictions" / "bare.png").is_file()
    note, about = (read_json(out / part / "classes.json") for part in ("predictions", "segmenter/model"))
    assert note["model"] == about["digest"] and not note["tags_used"]
    write_json(out / "predictions" / "classes.json", note | {"model": "of another"})  # as after it was trained again
    assert run([], {"data": {"root": str(scenes)}}, [], out, resume=True)["predictions"]["written"] == 1
    assert read_json(out / "predictions" / "classes.json") == note


def test_photos_that_cannot_be_labelled_are_said(config: RunConfig, classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(classifier, out)
    collection, found = prepare(config)
    first, *_ = collection.splits["train"]
    items = [replace(i, image=tmp_path / "gone.png") if i.id == first else i for i in collection.items]
    console = Console(file=io.StringIO(), width=300)
    values = load_config(config.model_dump(mode="json") | {"stages": STAGES[:2]})
    done = run_stages(values, out, (replace(collection, items=items), found), console)
    assert len(done["cams"]["failed"]) == 1
    assert f"left out: {tmp_path / 'gone.png'}" in console.file.getvalue()  # type: ignore[attr-defined]


def test_no_stage_sees_the_true_masks_of_training_photos(
    config: RunConfig, classifier: Path, staged: Path, tmp_path: Path
) -> None:
    """Their files are swapped for ones that are not there: opening one would fail."""
    out = tmp_path / "run"
    shutil.copytree(classifier, out)
    collection, found = prepare(config)
    trains = set(collection.splits["train"])
    hidden = [replace(i, mask=Path("nowhere.png")) if i.id in trains else i for i in collection.items]
    run_stages(config, out, (replace(collection, items=hidden), found))
    assert made(out) == made(staged)
    items, _ = training_items(network_config(config, "affinity", RunFolder(out)), collection)
    assert items and all(item.mask == out / "seeds" / f"{item.id}.png" for item in items)


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


def test_masks_without_an_affinity_are_refined_cams(config: RunConfig, classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(classifier, out)
    values = config.model_dump(mode="json") | {"stages": {"masks": {"crf": "psa", "soft": True}}}
    done = run_stages(load_config(values), out, prepare(config))
    assert set(done) == {"masks"} and not (out / "seeds").exists()
    path = next((out / "masks").glob("*.npz"))
    with np.load(path) as saved:
        assert saved["scores"].dtype == np.float16 and saved["scores"].shape[1:] == (64, 80)
        names = json.loads(str(saved["classes"]))
        assert names[0] == "background" and len(names) == len(saved["scores"])
    (score,) = evaluate(out, "train", ["masks"])
    assert score["protocol"]["refine"] == "par" and score["protocol"]["crf"].startswith("psa")
    assert "complete" not in read_json(out / "masks" / "classes.json")["label"], "a stage's masks are not completed"


def test_refined_masks_may_have_a_background_of_their_own(config: RunConfig, classifier: Path, tmp_path: Path) -> None:
    share = {}
    for threshold in (None, 0.05, 0.9):
        out = tmp_path / str(threshold)
        shutil.copytree(classifier, out)
        values = config.model_dump(mode="json") | {"stages": {"masks": {"threshold": threshold}}}
        run_stages(load_config(values), out, prepare(config))
        share[threshold] = np.mean([np.mean(np.array(Image.open(p)) == 0) for p in (out / "masks").glob("*.png")])
        (score,) = evaluate(out, "train", ["masks"])
        assert score["protocol"]["threshold"] == (threshold or config.label.threshold)
    assert share[0.05] < share[None] < share[0.9]


def test_a_segmenter_may_start_from_the_classifier(config: RunConfig, classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(classifier, out)
    own = {"method": {"head": "largefov", "head_options": {"hidden": 16}}, "encoder": {"weights": "classifier"}}
    values = load_config(config.model_dump(mode="json"), {"stages": ["classifier", "masks", {"segmenter": own}]})
    before = check_stages(values, RunFolder(tmp_path / "not_there"))["segmenter"]
    assert before.encoder.weights == "none", "nothing is trained yet: as the run"
    started = check_stages(values, RunFolder(out))["segmenter"]
    source = load_model(out / "model")[0].encoder.state_dict()
    encoder = build_method(started, 4).encoder
    assert all(torch.equal(value, source[key]) for key, value in encoder.state_dict().items())
    run_stages(values, out, prepare(values))
    origin = read_json(out / "segmenter" / "model" / "classes.json")["weights_origin"]
    digest = read_json(out / "model" / "classes.json")["digest"]
    assert origin == f"encoder of baseline {digest} from tags (none (random))"
    moved = tmp_path / "moved"
    out.rename(moved)
    run_stages(values, moved, prepare(values))  # nothing is left to do, wherever the run lies


@pytest.mark.slow
def test_run_goes_through_all_stages_and_shows_them_first(scenes: Path, tmp_path: Path) -> None:
    words = ["run", str(scenes), "--masks", str(scenes / "masks"), "-m", "rcm_mam", "-e", "resnet18", "--json"]
    words += ["--weights", "none", "views.crop=64", "train.steps=2", "train.warmup=1", "train.batch_size=2"]
    words += ["train.workers=0", "train.accelerator=cpu", "train.precision=fp32", "label.cam_scales=[1.0]"]
    words += ["evaluate.bootstrap=0", "data.train=train.txt", "data.val=val.txt", "data.test=test.txt"]
    words += ["method.weight_rcm=0", "method.attention=none", "stages=[classifier, cams, affinity, masks, segmenter]"]
    words += ["stages.cams.crf=none", "stages.affinity.method.name=affinity_net", "stages.masks.walk.walk_steps=8"]
    out = tmp_path / "run"
    shown = json.loads(CliRunner().invoke(app, [*words, "-o", str(out), "--dry-run"]).stdout)
    assert [row["stage"] for row in shown["stages"]] == ["classifier", "cams", "affinity", "masks", "segmenter"]
    assert shown["plan"]["stages.segmenter.method.head_options"] == {"dilation": 2} and not out.exists()
    result = json.loads(CliRunner().invoke(app, [*words, "-o", str(out)]).stdout)
    assert set(result["minutes"]) >= {"train", "cams", "affinity", "masks", "segmenter", "evaluate", "report"}
    assert result["model"] == str(out / "segmenter" / "model") and Path(result["report"]).is_file()
    scored = {(s["name"], s["protocol"]["split"], s["protocol"]["method"]) for s in result["scores"]}
    assert {("masks", "train", "rcm_mam"), ("segmenter", "test", "supervised")} <= scored
    assert RunFolder(out / "affinity").config().method.name == "affinity_net"
    again = json.loads(CliRunner().invoke(app, ["run", "--resume", "-o", str(out), "--json"]).stdout)
    assert again["masks"]["written"] == 0 and again["masks"]["skipped"] == result["masks"]["written"]
    scores = {(s["name"], s["protocol"]["split"], s["protocol"]["method"]): s["miou"] for s in result["scores"]}
    for score in again["scores"]:
        assert scores[score["name"], score["protocol"]["split"], score["protocol"]["method"]] == score["miou"]
    for path in (out / "masks").iterdir():
        path.unlink()
    words = ["run", "--resume", "-o", str(out), "--json", "stages.masks.walk.walk_steps=2", "stages.segmenter=null"]
    changed = json.loads(CliRunner().invoke(app, words).stdout)
    assert changed["masks"]["written"] == result["masks"]["written"] and "segmenter" not in changed["stages"]
    assert read_json(out / "masks" / "classes.json")["stage"]["walk"]["walk_steps"] == 2
