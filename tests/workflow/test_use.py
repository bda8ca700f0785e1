"""Settings of a method that say how it is used once it is trained: runs are opened with them, what is made says so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tagmask.cam import multi_scale
from tagmask.config import load_config, merge
from tagmask.data import read_mask
from tagmask.errors import ConfigError
from tagmask.evaluate import difference
from tagmask.evaluate.stamp import describe
from tagmask.files import read_json
from tagmask.label import Inference
from tagmask.methods import build_method
from tagmask.training import RunFolder
from tagmask.workflow import evaluate, label, opened, predict, train
from tagmask.workflow.stamp import MASKS_NOTE, keep_masks_note
from tests.workflow.conftest import BASE

ONLINE = ["method.inference=online"]


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CoSA after two steps: two networks and two CAMs, which differ."""
    out = tmp_path_factory.mktemp("use") / "cosa"
    data = {"root": str(scenes), "train": "train.txt", "val": "val.txt", "test": "test.txt", "masks": "masks"}
    method = {"name": "cosa", "warmup": 0, "momentum": 0.9, "head_options": {"hidden": 16}}
    own = {"encoder": {"name": "resnet18"}, "data": data, "method": method}
    train(load_config(merge({k: v for k, v in BASE.items() if k != "method"}, own)), out)
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "cosa"))


def test_network_and_cams_are_chosen_at_use(trained: Path) -> None:
    image = torch.rand(1, 3, 64, 64)
    plain = opened(trained).method
    online = opened(trained, ONLINE)
    ensemble = opened(trained, ["method.ensemble=true"]).method
    assert online.config.method.inference == "online"  # type: ignore[attr-defined]
    with torch.no_grad():
        for method, network in ((plain, plain.assigner), (online.method, online.method.online)):
            expected = network.decoder(network.encoder(image))
            found = method.segment(image)
            torch.testing.assert_close(found, torch.nn.functional.interpolate(expected, size=(64, 64), mode="bilinear"))
        assert not torch.equal(online.method.segment(image), plain.segment(image))
        assert not torch.equal(ensemble.cams(image), plain.cams(image))
        summed = opened(trained, ["method.flip_merge=sum"]).method
        expected = multi_scale(summed.cam_maps, image, summed.config.cam_scales, flip_merge="sum")  # type: ignore[attr-defined]
        assert torch.equal(summed.cams(image), expected) and not torch.equal(summed.cams(image), plain.cams(image))


def test_scores_say_how_the_run_was_used(run: Path) -> None:
    stamps = []
    for settings in ([], ONLINE, ["method.ensemble=true", *ONLINE], ["method.inference=assignment"]):
        stamps.append(evaluate(run, "val", ["segmenter"], settings)[0]["stamp"])
    uses = [[s["settings"][f"method.{name}"] for name in ("inference", "ensemble")] for s in stamps]
    assert uses == [["assignment", False], ["online", False], ["online", True], ["assignment", False]]
    assert len(RunFolder(run).metrics()["scores"]) == 3, "the last is the first again"
    assert difference(stamps[1], stamps[0]) == {"settings.method.inference": ("online", "assignment")}
    assert "method.inference=online" in describe(stamps[1])


def test_the_threshold_of_another_use_is_not_taken(run: Path) -> None:
    evaluate(run, "val", ["cam"], ONLINE)
    assert [s["name"] for s in evaluate(run, "train", ["cam"])] == ["cam"], "there is none for this use"
    found = {s["name"]: s["stamp"] for s in evaluate(run, "train", ["cam"], ONLINE)}
    assert found["cam (val threshold)"]["settings"]["method.inference"] == "online"
    own = evaluate(run, "val", ["cam"])[0]["curve"]["peak"]["threshold"]
    found = {s["name"]: s["stamp"] for s in evaluate(run, "train", ["cam"])}
    assert (found["cam (val threshold)"]["threshold"], found["cam (val threshold)"]["threshold_from"]) == (own, "val")


def test_masks_of_two_uses_are_not_mixed(run: Path, scenes: Path, tmp_path: Path) -> None:
    label(run, "train")
    masks = run / "masks"
    assert read_json(masks / "classes.json")["settings"]["method.inference"] == "assignment"
    plain = {path.name: read_mask(path, 9) for path in masks.glob("*.png")}
    next(masks.glob("*.png")).unlink()
    with pytest.raises(ConfigError, match="cosa/masks"):
        label(run, "train", overrides=ONLINE)
    label(run, "train", overrides=ONLINE, overwrite=True)
    assert read_json(masks / "classes.json")["settings"]["method.inference"] == "online"
    assert any(not torch.equal(read_mask(masks / name, 9), mask) for name, mask in plain.items())
    with pytest.raises(ConfigError, match="cosa/masks"):
        label(run, "train")
    # Scores of these files and runs that learn from them say it, whatever is asked for when they are scored.
    assert evaluate(run, "train", ["masks"])[0]["stamp"]["settings"]["method.inference"] == "online"
    assert note_of_a_student(masks, tmp_path)["settings"]["method.inference"] == "online"
    out, photos = tmp_path / "predicted", [next((scenes / "images").iterdir())]
    predict(run, photos, out)
    with pytest.raises(ConfigError, match="predicted"):
        predict(run, photos, out, overrides=ONLINE)


