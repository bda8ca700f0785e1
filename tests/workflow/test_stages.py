"""Staged runs on drawn scenes and an untrained encoder: what each stage makes, from what, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.config import RunConfig, load_config
from tagmask.data import Item, write_mask
from tagmask.errors import WeightsError
from tagmask.files import read_json, write_json
from tagmask.label import load
from tagmask.methods import build_method
from tagmask.training import RunFolder, load_model
from tagmask.workflow import Run, evaluate, label, predict, run, timing
from tagmask.workflow.stage_labels import kept_classes
from tagmask.workflow.stages import Stages, stage_configs
from tagmask.workflow.train import training_items
from tests.workflow.conftest import STAGES, made, through_stages


def changed(config: RunConfig, stages: Any) -> RunConfig:
    """A configuration with other stages in the place of its own."""
    return load_config(config.model_dump(mode="json") | {"stages": stages})


def test_every_stage_leaves_its_outputs(staged: Path) -> None:
    opened = Run(staged)
    items = opened.collection.split("train")
    for folder in ("seeds", "masks"):
        assert {p.stem for p in (staged / folder).glob("*.png")} == {item.id for item in items}
    for item in items:
        allowed = {0} | {t + 1 for t in item.tags or ()}
        for folder, extra in (("seeds", {255}), ("masks", set())):
            values = set(np.unique(np.array(Image.open(staged / folder / f"{item.id}.png"))).tolist())
            assert values <= allowed | extra, (folder, item.id)
    assert not list(staged.rglob("*.npz")), "no soft maps unless asked"
    sub = RunFolder(staged / "segmenter").config()
    assert sub.method.name == "supervised" and sub.stages is None
    assert sub.data.train_masks == staged / "masks"
    learned, _ = training_items(Stages(opened).part("affinity"))
    assert learned and all(item.mask == staged / "seeds" / f"{item.id}.png" for item in learned)


def test_scores_of_a_staged_run_say_how_its_labels_were_made(staged: Path, tmp_path: Path) -> None:
    opened = Run(staged)
    found = evaluate(opened, "train", ["masks", "seeds"], record=tmp_path)
    masks, seeds = ({s["name"]: s for s in found}[name] for name in ("masks", "seeds"))
    settings = masks["stamp"]["settings"]
    assert settings["stage.affinity"] == "irn" and settings["stage.walk"]["walk_steps"] == 16
    assert not any(key.startswith(("label.threshold", "label.refine", "label.scales")) for key in settings)
    assert masks["stamp"]["run"]["supervision"] == "tags" and masks["stamp"]["tags"]
    settings = seeds["stamp"]["settings"]
    assert (settings["stage.high"], settings["stage.low"], settings["stage.crf"]) == (0.6, 0.3, "none")
    assert seeds["stamp"]["threshold"] is None
    assert seeds["coverage"] < masks["coverage"] == 1
    (of_segmenter,) = evaluate(Stages(opened).last, "test", record=tmp_path)
    learned = of_segmenter["stamp"]["run"]
    assert of_segmenter["name"] == "segmenter" and learned["supervision"] == "masks"
    assert (learned["masks"]["method"], learned["masks"]["encoder"]) == ("baseline", "test_resnet")
    assert learned["masks"]["stage"]["affinity"] == "irn" and learned["masks"]["settings"]["label.cam_scales"] == [1.0]
    assert str(staged) not in json.dumps(of_segmenter["stamp"]), "nobody else has this folder"


def test_weights_of_later_stages_are_missed_before_the_first_training(config: RunConfig, tmp_path: Path) -> None:
    values = config.model_dump(mode="json")
    lacking = load_config(values, {"stages": {"segmenter": {"encoder": {"weights": "nowhere.pth"}}}})
    for dry_run in (True, False):
        with pytest.raises(WeightsError, match=r"nowhere\.pth"):
            run([lacking.model_dump(mode="json")], {}, [], tmp_path / "run", dry_run=dry_run)
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "log.jsonl").exists()


def test_untagged_photos_are_predicted_by_the_segmenter_of_the_stages(
    config: RunConfig, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("tagmask.workflow.run"), "report", lambda *args, **options: None)
    out, scenes = tmp_path / "run", tmp_path / "scenes"
    shutil.copytree(staged, out)
    shutil.copytree(config.data.root, scenes)  # type: ignore[arg-type]
    shutil.copy(next((scenes / "images").iterdir()), scenes / "images" / "bare.png")
    result = run([], {"data": {"root": str(scenes)}}, [], out, resume=True)
    assert result["predictions"]["written"] == 1 and (out / "predictions" / "bare.png").is_file()
    note, about = (read_json(out / part / "classes.json") for part in ("predictions", "segmenter/model"))
    assert note["model"] == about["digest"] and not note["tags"]
    write_json(out / "predictions" / "classes.json", note | {"model": "of another"})  # as after it was trained again
    assert run([], {"data": {"root": str(scenes)}}, [], out, resume=True)["predictions"]["written"] == 1
    assert read_json(out / "predictions" / "classes.json") == note


def test_photos_that_cannot_be_labelled_are_said(config: RunConfig, classifier: Path, tmp_path: Path) -> None:
    opened = Run(shutil.copytree(classifier, tmp_path / "run"), changed(config, STAGES[:2]))
    collection = opened.collection
    first, *_ = collection.splits["train"]
    items = [replace(i, image=tmp_path / "gone.png") if i.id == first else i for i in collection.items]
    opened.collection = replace(collection, items=items)
    console = Console(file=io.StringIO(), width=300)
    done = through_stages(opened, console)
    assert [entry["file"] for entry in done["cams"]["failed"]] == [str(tmp_path / "gone.png")]
    assert str(tmp_path / "gone.png") in console.file.getvalue()  # type: ignore[attr-defined]


def test_masks_without_an_affinity_are_refined_cams(config: RunConfig, classifier: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(classifier, tmp_path / "run"))
    opened = Run(out, changed(config, {"masks": {"crf": "psa", "soft": True}}))
    assert set(through_stages(opened)) == {"train", "masks"} and not (out / "seeds").exists()
    path = next((out / "masks").glob("*.npz"))
    with np.load(path) as saved:
        assert saved["scores"].dtype == np.float16 and saved["scores"].shape[1:] == (64, 80)
        names = json.loads(str(saved["classes"]))
        assert names[0] == "background" and len(names) == len(saved["scores"])
    (score,) = evaluate(opened, "train", ["masks"])
    settings = score["stamp"]["settings"]
    assert settings["label.refine"] == "par" and settings["stage.crf"] == "psa"
    assert "label.complete" not in settings, "a stage's masks are not completed"


def test_refined_masks_may_have_a_background_of_their_own(config: RunConfig, classifier: Path, tmp_path: Path) -> None:
    share = {}
    for threshold in (None, 0.05, 0.9):
        out = Path(shutil.copytree(classifier, tmp_path / str(threshold)))
        opened = Run(out, changed(config, {"masks": {"threshold": threshold}}))
        through_stages(opened)
        share[threshold] = np.mean([np.mean(np.array(Image.open(p)) == 0) for p in (out / "masks").glob("*.png")])
        (score,) = evaluate(opened, "train", ["masks"])
        assert score["stamp"]["threshold"] == (threshold or config.label.threshold)
    assert share[0.05] < share[None] < share[0.9]


def test_a_segmenter_may_start_from_the_classifier(config: RunConfig, classifier: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(classifier, tmp_path / "run"))
    own = {"method": {"head": "largefov", "head_options": {"hidden": 16}}, "encoder": {"weights": "classifier"}}
    values = changed(config, ["classifier", "masks", {"segmenter": own}])
    before = stage_configs(values, RunFolder(tmp_path / "not_there"))["segmenter"]
    assert before.encoder.weights == "none", "nothing is trained yet: as the run"
    started = stage_configs(values, RunFolder(out))["segmenter"]
    source = load_model(out / "model")[0].encoder.state_dict()
    encoder = build_method(started, 4).encoder
    assert all(torch.equal(value, source[key]) for key, value in encoder.state_dict().items())
    through_stages(Run(out, values))
    origin = read_json(out / "segmenter" / "model" / "classes.json")["weights_origin"]
    digest = read_json(out / "model" / "classes.json")["digest"]
    assert origin == f"encoder of baseline {digest} from tags (none (random))"
    before_the_move = made(out)
    moved = out.rename(tmp_path / "moved")
    through_stages(Run(moved, values))  # nothing is left to do, wherever the run lies
    assert made(moved) == before_the_move


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
    steps = ["check", "suspects", "train", "cams", "affinity", "masks", "segmenter", "evaluate", "predict", "report"]
    assert list(result["minutes"]) == steps
    assert result["model"] == str(out / "segmenter" / "model") and Path(result["report"]).is_file()

    def key(score: dict[str, Any]) -> tuple[str, str, str]:
        return score["name"], score["stamp"]["split"], score["stamp"]["run"]["method"]

    scores = {key(score): score["miou"] for score in result["scores"]}
    assert {("masks", "train", "rcm_mam"), ("segmenter", "test", "supervised")} <= set(scores)
    assert RunFolder(out / "affinity").config().method.name == "affinity_net"
    again = json.loads(CliRunner().invoke(app, ["run", "--resume", "-o", str(out), "--json"]).stdout)
    assert again["masks"]["written"] == 0 and again["masks"]["skipped"] == result["masks"]["written"]
    assert {key(score): score["miou"] for score in again["scores"]} == scores
    for path in (out / "masks").iterdir():
        path.unlink()
    words = ["run", "--resume", "-o", str(out), "--json", "stages.masks.walk.walk_steps=2", "stages.segmenter=null"]
    other = json.loads(CliRunner().invoke(app, words).stdout)
    assert other["masks"]["written"] == result["masks"]["written"] and "segmenter" not in other["stages"]
    assert read_json(out / "masks" / "classes.json")["stage"]["walk"]["walk_steps"] == 2


def test_rounds_teach_segmenters_with_masks_of_the_one_before(
    config: RunConfig, classifier: Path, tmp_path: Path
) -> None:
    own = {"method": {"head": "largefov", "head_options": {"hidden": 16}}}
    stages = ["classifier", {"masks": {"source": "segmenter"}}, {"segmenter": own}, {"rounds": {"count": 2}}]
    values = changed(config, stages)
    out = Path(shutil.copytree(classifier, tmp_path / "run"))
    opened = Run(out, values)
    steps = through_stages(opened)
    assert list(steps) == ["train", "masks", "round 1", "round 2", "final masks"]
    first, last = (RunFolder(out / name).config() for name in ("round1/segmenter", "segmenter"))
    assert (first.data.train_masks, last.data.train_masks) == (out / "round1/masks", out / "round2/masks")
    notes = [read_json(out / place / "classes.json") for place in ("round1/masks", "round2/masks", "masks")]
    models = [read_json(out / name / "model" / "classes.json") for name in (".", "round1/segmenter", "segmenter")]
    assert [note["model"] for note in notes] == [model["digest"] for model in models]
    for item in opened.collection.split("train"):
        for place in ("round1/masks", "round2/masks", "masks"):
            values_there = set(np.unique(np.array(Image.open(out / place / f"{item.id}.png"))).tolist())
            assert values_there <= {0, *(tag + 1 for tag in item.tags or ())}, "limited to the tags"
    photo = opened.collection.items[0].image
    assert predict(out, [photo], tmp_path / "new").written == 1
    assert read_json(tmp_path / "new" / "classes.json")["model"] == models[-1]["digest"], "by the last segmenter"
    for source, model in (("auto", models[-1]), ("cam", models[0])):
        label(out, "val", tmp_path / source, overrides=[f"label.source={source}"])
        assert read_json(tmp_path / source / "classes.json")["model"] == model["digest"], source
    loaded = load(out)
    assert type(loaded.method).__name__ == "Supervised" and loaded.cams(photo).shape[0] == len(loaded.classes)
    assert np.array_equal(loaded.predict(photo).labels, load(out / "segmenter").predict(photo).labels)
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    assert through_stages(Run(out, values))["final masks"]["written"] == 0
    assert {path: path.read_bytes() for path in out.rglob("*.png")} == before


def test_minutes_of_a_run_are_expected_by_steps_and_photos(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = ["classifier", {"masks": {"source": "segmenter"}}, "segmenter", {"rounds": {"count": 3}}]
    opened = Run(tmp_path / "run", changed(config, stages))
    opened.begin(save=False)
    monkeypatch.setattr(timing, "time_step", lambda config, *args: 60.0 if config.method.name == "baseline" else 120.0)
    monkeypatch.setattr(timing, "second", lambda *args: 60.0)
    found = timing.expected_minutes(opened, Stages(opened))
    steps = config.train.steps
    train, val = (len([i for i in opened.collection.split(s) if i.tags is not None]) for s in ("train", "val"))
    later = 2 * steps + train
    assert (found["train"], found["masks"], found["round 1"]) == (steps, train, 2 * steps)
    assert (found["round 2"], found["round 3"], found["final masks"]) == (later, later, train + val)


def test_a_class_that_is_found_nowhere_keeps_its_earlier_pixels(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", np.array([[0, 1, 2, 2]], np.uint8))
    item = Item("a", Path("a.jpg"), tags=(0, 1))
    look = SimpleNamespace(inference=SimpleNamespace(method=SimpleNamespace(classes=2)))

    def labels(*values: int) -> list[int]:
        made = torch.tensor([values], dtype=torch.uint8)
        return kept_classes(lambda item, look: (made, None, []), tmp_path)(item, look)[0][0].tolist()  # type: ignore[arg-type]

    assert labels(1, 1, 0, 255) == [1, 1, 2, 2], "class 2 comes back where nothing sure stands"
    assert labels(1, 1, 1, 0) == [1, 1, 1, 2]
    assert labels(2, 1, 0, 0) == [2, 1, 0, 0], "both are there"
    assert (
        kept_classes(lambda item, look: (torch.zeros(1, 4).byte(), None, []), tmp_path / "none")(
            item,
            look,  # type: ignore[arg-type]
        )[0].sum()
        == 0
    )
