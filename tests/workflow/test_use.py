"""Settings of a method that say how it is used once it is trained: runs are opened with them, what is made says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tagmask.workflow.trained_on import how_made, keep_masks, kept_masks

from tagmask.config import load_config, merge
from tagmask.data import read_mask
from tagmask.errors import ConfigError
from tagmask.evaluate import Protocol
from tagmask.label import Inference
from tagmask.methods import build_method
from tagmask.training import RunFolder, read_json, write_json
from tagmask.workflow import evaluate, label, open_run, predict, train
from tests.workflow.conftest import BASE

ONLINE = ["method.inference=online"]


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CoSA after two steps: two networks and two CAMs, which differ."""
    out = tmp_path_factory.mktemp("use") / "cosa"
    data = {"root": str(scenes), "train": "train.txt", "val": "val.txt", "test": "test.txt", "masks": "masks"}
    method = {"name": "cosa", "warmup": 0, "momentum": 0.9, "head_options": {"hidden": 16}}
    base = {k: v for k, v in BASE.items() if k != "method"}
    train(load_config(merge(base, {"data": data, "method": method})), out)
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "cosa"))


def test_network_and_cams_are_chosen_at_use(trained: Path) -> None:
    image = torch.rand(1, 3, 64, 64)
    _, _, plain = open_run(trained)
    _, config, online = open_run(trained, ONLINE)
    _, _, ensemble = open_run(trained, ["method.ensemble=true"])
    assert config.method.inference == "online"  # type: ignore[attr-defined]
    with torch.no_grad():
        for method, network in ((plain, plain.assigner), (online, online.online)):
            expected = network.decoder(network.encoder(image))
            found = method.segment(image)
            torch.testing.assert_close(found, torch.nn.functional.interpolate(expected, size=(64, 64), mode="bilinear"))
        assert not torch.equal(online.segment(image), plain.segment(image))
        assert not torch.equal(ensemble.cams(image), plain.cams(image))


def test_scores_say_what_differs_from_the_training(run: Path) -> None:
    uses = []
    for settings in ([], ONLINE, ["method.ensemble=true", *ONLINE], ["method.inference=assignment"]):
        score = evaluate(run, "val", ["segmenter"], settings)[0]
        uses.append(score["protocol"]["use"])
    assert uses == [None, "inference=online", "ensemble=True, inference=online", None]
    assert len(RunFolder(run).metrics()["scores"]) == 3, "the last is the first again"
    old = RunFolder(run).metrics()
    for score in old["scores"]:
        for name in ("bins", "without", "only"):
            del score["protocol"][name]
    write_json(RunFolder(run).metrics_file, old)
    evaluate(run, "val", ["segmenter"])
    assert len(RunFolder(run).metrics()["scores"]) == 3, "one of a version that recorded less is the same score"
    made = {s["protocol"]["use"]: Protocol(**s["protocol"]) for s in RunFolder(run).metrics()["scores"]}
    assert made["inference=online"].differs(made[None]) == ["use: inference=online / None"]
    assert "cosa (inference=online) on resnet18" in made["inference=online"].describe()
    assert "cosa on resnet18" in made[None].describe()


def test_the_threshold_of_another_use_is_not_taken(run: Path) -> None:
    evaluate(run, "val", ["cam"], ONLINE)
    assert [s["name"] for s in evaluate(run, "train", ["cam"])] == ["cam"], "there is none for this use"
    found = {s["name"]: s["protocol"] for s in evaluate(run, "train", ["cam"], ONLINE)}
    assert found["cam (val threshold)"]["use"] == "inference=online"
    own = evaluate(run, "val", ["cam"])[0]["curve"]["peak"]["threshold"]
    found = {s["name"]: s["protocol"] for s in evaluate(run, "train", ["cam"])}
    assert found["cam (val threshold)"]["threshold"] == own


def test_masks_of_two_uses_are_not_mixed(run: Path, scenes: Path, tmp_path: Path) -> None:
    label(run, "train")
    masks = run / "masks"
    assert "use" not in read_json(masks / "classes.json"), "folders of before stay what they are"
    plain = {path.name: read_mask(path, 9) for path in masks.glob("*.png")}
    next(masks.glob("*.png")).unlink()
    with pytest.raises(ConfigError, match="masks of another model or other settings"):
        label(run, "train", overrides=ONLINE)
    label(run, "train", overrides=ONLINE, overwrite=True)
    assert read_json(masks / "classes.json")["use"] == "inference=online"
    assert any(not torch.equal(read_mask(masks / name, 9), mask) for name, mask in plain.items())
    with pytest.raises(ConfigError, match="masks of another model or other settings"):
        label(run, "train")
    # Scores of these files and runs that learn from them say it, whatever is asked for when they are scored.
    assert evaluate(run, "train", ["masks"])[0]["protocol"]["use"] == "inference=online"
    student = RunFolder(tmp_path / "student")
    student.path.mkdir()
    keep_masks(student, masks)
    assert "inference=online" in how_made(kept_masks(student) or {})
    out = tmp_path / "predicted"
    predict(run, [scenes / "images"], out)
    with pytest.raises(ConfigError, match="another model or other settings"):
        predict(run, [scenes / "images"], out, overrides=ONLINE)


FOUND = ["label.threshold_from=training"]


def test_cams_can_be_cut_at_the_threshold_that_training_found(run: Path, tmp_path: Path) -> None:
    _, _, method = open_run(run)
    value, found = method.cam_threshold() or (0.0, False)
    assert found and value == float(method.thresholds["main"].value) and 0 < value < 1 and value != 0.3
    _, _, ensemble = open_run(run, ["method.ensemble=true"])
    both = [float(one.value) for one in method.thresholds.values()]
    assert both[0] != both[1] and ensemble.cam_threshold() == (pytest.approx(sum(both) / 2), True)
    score = evaluate(run, "train", ["cam"], FOUND)[0]
    stamp = Protocol(**score["protocol"])
    assert (stamp.threshold, stamp.threshold_source) == (value, "found in training")
    assert f"threshold {value:g} (found in training)" in stamp.describe()
    same = evaluate(run, "train", ["cam"], [f"label.threshold={value}"])[0]
    assert same["miou"] == score["miou"] and Protocol(**same["protocol"]).threshold_source == "fixed"
    assert evaluate(run, "train", ["cam"])[0]["miou"] != score["miou"]
    cams = [*FOUND, "label.source=cam", "label.refine=none"]
    label(run, "train", overrides=cams)
    note = read_json(run / "masks" / "classes.json")["label"]
    assert (note["threshold"], note["threshold_from"]) == (value, "training")
    with pytest.raises(ConfigError, match="masks of another model or other settings"):
        label(run, "train", overrides=[f"label.threshold={value}", *cams[1:]])
    made = evaluate(run, "train", ["masks"])[0]
    assert made["miou"] == score["miou"] and made["protocol"]["threshold_source"] == "found in training"
    student = RunFolder(tmp_path / "student")
    student.path.mkdir()
    keep_masks(student, run / "masks")
    assert f"threshold {value:g} found in training" in how_made(kept_masks(student) or {})


def test_a_method_that_finds_no_threshold_says_so(scenes: Path, tmp_path: Path) -> None:
    data = {"root": str(scenes), "train": "train.txt", "masks": "masks"}
    config = load_config(merge(BASE, {"data": data, "label": {"threshold_from": "training"}}))
    with pytest.raises(ConfigError, match=r"Method 'baseline' finds no threshold.*leave out label\.threshold_from"):
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
    with pytest.raises(ConfigError, match="was decided when"):
        open_run(trained, [setting])