def note_of_a_student(masks: Path, out: Path) -> dict[str, Any]:
    """What a run keeps of how the masks were made that it learns from."""
    student = RunFolder(out / "student")
    student.path.mkdir()
    keep_masks_note(student, masks)
    return read_json(student.path / MASKS_NOTE)


FOUND = ["label.threshold_from=training"]


def test_cams_can_be_cut_at_the_threshold_that_training_found(run: Path, tmp_path: Path) -> None:
    method = opened(run).method
    value, found = method.cam_threshold() or (0.0, False)
    assert found and value == float(method.thresholds["main"].value) and 0 < value < 1 and value != 0.3
    ensemble = opened(run, ["method.ensemble=true"]).method
    both = [float(one.value) for one in method.thresholds.values()]
    assert both[0] != both[1] and ensemble.cam_threshold() == (pytest.approx(sum(both) / 2), True)
    score = evaluate(run, "train", ["cam"], FOUND)[0]
    assert (score["stamp"]["threshold"], score["stamp"]["threshold_from"]) == (value, "training")
    assert f"threshold {value:g} (training)" in describe(score["stamp"])
    same = evaluate(run, "train", ["cam"], [f"label.threshold={value}"])[0]
    assert same["miou"] == score["miou"] and same["stamp"]["threshold_from"] == "fixed"
    assert evaluate(run, "train", ["cam"])[0]["miou"] != score["miou"]
    cams = [*FOUND, "label.source=cam", "label.refine=none"]
    label(run, "train", overrides=cams)
    note = read_json(run / "masks" / "classes.json")["settings"]
    assert (note["label.threshold"], note["label.threshold_from"]) == (value, "training")
    with pytest.raises(ConfigError, match="cosa/masks"):
        label(run, "train", overrides=[f"label.threshold={value}", *cams[1:]])
    made = evaluate(run, "train", ["masks"])[0]
    assert made["miou"] == score["miou"] and made["stamp"]["threshold_from"] == "training"
    note = note_of_a_student(run / "masks", tmp_path)["settings"]
    assert (note["label.threshold"], note["label.threshold_from"]) == (value, "training")


def test_a_method_that_finds_no_threshold_says_so(scenes: Path, tmp_path: Path) -> None:
    data = {"root": str(scenes), "train": "train.txt", "masks": "masks"}
    config = load_config(merge(BASE, {"data": data, "label": {"threshold_from": "training"}}))
    with pytest.raises(ConfigError, match=r"'baseline'.*label\.threshold_from"):
        train(config, tmp_path / "run")
    fixed = load_config({"method": {"name": "cosa", "threshold": 0.4, "warmup": 0}, "encoder": BASE["encoder"]})
    method = build_method(fixed, 2)
    assert method.cam_threshold() == (0.4, False)
    settled = Inference(method, load_config({"label": {"threshold_from": "training"}})).config
    assert (settled.threshold, settled.threshold_from) == (0.4, "fixed"), "it was given, not found"


def test_a_number_takes_the_place_of_the_found_threshold() -> None:
    for later in ({"label": {"threshold": 0.2}}, {"label": {"threshold": 0.2, "threshold_from": "fixed"}}):
        assert load_config("cosa_voc", later).label.threshold_from == "fixed"
    assert load_config("cosa_voc", overrides=["label.threshold=0.2"]).label.threshold_from == "fixed"
    both = load_config("cosa_voc", overrides=["label.threshold=0.2", "label.threshold_from=training"]).label
    assert (both.threshold, both.threshold_from) == (0.2, "training")
    assert load_config("cosa_voc", {"label": {"refine": "par"}}).label.threshold_from == "training"
    saved = load_config("cosa_voc").model_dump(mode="json")
    assert load_config(saved).label.threshold_from == "training"


@pytest.mark.parametrize("setting", ["method.momentum=0.5", "method.pooling=avg", "method.name=baseline"])
def test_what_training_has_decided_stays(trained: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(setting.partition("=")[0])):
        opened(trained, [setting])
