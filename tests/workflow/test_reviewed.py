"""``run --reviewed``: a run again, with what people decided about its photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.config import load_config
from tagmask.data import read_mask
from tagmask.data.review import Journal
from tagmask.errors import ConfigError, DataError
from tagmask.files import read_record
from tagmask.workflow import Run, corrected_masks, gain, reviewed_settings, run
from tagmask.workflow.train import training_items
from tests.workflow.conftest import BASE


@pytest.fixture(scope="module")
def first(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two rounds; its review has a drawn mask, other tags and a rejected photo."""
    out = tmp_path_factory.mktemp("reviewed") / "first"
    data = {"root": str(scenes), "train": "train.txt", "test": "test.txt", "masks": "masks"}
    stages = {"masks": {"source": "segmenter"}, "segmenter": {}, "rounds": {"count": 2}}
    run([BASE, {"data": data, "stages": stages, "seed": 5}], {}, [], out)
    train = [item.id for item in Run(out).collection.split("train")]
    journal = Journal(out)
    journal.add(train[0], "mask", labels=np.full((64, 80), 2, dtype=np.uint8))
    journal.add(train[1], "tags", Run(out).collection.classes[:1])
    journal.add(train[2], "reject")
    return out


def test_a_run_learns_what_people_decided(first: Path, tmp_path: Path) -> None:
    out = tmp_path / "second"
    words = ["run", "--reviewed", str(first), "-o", str(out), "--json", "train.log_every=1"]
    result = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
    before, after = Run(first), Run(out)
    drawn, retagged, rejected, *_ = [item.id for item in before.collection.split("train")]
    assert after.collection.item(retagged).tags == (0,) != before.collection.item(retagged).tags
    for name in ("round1/masks", "round2/masks", "masks"):
        assert (read_mask(out / name / f"{drawn}.png", 99) == 2).all(), name
        assert not (out / name / f"{rejected}.png").exists() and (out / name / f"{retagged}.png").is_file(), name
        assert set(read_mask(out / name / f"{retagged}.png", 99).unique().tolist()) <= {0, 1}, name
    # All else is as it was: the settings, and what is held out.
    assert after.config.stages == before.config.stages and after.config.seed == before.config.seed == 5
    assert {k: v for k, v in after.collection.splits.items() if k != "train"} == {
        k: v for k, v in before.collection.splits.items() if k != "train"
    }
    found = {(row["name"], row["split"]) for row in result["gain"]}
    assert found == {("segmenter", "val"), ("segmenter", "test"), ("masks", "val")}
    train = next(s for s in after.folder.metrics()["scores"] if s["name"] == "masks" and s["stamp"]["split"] == "train")
    assert drawn not in train["images"] and retagged in train["images"], "what a person drew is no result"
    assert train["stamp"]["run"]["supervision"] == "tags + review"
    scores = {s["stamp"]["split"]: s["miou"] for s in read_record(out / "segmenter" / "metrics.json")["scores"]}
    row = next(row for row in result["gain"] if (row["name"], row["split"]) == ("segmenter", "test"))
    assert row["after"] == scores["test"]
    # Later decisions change nothing of what it learned.
    Journal(first).add(drawn, "reject")
    assert Run(out).collection.split("train") == after.collection.split("train")
    # Its own review goes on from there.
    Journal(out).add(retagged, "reject")
    config = reviewed_settings(out, tmp_path / "third")
    decisions = Journal(config["data"]["reviewed"]).decisions()
    assert decisions[drawn].mask is not None and decisions[drawn].mask.is_file()
    assert decisions[retagged].verdict == "reject"
    # It may be stopped, go on, and lie elsewhere.
    words = ["run", "--resume", "--reviewed", str(first), "-o", str(out), "--json"]
    assert json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)["gain"] == result["gain"]
    moved = Run(out.rename(tmp_path / "moved"))
    assert moved.collection.item(drawn).corrected == moved.folder.path / "reviewed" / decisions_file(moved, drawn)
    assert moved.last.collection.item(retagged).tags == (0,)
    # Its masks are of the tags that it learned: to be taken away, too.
    taken = corrected_masks(moved, tmp_path / "taken")
    assert taken["retagged"] == 0 and taken["drawn"] == 1 and (tmp_path / "taken" / f"{drawn}.png").is_file()
    # A mask that does not fit its photo is said before anything trains.
    Journal(moved.folder.path).add(drawn, "mask", labels=np.zeros((3, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="3x3 pixels, its photo"):
        reviewed_settings(moved, tmp_path / "fourth")
    assert not (tmp_path / "fourth").exists()


def decisions_file(opened: Run, photo: str) -> str:
    """The photo's drawn mask in the journal that the run learned from, as that names it."""
    entries = Journal(opened.folder.path / "reviewed").entries()
    return next(entry.mask for entry in entries if entry.photo == photo and entry.mask is not None)


def test_masks_that_people_drew_teach_a_segmenter_without_stages(first: Path, scenes: Path, tmp_path: Path) -> None:
    drawn = Run(first).collection.split("train")[0].id
    journal = Journal(tmp_path / "review")
    journal.add(drawn, "mask", labels=np.full((64, 80), 2, dtype=np.uint8))
    data = {"root": str(scenes), "train": "train.txt", "train_masks": str(first / "masks")}
    data["reviewed"] = str(journal.folder)
    config = load_config(BASE, {"data": data, "method": {"name": "supervised"}})
    opened = Run(tmp_path / "run", config)
    opened.begin(save=False)
    items = {item.id: item.mask for item in training_items(opened)[0]}
    assert items[drawn] == journal.decisions()[drawn].mask
    assert {path for id, path in items.items() if id != drawn} == {
        first / "masks" / f"{id}.png" for id in items if id != drawn
    }


def test_what_cannot_be_reviewed_again_is_said(first: Path, tmp_path: Path, scenes: Path) -> None:
    with pytest.raises(ConfigError, match="holds a run already"):
        reviewed_settings(first, first)
    with pytest.raises(ConfigError, match="leave --reviewed away"):
        reviewed_settings(first, first, resume=True)
    kept = read_record(first / "fingerprint.json"), sorted(tmp_path.iterdir())
    planned = reviewed_settings(first, tmp_path / "other", keep=False)
    assert Journal(planned["data"]["reviewed"]).decisions().keys() == Journal(first).decisions().keys()
    assert (read_record(first / "fingerprint.json"), sorted(tmp_path.iterdir())) == kept, "nothing is written"
    plain = tmp_path / "plain"
    run([BASE, {"data": {"root": str(scenes)}}], {}, [], plain)
    with pytest.raises(DataError, match="nobody has reviewed this run; 'tagmask view"):
        reviewed_settings(plain, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_masks_are_taken_away_as_the_review_leaves_them(first: Path, tmp_path: Path) -> None:
    run_, out = Run(first), tmp_path / "masks"
    drawn, retagged, rejected, *rest = [item.id for item in run_.collection.split("train")]
    made = {path.relative_to(first / "masks").as_posix() for path in (first / "masks").rglob("*.png")}
    shown = CliRunner().invoke(app, ["review", str(first), "--masks", str(out)], catch_exceptions=False).stdout
    decisions = Journal(first).decisions()
    left = {f"{id}.png" for id in (retagged, *(id for id, d in decisions.items() if d.verdict == "reject"))}
    assert {path.name for path in out.glob("*.png")} == made - left and f"{out}: {len(made - left)} masks" in shown
    for id in rest:
        assert (read_mask(out / f"{id}.png", 99) == read_mask(first / "masks" / f"{id}.png", 99)).all()
    assert read_record(out / "classes.json")["classes"][1:] == run_.collection.classes
    with pytest.raises(DataError, match="not empty"):
        corrected_masks(first, out)


def test_scores_of_other_photos_are_not_compared(first: Path, scenes: Path, tmp_path: Path) -> None:
    data = {"root": str(scenes), "train": "train.txt", "val": "test.txt", "test": "val.txt", "masks": "masks"}
    run([BASE, {"data": data}], {}, [], tmp_path / "other")
    assert gain(first, tmp_path / "other") == []
