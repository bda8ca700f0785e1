"""Staged runs on drawn scenes and an untrained encoder: what each stage makes, from what, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.config import RunConfig, load_config
from tagmask.errors import ConfigError, WeightsError
from tagmask.methods import build_method
from tagmask.training import RunFolder, load_model, read_json, write_json
from tagmask.workflow import evaluate, prepare, run, run_stages, staged_run, training_items
from tagmask.workflow.stages import check_stages, network_config, save_stages
from tests.workflow.conftest import STAGES, made


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
