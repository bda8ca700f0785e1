"""The verbs as a user types them, on drawn scenes and an untrained encoder."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

import tagmask
from tagmask.cli import app
from tagmask.config import load_config
from tagmask.errors import ConfigError, DataError, WeightsError
from tagmask.files import read_json
from tagmask.registry import METHODS
from tagmask.training import RunFolder
from tagmask.workflow import Run
from tagmask.workflow.evaluate import SPECIAL
from tagmask.workflow.scorer import SCORES
from tests.cli.calls import SPLITS, TINY, call, raise_error

VERBS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    assert f"tagmask {verb}" in call(verb, "--help").output


def test_version_needs_no_torch() -> None:
    words = [sys.executable, "-X", "importtime", "-m", "tagmask", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"tagmask {version('tagmask')}\n"
    assert "rich" in done.stderr and not re.search(r"\| +(torch|numpy|pydantic)$", done.stderr, re.M)


FRESH = """
import os, sys
from tagmask import cli
cli.app = lambda: print("torch" in sys.modules, os.environ["OMP_WAIT_POLICY"])
del os.environ["OMP_WAIT_POLICY"]
cli.main()
os.environ["OMP_WAIT_POLICY"] = "ACTIVE"
cli.main()
"""
"""What a verb finds in a fresh process: whether torch is loaded already, and how threads wait."""


def test_threads_do_not_spin_unless_the_user_wants_it() -> None:
    environment = os.environ | {"OMP_WAIT_POLICY": ""}
    done = subprocess.run([sys.executable, "-c", FRESH], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "PASSIVE", "False", "ACTIVE"]


def test_run_writes_masks_model_scores_and_report(run: Path, scenes: Path) -> None:
    metrics = read_json(run / "metrics.json")
    found = {(s["name"], s["stamp"]["split"], s["stamp"]["tags"]) for s in metrics["scores"]}
    assert {("cam", "train", True), ("refined", "train", True), ("masks", "train", True)} <= found
    assert {("segmenter", "val", False), ("segmenter", "test", False)} <= found
    assert ("cam (val threshold)", "train", True) in found
    assert metrics["classification"].keys() == {"train", "val", "test"}
    assert all(0 <= entry["map"] <= 1 for entry in metrics["classification"].values())
    labelled = (scenes / "train.txt").read_text().split() + (scenes / "val.txt").read_text().split()
    assert {p.stem for p in (run / "masks").glob("*.png")} == {Path(n).stem for n in labelled}
    mask = Image.open(next((run / "masks").glob("*.png")))
    assert mask.mode == "P" and mask.size == (80, 64)
    assert "<html" in (run / "report.html").read_text()
    assert read_json(run / "fingerprint.json")["counts"]["images"] == 16
    assert list(read_json(run / "minutes.json")) == [
        *("check", "suspects", "train", "masks", "evaluate", "predict", "report")
    ]


def test_evaluate_again_gives_the_same_and_prints_how(copy: Path) -> None:
    before = {s["name"]: s for s in read_json(copy / "metrics.json")["scores"] if s["stamp"]["split"] == "test"}
    scores = json.loads(call("evaluate", copy, "--split", "test", "--json").stdout)
    made = [{key: value for key, value in s.items() if key != "minutes"} for s in scores]
    assert made == [{key: value for key, value in before[s["name"]].items() if key != "minutes"} for s in scores]
    text = " ".join(call("evaluate", copy, "--split", "test").output.split())
    assert "segmenter on test, no tags: " in text and "precision recall" in text


def test_with_tags_is_labelled_as_such(copy: Path) -> None:
    text = " ".join(call("evaluate", copy, "--split", "test", "--with-tags").output.split())
    assert "segmenter+tags on test, tags given: " in text and "no tags" not in text
    (score,) = json.loads(call("evaluate", copy, "--split", "test", "--what", "segmenter+tags", "--json").stdout)
    assert (score["name"], score["stamp"]["tags"]) == ("segmenter+tags", True)


def test_a_mean_over_chosen_classes(copy: Path) -> None:
    names = tagmask.load(copy).classes[:2]
    words = ("evaluate", copy, "--split", "test", f"evaluate.only=[{', '.join(names)}]")
    (score,) = json.loads(call(*words, "--json").stdout)
    ious = [score["per_class"][name]["iou"] for name in names]
    assert score["only"] == names and score["c_miou"] == pytest.approx(sum(ious) / 2) != score["miou"]
    assert score["interval_c_miou"]["low"] <= score["interval_c_miou"]["high"]
    assert f"over {', '.join(names)}" in " ".join(call(*words).output.split())
    call("report", copy)
    assert "C-mIoU of" in (copy / "report.html").read_text()
    with pytest.raises(ConfigError, match="evaluate.only.*nonsense"):
        raise_error("evaluate", copy, "evaluate.only=[nonsense]")


TRAINED = [name for name in METHODS.names() if not METHODS.get(name).labels_from_tags]


@pytest.mark.parametrize("name", [TRAINED[0], *(pytest.param(name, marks=pytest.mark.slow) for name in TRAINED[1:])])
def test_run_plans_for_any_method(name: str, scenes: Path, tmp_path: Path) -> None:
    """Only what makes it tiny is set; everything that fits the method comes from the plan."""
    kind, fields = METHODS.get(name), METHODS.get(name).config_class.model_fields
    tiny = [
        "encoder.name=test_vit", "encoder.weights=none", "views.crop=64", "train.steps=4", "train.batch_size=4",
        "train.workers=0", "train.accelerator=cpu", "label.cam_scales=[1.0]", "evaluate.bootstrap=0",
    ]  # fmt: skip
    networks = [
        f"method.{part}={{encoder: {{name: test_vit, weights: none}}}}" for part in ("guide",) if part in fields
    ]
    words = [scenes, "--masks", scenes / "masks", "-m", name, "-o", tmp_path / "run", *SPLITS, *tiny, *networks]
    result = json.loads(call("run", *words, "--json").stdout)
    wanted = ("segmenter", "test") if kind.has_segmenter else ("cam", "test")
    assert wanted in {(s["name"], s["stamp"]["split"]) for s in result["scores"]}
    assert result["masks"]["written"] > 0 and Path(result["report"]).is_file()
    config = load_config(tmp_path / "run" / "config.yaml")
    assert config.method.name == name and config.train.warmup < 4
    if "warmup" in fields:
        assert config.method.warmup == 1  # type: ignore[attr-defined]
        last = [record for record in RunFolder(tmp_path / "run").log() if "losses" in record][-1]
        assert set(last["losses"]) > {"cls", "total"}, "the second phase was reached"


def test_python_interface(run: Path, scenes: Path) -> None:
    segmenter = tagmask.load(run)
    photo = next((scenes / "images").iterdir())
    one = segmenter.predict(photo)
    assert one.labels.shape == (64, 80) and one.scores.shape == (len(segmenter.classes) + 1, 64, 80)
    assert np.array_equal(segmenter.predict([photo, Image.open(photo)])[1].labels, one.labels)
    name = segmenter.classes[0]
    assert set(np.unique(segmenter.label(photo, [name]).labels)) <= {0, 1}
    cams = segmenter.cams(photo, [name])
    assert cams.shape == (len(segmenter.classes), 64, 80) and cams[1:].max() == 0
    with pytest.raises(DataError, match="nonsense"):
        segmenter.cams(photo, ["nonsense"])
    assert "baseline" in tagmask.list_methods() and tagmask.list_encoders("resnet50") == ["resnet50"]


def test_photos_and_a_table_are_enough(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new user would: no masks, no splits, no settings of data."""
    metrics = read_json(plain / "metrics.json")
    assert metrics["scores"] == [] and 0 <= metrics["classification"]["val"]["map"] <= 1
    assert len(list((plain / "masks").glob("*.png"))) == 16 and (plain / "report.html").is_file()
    assert "mAP" in call("evaluate", plain).stdout, "without masks there is the classifier's score"
    # What cannot be scored is said before any photo is looked at.
    monkeypatch.setattr(importlib.import_module("tagmask.workflow.evaluate"), "share", None)
    with pytest.raises(DataError, match=r"data\.masks"):
        raise_error("evaluate", plain, "--what", "cam")


