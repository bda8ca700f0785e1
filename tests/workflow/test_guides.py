"""A run whose masks are guided by saliency: what is made of it, and what says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tagmask.config import load_config
from tagmask.data import fingerprint, open_data
from tagmask.errors import WeightsError
from tagmask.evaluate.stamp import headline
from tagmask.files import read_record, write_json
from tagmask.training import RunFolder
from tagmask.workflow import Run, evaluate, label, run
from tagmask.workflow.plan import choose
from tagmask.workflow.stamp import MASKS_NOTE, keep_masks_note, learned_guided, supervision_of
from tests.small_onnx import write_saliency
from tests.workflow.conftest import BASE


def test_masks_and_scores_say_that_they_are_of_more_than_tags(scenes: Path, tmp_path: Path) -> None:
    network = write_saliency(tmp_path / "places" / "net.onnx")
    data = {"root": str(scenes), "train": "train.txt", "val": "val.txt", "masks": "masks"}
    stages = {"masks": {"source": "segmenter"}, "segmenter": {}, "rounds": {"count": 2}}
    guided = {"data": data, "stages": stages, "guides": {"saliency": str(network)}}
    out = tmp_path / "run"
    result = run([BASE, guided], {}, [], out)
    assert result["masks"]["written"] and {"masks", "final masks"} <= result["minutes"].keys()
    for folder in (out / "round1" / "masks", out / "round2" / "masks", out / "masks"):
        assert read_record(folder / "classes.json")["settings"]["guides.saliency"] == "net", folder
    # The classifier learned from tags, the segmenter from masks that saliency helped to make.
    scores = {s["name"]: s["stamp"] for s in evaluate(out / "segmenter", "val", ["segmenter", "segmenter+tags"])}
    assert read_record(out / "model" / "classes.json")["supervision"] == "tags"
    assert scores["segmenter"]["run"]["supervision"] == "masks of tags + saliency"
    assert "guides.saliency" not in scores["segmenter"]["settings"], "new photos are segmented without it"
    assert "tags and saliency given" in headline("segmenter+tags", scores["segmenter+tags"])
    # What learns from masks of a segmenter that learned from such masks has saliency at second hand.
    label(out / "segmenter", "val", overrides=["guides.saliency=null"])
    third = RunFolder(tmp_path / "third")
    keep_masks_note(third, out / "segmenter" / "masks")
    assert learned_guided(third) and "guides.saliency" not in read_record(third.path / MASKS_NOTE)["settings"]
    # True masks stay true masks, through masks of masks; tags alone are not repeated.
    about, before = read_record(out / "model" / "classes.json"), None
    for name, supervision in (("taught", "true masks"), ("second", "masks"), ("last", "masks")):
        folder = RunFolder(tmp_path / name)
        folder.save(Run(out).config)
        write_json(folder.model / "classes.json", about | {"supervision": supervision})
        shutil.copytree(out / "segmenter" / "masks", folder.masks)
        if before is not None:
            keep_masks_note(folder, before.masks)
        before = folder
    assert supervision_of(Run(tmp_path / "last")) == "masks of true masks"
    # It is left out when the run is used, and then nothing says so.
    plain = label(out, "val", tmp_path / "plain", overrides=["guides.saliency=null", "label.soft=true"])
    salient = label(out, "val", tmp_path / "salient", overrides=["label.soft=true"])
    assert "guides.saliency" not in read_record(plain.folder / "classes.json")["settings"]
    for path in plain.folder.glob("*.npz"):
        one, other = (dict(np.load(made.folder / path.name)) for made in (plain, salient))
        assert one.keys() == other.keys() and any((one[key] != other[key]).any() for key in one)
    assert list(plain.folder.glob("*.npz"))


def test_a_network_that_is_not_there_stops_a_run_before_it_trains(scenes: Path, tmp_path: Path) -> None:
    given = {"data": {"root": str(scenes)}, "guides": {"saliency": str(tmp_path / "gone.onnx")}}
    with pytest.raises(WeightsError, match=r"gone\.onnx: no such file"):
        run([BASE, given], {}, [], tmp_path / "run", dry_run=True)


def test_the_most_effort_takes_saliency_where_it_is_at_hand(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TAGMASK_WEIGHTS", raising=False)
    found = fingerprint(open_data(load_config({"data": {"root": str(scenes)}}).data))

    def planned(effort: str, **given: object) -> object:
        given = {"encoder": {"name": "resnet18", "weights": "none"}, **given}
        choices = {c.key: c.value for c in choose(found, torch.device("cpu"), given, effort=effort)}  # type: ignore[arg-type]
        return choices.get("guides.saliency")

    assert planned("best") is None
    write_saliency(tmp_path / ".u2net" / "u2netp.onnx")
    assert planned("best") == "u2netp" and planned("standard") is None
    assert planned("best", guides={"saliency": None}) is None, "tags alone, as asked"
    assert planned("best", method={"name": "supervised"}) is None
