"""The verbs as a user types them, on drawn scenes and an untrained encoder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tagmask.workflow.score_run import SPECIAL
from tagmask.workflow.scoring import SCORES
from typer.main import get_command

import tagmask
from tagmask.cli import app
from tagmask.errors import ConfigError, DataError, WeightsError
from tagmask.training import RunFolder
from tagmask.workflow import reopen
from tests.cli.calls import SPLITS, TINY, call, raise_error


@pytest.mark.parametrize(
    "verb",
    ["demo", "check", "run", "train", "label", "predict", "evaluate", "report", "reproduce", "methods", "doctor"],
)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    assert f"tagmask {verb}" in call(verb, "--help").output


def test_run_writes_masks_model_scores_and_report(run: Path, scenes: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    found = {(s["name"], s["protocol"]["split"], s["protocol"]["tags_at_test"]) for s in metrics["scores"]}
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
    assert json.loads((run / "fingerprint.json").read_text())["counts"]["images"] == 20


def test_evaluate_again_gives_the_same_and_prints_the_protocol(run: Path) -> None:
    before = {s["name"]: s["miou"] for s in json.loads((run / "metrics.json").read_text())["scores"]
              if s["protocol"]["split"] == "test"}  # fmt: skip
    scores = json.loads(call("evaluate", run, "--split", "test", "--json").stdout)
    assert {s["name"]: s["miou"] for s in scores} == before
    text = " ".join(call("evaluate", run, "--split", "test").output.split())
    assert "no tags" in text and "seed 0" in text and "precision recall" in text


def test_with_tags_is_labelled_as_such(run: Path) -> None:
    text = " ".join(call("evaluate", run, "--split", "test", "--with-tags").output.split())
    assert "segmenter+tags, test" in text and "tags at test" in text and "no tags" not in text
    (score,) = json.loads(call("evaluate", run, "--split", "test", "--what", "segmenter+tags", "--json").stdout)
    assert (score["name"], score["protocol"]["tags_at_test"]) == ("segmenter+tags", True)


def test_a_mean_over_chosen_classes(run: Path) -> None:
    names = tagmask.load(run).classes[:2]
    words = ("evaluate", run, "--split", "test", f"evaluate.only=[{', '.join(names)}]")
    (score,) = json.loads(call(*words, "--json").stdout)
    ious = [score["per_class"][name]["iou"] for name in names]
    assert score["only"] == names and score["c_miou"] == pytest.approx(sum(ious) / 2) != score["miou"]
    assert score["interval_c_miou"]["low"] <= score["interval_c_miou"]["high"]
    assert f"C-mIoU of {', '.join(names)}" in call(*words, env={"COLUMNS": "200"}).output
    call("report", run)
    assert "C-mIoU of" in (run / "report.html").read_text()
    with pytest.raises(ConfigError, match="evaluate.only.*nonsense"):
        raise_error("evaluate", run, "evaluate.only=[nonsense]")


METHODS = {
    "afa": ["encoder.name=vit_tiny_patch16_224", "method.affinity_warmup=3"],
    "tscd": ["encoder.name=resnet18"],
    "cosa": ["encoder.name=resnet18"],
    "supervised": ["encoder.name=resnet18"],
}


@pytest.mark.parametrize("name", METHODS)
def test_run_plans_for_any_method(name: str, scenes: Path, tmp_path: Path) -> None:
    """Only what makes it tiny is set; everything that fits the method comes from the plan."""
    tiny = [
        "encoder.weights=none",
        "views.crop=64",
        "train.steps=4",
        "train.batch_size=4",
        "train.workers=0",
        "train.accelerator=cpu",
        "label.cam_scales=[1.0]",
        "evaluate.bootstrap=0",
    ]
    words = [scenes, "--masks", scenes / "masks", "-m", name, "-o", tmp_path / "run", *SPLITS, *tiny, *METHODS[name]]
    result = json.loads(call("run", *words, "--json").stdout)
    assert ("segmenter", "test") in {(s["name"], s["protocol"]["split"]) for s in result["scores"]}
    assert result["masks"]["written"] > 0 and Path(result["report"]).is_file()
    config = tagmask.load_config(tmp_path / "run" / "config.yaml")
    assert config.method.name == name and config.train.warmup < 4
    if name != "supervised":
        assert config.method.warmup == 1  # type: ignore[attr-defined]
        last = RunFolder(tmp_path / "run").log()
        assert set([r for r in last if "losses" in r][-1]["losses"]) > {"cls", "total"}, "the second phase was reached"


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
    with pytest.raises(DataError, match="none of this model's classes"):
        segmenter.cams(photo, ["nonsense"])
    assert "baseline" in tagmask.list_methods() and tagmask.list_encoders("resnet50") == ["resnet50"]


def test_photos_and_a_table_are_enough(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new user would: no masks, no splits, no settings of data."""
    result = json.loads(call("run", scenes / "images", "--tags", scenes / "tags.csv", "-o", tmp_path / "r", "--json",
                             *TINY).stdout)  # fmt: skip
    assert result["scores"] == [] and result["masks"]["written"] == 20 and Path(result["report"]).is_file()
    assert 0 <= result["classification"]["val"]["map"] <= 1
    assert "mAP" in call("evaluate", tmp_path / "r").stdout, "without masks there is the classifier's score"
    monkeypatch.setattr("tagmask.workflow.score_run.Scorer", None)  # said before any photo is looked at
    with pytest.raises(DataError, match="no true masks"):
        raise_error("evaluate", tmp_path / "r", "--what", "cam")