def test_dry_run_shows_the_plan_and_writes_nothing(scenes: Path, tmp_path: Path) -> None:
    words = ("run", scenes, "--dry-run", "--json", "-o", tmp_path / "r", "train.lr=0.5")
    result = json.loads(call(*words, "encoder.name=test_resnet", "encoder.weights=none", "--effort", "quick").output)
    assert result["config"]["train"]["lr"] == 0.5 and "train.lr" not in result["plan"]
    assert result["plan"]["views.crop"] == 96 and not (tmp_path / "r").exists()


def test_dry_run_says_what_would_stop_the_run(scenes: Path, tmp_path: Path) -> None:
    words = ("run", scenes, "--dry-run", "-o", tmp_path / "r")
    with pytest.raises(WeightsError, match="nowhere"):
        raise_error(*words, "--weights", tmp_path / "nowhere.pth")
    with pytest.raises(ConfigError, match="attention"):
        raise_error(*words, "--weights", "none", "--method", "afa", "method.affinity=attention")
    assert not (tmp_path / "r").exists()


def test_check_reports_broken_files(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"broken")
    (folder / "tags.csv").write_text("image,tags\na.png,cat\nb.png,dog\nc.png,cat\n")
    found = json.loads(call("check", folder, "--json", "--save", tmp_path / "f.json").stdout)
    assert json.loads((tmp_path / "f.json").read_text()) == found
    assert found["counts"]["unreadable"] == 1 and any("c.png" in p["path"] + p["what"] for p in found["problems"])


