"""The verbs as a user types them, on drawn scenes and an untrained encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import tagmask
from tagmask.cli import app
from tagmask.data import write_demo
from tagmask.errors import ConfigError, DataError

TINY = [
    "encoder.name=resnet18", "encoder.weights=none", "views.crop=64", "train.steps=4", "train.batch_size=4",
    "train.workers=0", "train.accelerator=cpu", "method.warmup=2", "method.head_options={hidden: 16}",
    "label.cam_scales=[1.0]", "evaluate.bootstrap=20",
]  # fmt: skip


def call(*words: object, ok: bool = True) -> Result:
    result = CliRunner().invoke(app, [str(w) for w in words])
    if ok:
        assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_demo(folder, images=20, size=(64, 80), seed=3)
    return folder


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `tagmask run` on scenes with masks."""
    out = tmp_path_factory.mktemp("runs") / "first"
    call("run", scenes, "--masks", scenes / "masks", "-o", out, *SPLITS, *TINY)
    return out


SPLITS = ["data.train=train.txt", "data.val=val.txt", "data.test=test.txt"]


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
    assert 0 <= metrics["classification"]["map"] <= 1
    labelled = (scenes / "train.txt").read_text().split() + (scenes / "val.txt").read_text().split()
    assert {p.stem for p in (run / "masks").glob("*.png")} == {Path(n).stem for n in labelled}
    mask = Image.open(next((run / "masks").glob("*.png")))
    assert mask.mode == "P" and mask.size == (80, 64)
    assert "<html" in (run / "report.html").read_text()
    assert json.loads((run / "fingerprint.json").read_text())["counts"]["images"] == 20


def test_masks_hold_only_tagged_classes(run: Path, scenes: Path) -> None:
    collection = tagmask.workflow.reopen(tagmask.training.RunFolder(run), tagmask.load_config(run / "config.yaml"))
    for item in collection.split("train"):
        labels = set(np.unique(np.array(Image.open(run / "masks" / f"{item.id}.png"))).tolist())
        assert labels <= {0, 255} | {t + 1 for t in item.tags or ()}


def test_evaluate_again_gives_the_same_and_prints_the_protocol(run: Path) -> None:
    before = {s["name"]: s["miou"] for s in json.loads((run / "metrics.json").read_text())["scores"]
              if s["protocol"]["split"] == "test"}  # fmt: skip
    scores = json.loads(call("evaluate", run, "--split", "test", "--json").stdout)
    assert {s["name"]: s["miou"] for s in scores} == before
    text = " ".join(call("evaluate", run, "--split", "test").output.split())
    assert "no tags" in text and "seed 0" in text


def test_with_tags_is_labelled_as_such(run: Path) -> None:
    text = call("evaluate", run, "--split", "test", "--what", "segmenter+tags").output
    assert "tags at test" in " ".join(text.split())


def test_predict_writes_masks_of_new_photos_and_lists_broken_ones(run: Path, scenes: Path, tmp_path: Path) -> None:
    photos = tmp_path / "new"
    photos.mkdir()
    Image.open(next((scenes / "images").iterdir())).save(photos / "good.png")
    (photos / "bad.jpg").write_bytes(b"not an image")
    result = call("predict", run, photos, "-o", tmp_path / "out", "--overlay", ok=False)
    assert result.exit_code == 1 and "bad.jpg" in result.output
    assert (tmp_path / "out" / "good.png").is_file() and (tmp_path / "out" / "good_overlay.jpg").is_file()
    again = json.loads(call("predict", run, photos / "good.png", "-o", tmp_path / "out", "--json").stdout)
    assert again["skipped"] == 1 and again["written"] == 0


def test_tiles_agree_with_the_whole_photo_in_shape(run: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (150, 230, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    call("predict", run, tmp_path / "large.png", "-o", tmp_path / "out", "-s", "label.tile=96")
    assert Image.open(tmp_path / "out" / "large.png").size == (230, 150)


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


def test_supervised_learns_from_the_masks_of_another_run(run: Path, scenes: Path, tmp_path: Path) -> None:
    words = [w for w in TINY if not w.startswith("method.warmup")]
    call("train", scenes, "-m", "supervised", "-o", tmp_path / "second", f"data.train_masks={run / 'masks'}", *SPLITS,
         "--masks", scenes / "masks", *words)  # fmt: skip
    scores = json.loads(call("evaluate", tmp_path / "second", "--split", "test", "--json").stdout)
    assert [s["name"] for s in scores] == ["segmenter"]


def test_photos_and_a_table_are_enough(scenes: Path, tmp_path: Path) -> None:
    """As a new user would: no masks, no splits, no settings of data."""
    result = json.loads(call("run", scenes / "images", "--tags", scenes / "tags.csv", "-o", tmp_path / "r", "--json",
                             *TINY).stdout)  # fmt: skip
    assert result["scores"] == [] and result["masks"]["written"] == 20 and Path(result["report"]).is_file()
    assert 0 <= result["classification"]["map"] <= 1


def test_dry_run_shows_the_plan_and_writes_nothing(scenes: Path, tmp_path: Path) -> None:
    result = json.loads(call("run", scenes, "--dry-run", "--json", "-o", tmp_path / "r", "train.lr=0.5").output)
    assert result["config"]["train"]["lr"] == 0.5 and "train.lr" not in result["plan"]
    assert result["plan"]["views.crop"] == 96 and not (tmp_path / "r").exists()


def test_check_reports_broken_files(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"broken")
    (folder / "tags.csv").write_text("image,tags\na.png,cat\nb.png,dog\nc.png,cat\n")
    found = json.loads(call("check", folder, "--json").stdout)
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
    result = call(*words, ok=False)
    assert isinstance(result.exception, error)
    with pytest.raises(error, match=message):
        raise result.exception