def test_dry_run_shows_the_plan_and_writes_nothing(scenes: Path, tmp_path: Path) -> None:
    words = ("run", scenes, "--dry-run", "--json", "-o", tmp_path / "r", "train.lr=0.5")
    result = json.loads(call(*words, "--weights", "none").output)
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
        (["train", "/nonexistent/photos"], ConfigError, "no such folder"),
        (["train", "-c", "demoo"], ConfigError, "demo"),
        (["train", "-m", "basline"], ConfigError, "baseline"),
        (["evaluate", "/nonexistent"], DataError, "not a run folder"),
        (["reproduce", "msrc14/baselin"], ConfigError, "msrc14/baseline"),
    ],
)
def test_wrong_words_name_what_is_wrong(words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        raise_error(*words)


def test_nothing_that_training_decided_is_overridden_later(run: Path) -> None:
    for word in ("seed=7", "method.name=supervised", "encoder.name=resnet34", "data.val_share=0.5"):
        with pytest.raises(ConfigError, match=f"{word.partition('=')[0]}.* was decided"):
            raise_error("evaluate", run, word)
    call("evaluate", run, "label.threshold=0.2", "--what", "cam", "--json")


def test_a_run_keeps_its_data(scenes: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(scenes / "images", photos)
    table = (scenes / "tags.csv").read_text()
    (photos / "tags.csv").write_text(table)
    call("train", photos, "-o", tmp_path / "run", *TINY)
    before = reopen(RunFolder(tmp_path / "run"), tagmask.load_config(tmp_path / "run" / "config.yaml")).splits
    shutil.copy(next((scenes / "images").iterdir()), photos / "new.png")
    (photos / "tags.csv").write_text(table + "new.png,\n")
    after = reopen(RunFolder(tmp_path / "run"), tagmask.load_config(tmp_path / "run" / "config.yaml"))
    assert after.splits == before and after.item("new").tags == ()
    (photos / "tags.csv").write_text(table + "new.png,unheard_of\n")
    with pytest.raises(DataError, match="unheard_of.*trained on"):
        raise_error("label", tmp_path / "run")


def test_a_run_among_the_photos_is_refused(scenes: Path) -> None:
    with pytest.raises(DataError, match="lies in the data's folder"):
        raise_error("train", scenes, "-o", scenes / "runs", *TINY)
    assert not (scenes / "runs").exists()


def test_resume_goes_on_with_the_saved_settings(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    call("train", scenes, "-o", out, *SPLITS, *TINY)
    shutil.rmtree(out / "model")
    for checkpoint in (out / "checkpoints").glob("*"):
        checkpoint.unlink()
    with pytest.raises(ConfigError, match="train.lr differ"):
        raise_error("train", "--resume", "-o", out, "train.lr=0.5")
    call("train", "--resume", "-o", out, "train.workers=1")
    assert (out / "model" / "weights.safetensors").is_file()
    with pytest.raises(ConfigError, match="--resume"):
        raise_error("run", scenes, "-o", out, *TINY)
    result = json.loads(call("run", "--resume", "-o", out, "--json").stdout)
    assert Path(result["report"]).is_file() and result["masks"]["written"] > 0
    again = json.loads(call("run", "--resume", "-o", out, "--json").stdout)
    assert again["masks"]["written"] == 0 and again["masks"]["skipped"] == result["masks"]["written"]


def test_held_out_photos_without_tags_are_counted_not_fatal(scenes: Path, tmp_path: Path) -> None:
    rows = (scenes / "tags.csv").read_text().splitlines()
    held = Path((scenes / "val.txt").read_text().split()[0]).stem
    (tmp_path / "tags.csv").write_text("\n".join(row for row in rows if held not in row) + "\n")
    words = [f"data.{name}={scenes / name}.txt" for name in ("train", "val", "test")]
    call("run", scenes / "images", "--tags", tmp_path / "tags.csv", "--masks", scenes / "masks", "-o",
         tmp_path / "run", *words, *TINY)  # fmt: skip
    scores = {(s["name"], s["protocol"]["split"]): s for s in RunFolder(tmp_path / "run").metrics()["scores"]}
    cam, segmenter = scores["cam", "val"], scores["segmenter", "val"]
    assert cam["protocol"]["left_out"] == 1
    assert segmenter["protocol"]["images"] == cam["protocol"]["images"] + 1
    assert (tmp_path / "run" / "predictions" / f"{held}.png").is_file(), "untagged photos are predicted"


@pytest.mark.slow
def test_two_processes_train_one_model(scenes: Path, tmp_path: Path) -> None:
    words = ["-m", "tagmask", "run", scenes, "--masks", scenes / "masks", "-o", tmp_path / "run", *SPLITS, *TINY]
    ran = subprocess.run([sys.executable, *map(str, words), "train.devices=2"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert RunFolder(tmp_path / "run").log()[-1]["step"] == 4
    assert (tmp_path / "run" / "report.html").is_file()


def test_evaluate_says_every_score_that_there_is() -> None:
    command = get_command(app).commands["evaluate"]  # type: ignore[attr-defined]
    (what,) = [option for option in command.params if option.name == "what"]
    assert [name for name in (*SCORES, *SPECIAL) if name not in re.split(r"[^a-z+]+", what.help)] == []