@pytest.mark.parametrize(
    "words,error,message",
    [
        (["train", "data.rot=x"], ConfigError, "data.rot.*root"),
        (["train", "/nonexistent/photos"], ConfigError, "/nonexistent/photos"),
        (["train", "-c", "demoo"], ConfigError, "demo"),
        (["train", "-m", "basline"], ConfigError, "baseline"),
        (["evaluate", "/nonexistent"], DataError, "/nonexistent"),
        (["reproduce", "msrc14/baselin"], ConfigError, "msrc14/baseline"),
    ],
)
def test_wrong_words_name_what_is_wrong(words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        raise_error(*words)


def test_nothing_that_training_decided_is_overridden_later(copy: Path) -> None:
    for word in ("seed=7", "method.name=supervised", "encoder.name=resnet34", "data.val_share=0.5"):
        with pytest.raises(ConfigError, match=word.partition("=")[0]):
            raise_error("evaluate", copy, word)
    (score, _) = json.loads(call("evaluate", copy, "label.threshold=0.2", "--what", "cam", "--json").stdout)
    assert (score["stamp"]["threshold"], score["stamp"]["threshold_from"]) == (0.2, "fixed")


def test_a_run_keeps_its_data(scenes: Path, tmp_path: Path) -> None:
    photos, table = tmp_path / "photos", (scenes / "tags.csv").read_text()
    shutil.copytree(scenes / "images", photos)
    (photos / "tags.csv").write_text(table)
    begun = Run(tmp_path / "run", load_config({"data": {"root": str(photos)}}, overrides=TINY))
    begun.begin()
    begun.folder.create(begun.config)
    shutil.copy(next((scenes / "images").iterdir()), photos / "new.png")
    (photos / "tags.csv").write_text(table + "new.png,\n")
    after = Run(tmp_path / "run").collection
    assert after.splits == begun.collection.splits and after.item("new").tags == ()
    (photos / "tags.csv").write_text(table + "new.png,unheard_of\n")
    with pytest.raises(DataError, match="photos: .*unheard_of"):
        raise_error("label", tmp_path / "run")


def test_a_run_among_the_photos_is_refused(scenes: Path) -> None:
    with pytest.raises(DataError, match="scenes.runs: .*--out"):
        raise_error("train", scenes, "-o", scenes / "runs", *TINY)
    assert not (scenes / "runs").exists()


def test_resume_goes_on_with_the_saved_settings(copy: Path, scenes: Path) -> None:
    for folder in ("model", "checkpoints", "masks"):
        shutil.rmtree(copy / folder)
    with pytest.raises(ConfigError, match=r"train\.lr"):
        raise_error("train", "--resume", "-o", copy, "train.lr=0.5")
    call("train", "--resume", "-o", copy, "train.workers=1")
    assert (copy / "model" / "weights.safetensors").is_file()
    with pytest.raises(ConfigError, match="--resume"):
        raise_error("run", scenes, "-o", copy, *TINY)
    result = json.loads(call("run", "--resume", "-o", copy, "--json").stdout)
    assert Path(result["report"]).is_file() and result["masks"]["written"] > 0
    again = json.loads(call("run", "--resume", "-o", copy, "--json").stdout)
    assert again["masks"]["written"] == 0 and again["masks"]["skipped"] == result["masks"]["written"]


def test_held_out_photos_without_tags_are_counted_not_fatal(scenes: Path, tmp_path: Path) -> None:
    rows = (scenes / "tags.csv").read_text().splitlines()
    held = Path((scenes / "val.txt").read_text().split()[0]).stem
    (tmp_path / "tags.csv").write_text("\n".join(row for row in rows if held not in row) + "\n")
    words = [f"data.{name}={scenes / name}.txt" for name in ("train", "val", "test")]
    call("run", scenes / "images", "--tags", tmp_path / "tags.csv", "--masks", scenes / "masks", "-o",
         tmp_path / "run", "--effort", "quick", *words, *TINY)  # fmt: skip
    scores = {(s["name"], s["stamp"]["split"]): s for s in RunFolder(tmp_path / "run").metrics()["scores"]}
    cam, segmenter = scores["cam", "val"], scores["segmenter", "val"]
    assert cam["stamp"]["left_out"] == 1 and segmenter["stamp"]["images"] == cam["stamp"]["images"] + 1
    assert (tmp_path / "run" / "predictions" / f"{held}.png").is_file(), "untagged photos are predicted"


def test_evaluate_says_every_score_that_there_is() -> None:
    (what,) = [option for option in VERBS["evaluate"].params if option.name == "what"]
    assert [name for name in (*SCORES, *SPECIAL) if name not in re.split(r"[^a-z+]+", what.help)] == []
