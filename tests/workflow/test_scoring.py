"""Scores of a run on hand-made predictions and CAMs: known answers, by hand and by scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import pstdev
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score, precision_score, recall_score
from torch import Tensor
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.config import RunConfig, load_config
from tagmask.data import open_data, read_image, read_mask, write_mask
from tagmask.data.collection import tag_vector
from tagmask.errors import ConfigError
from tagmask.evaluate import BoundaryIoU, difference
from tagmask.files import write_json
from tagmask.refine import DenseCRF
from tagmask.training import RunFolder
from tagmask.workflow import Run, evaluate, train
from tests.data.test_data_benchmarks import write_sbd

SIZE = (24, 32)


def write_voc(root: Path, photos: int = 6) -> Path:
    """VOC's layout with SBD beside it, every photo with a mask: cats (8) and dogs (12) as rectangles, void between."""
    rng = np.random.default_rng(7)
    (root / "Annotations").mkdir(parents=True)
    sbd = {}
    for i in range(photos):
        name, label, thing = f"2007_{i}", *((8, "cat") if i % 2 else (12, "dog"))
        mask = np.zeros(SIZE, np.uint8)
        y, x = rng.integers(2, 8, 2)
        mask[y - 1 : y + 12, x - 1 : x + 15] = 255
        mask[y : y + 11, x : x + 14] = label
        pixels = np.where(mask[..., None] == label, (200, 40, 40), (60, 90, 60)) + rng.integers(0, 30, (*SIZE, 3))
        (root / "JPEGImages").mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(root / "JPEGImages" / f"{name}.png")
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><object><name>{thing}</name></object></annotation>"
        )
        if i < 4:
            write_mask(root / "SegmentationClass" / f"{name}.png", mask)
        else:
            sbd[name] = mask
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_0\n2007_1\n")
    (lists / "val.txt").write_text("2007_2\n2007_3\n")
    write_sbd(root.parent / "SBD", sbd, ["2007_4", "2007_5"], ["2007_3"])
    return root


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("data") / "VOC2012")


@pytest.fixture(scope="module")
def rims_in_training() -> list[int]:
    """An entry for each photo whose rims were counted while ``run`` was trained."""
    return []


@pytest.fixture(scope="module")
def run(voc: Path, tmp_path_factory: pytest.TempPathFactory, rims_in_training: list[int]) -> Path:
    out = tmp_path_factory.mktemp("runs") / "voc"
    update = BoundaryIoU.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundaryIoU, "update", lambda self, *maps: rims_in_training.append(1) or update(self, *maps))
        train(settings(voc), out)
    return out


def settings(voc: Path) -> RunConfig:
    return load_config({
        "data": {"root": str(voc), "train": "train_aug", "val": "val"},
        "encoder": {"name": "resnet18", "weights": "none"},
        "views": {"crop": 64},
        "method": {"name": "baseline", "warmup": 1, "head_options": {"hidden": 8}},
        "train": {"steps": 2, "batch_size": 2, "workers": 0, "warmup": 0, "accelerator": "cpu", "channels_last": False},
        "label": {"cam_scales": [1.0, 0.5], "cam_flip": False},
        "evaluate": {"bins": 20, "bootstrap": 30, "without": ["dog"]},
    })  # fmt: skip


def test_masks_have_the_scores_that_scikit_learn_gives(run: Path, voc: Path) -> None:
    """Predictions made by hand on train_aug, of which half the masks are SBD's; 255 in them is counted in coverage."""
    collection = open_data(settings(voc).data)
    rng = np.random.default_rng(1)
    truths, predictions = [], []
    for item in collection.split("train"):
        assert item.mask is not None
        truth = read_mask(item.mask, 20).numpy()
        made = np.where(
            rng.random(SIZE) < 0.15, rng.choice([0, 8, 12, 15, 255], SIZE), np.where(truth == 255, 0, truth)
        )
        write_mask(run / "masks" / f"{item.id}.png", made)
        truths.append(truth.ravel())
        predictions.append(made.ravel())
    assert {Path(str(item.mask)).suffix for item in collection.split("train")} == {".png", ".mat"}
    about = {"classes": ["background", *collection.classes], "settings": {}, "source": "cam"}
    write_json(run / "masks" / "classes.json", about)
    (score,) = evaluate(run, "train", ["masks"])
    y, p = np.concatenate(truths), np.concatenate(predictions)
    y, p = y[y != 255], p[y != 255]
    known = p != 255
    assert score["coverage"] == pytest.approx(known.mean()) and known.mean() < 0.98
    labels, names = [0, 8, 12, 15], ["background", "cat", "dog", "person"]
    kept: dict[str, Any] = {"labels": labels, "average": None, "zero_division": 0}
    iou = jaccard_score(y[known], p[known], **kept)
    precision = precision_score(y[known], p[known], **kept)
    recall = recall_score(y[known], p[known], **kept)
    for i, name in enumerate(names):
        assert score["per_class"][name]["iou"] == pytest.approx(iou[i])
        assert score["per_class"][name]["precision"] == pytest.approx(precision[i])
    assert recall[3] == 0 and score["per_class"]["person"]["recall"] is None, "no person in truth: nothing to find"
    assert score["miou"] == pytest.approx(iou.mean()), "a class that is only predicted counts as 0"
    assert score["precision"] == pytest.approx(precision.mean())
    assert score["recall"] == pytest.approx(recall[:3].mean())
    assert score["miou_without"] == pytest.approx(np.delete(iou, 2).mean())
    missed = np.where(p == 255, 20, p)  # as another class's, which takes no part in the mean
    strict = jaccard_score(y, missed, **kept)
    assert score["miou_strict"] == pytest.approx(strict.mean()) and strict.mean() < iou.mean()
    assert score["stamp"]["truth"] == "voc:SegmentationClass (2), cls (2)"
    assert score["stamp"]["run"]["settings"]["views.crop"] == 64 and 0 < score["boundary_iou"] < score["miou"]
    assert score["interval"]["low"] <= score["miou"] <= score["interval"]["high"]


class Made(SimpleNamespace):
    """CAMs that are known: the photo's redness, at 0.8 of it where the photo is looked at smaller."""

    def cams(self, images: Tensor, tags: Tensor, scales: list[float], *_: Any) -> Tensor:
        red = (images[:, :1] - images[:, 1:2]).clamp(0, 1)
        total = sum(red * (0.8 if s < 1 else 1.0) + (0.3 if s < 1 else 0.0) for s in scales) / len(scales)
        return total.clamp(0, 1) * tags[:, :, None, None]


@pytest.fixture
def made(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's CAMs replaced by known ones."""
    known = Made()
    monkeypatch.setattr("tagmask.methods.baseline.Baseline.cams", lambda self, *a, **k: known.cams(*a, **k))


def test_cams_after_a_crf(run: Path, voc: Path, made: None) -> None:
    with pytest.raises(ConfigError, match=r"label\.crf"):
        evaluate(run, "val", ["cam+crf"])
    (score,) = evaluate(run, "val", ["cam+crf"], ["label.crf=psa", "label.threshold=0.2"])
    stamp = score["stamp"]
    assert stamp["settings"]["label.crf"] == "psa" and stamp["threshold"] == 0.2 and stamp["tags"]
    confusion = np.zeros((21, 21), int)
    for item in open_data(settings(voc).data).split("val"):
        assert item.mask is not None
        photo, tags = read_image(item.image), tag_vector(item.tags or (), 20)
        images = photo[None].float() / 255
        cam = Made().cams(images, tags[None], [1.0, 0.5], False)[0]
        scores = torch.cat([torch.full_like(cam[:1], 0.2), cam])
        probabilities = (scores / scores.sum(0))[[0, 1 + int(tags.argmax())]]
        field = DenseCRF.preset("psa")(photo[None], probabilities[None])[0]
        labels = np.where(field[1] > field[0], 1 + int(tags.argmax()), 0)
        truth = read_mask(item.mask, 20).numpy()
        for t, p in zip(truth[truth != 255], labels[truth != 255]):
            confusion[t, p] += 1
    assert (np.array(score["confusion"]) == confusion).all()


def test_the_spread_of_single_scales(run: Path, made: None, tmp_path: Path) -> None:
    (result,) = evaluate(run, "list:train", ["spread"], record=tmp_path / "other")
    alone = [evaluate(run, "list:train", ["cam"], [f"label.cam_scales=[{s}]"])[0]["curve"]["peak"] for s in (1.0, 0.5)]
    assert [entry["miou"] for entry in result["scales"]] == pytest.approx([peak["miou"] for peak in alone])
    assert [entry["threshold"] for entry in result["scales"]] == [peak["threshold"] for peak in alone]
    assert alone[0]["threshold"] < alone[1]["threshold"]
    assert result["std"] == pytest.approx(pstdev([peak["miou"] for peak in alone]))
    stamp = result["stamp"]
    assert stamp["images"] == 2 and stamp["tags"] and stamp["threshold"] is None, "each scale has its own"
    assert stamp["settings"]["label.max_side"] == 2048 and stamp["settings"]["label.cam_scales"] == [1.0, 0.5]
    assert RunFolder(tmp_path / "other").metrics()["spread"]["list:train"] == result
    assert "spread" not in RunFolder(run).metrics()
    shown = CliRunner().invoke(
        app, ["evaluate", str(run), "--split", "val", "--what", "spread"], env={"COLUMNS": "220"}
    )
    assert "at 1" in shown.output and "at 0.5" in shown.output and "deviation" in shown.output
    with pytest.raises(ConfigError, match=r"label\.cam_scales"):
        evaluate(run, "val", ["spread"], ["label.cam_scales=[1.0]"])
    with pytest.raises(ConfigError, match="'spred'.*spread"):
        evaluate(run, "val", ["spred"])


def test_the_spread_has_intervals_over_images(run: Path, tmp_path: Path) -> None:
    (result,) = evaluate(run, "train", ["spread"], record=tmp_path / "other")
    settings = [[f"label.cam_scales=[{s['scale']}]", f"label.threshold={s['threshold']}"] for s in result["scales"]]
    alone = [evaluate(run, "train", ["cam"], own, record=tmp_path / "other")[0] for own in settings]
    for key, each in (("mean", np.mean), ("std", np.std)):
        assert result[key] == pytest.approx(each([score["miou"] for score in alone])), "the thresholds are the peaks'"
        interval = result["intervals"][key]
        assert interval["low"] < interval["high"] and interval["std"] > 0 and interval["resamples"] == 30
        assert interval["low"] <= result[key] <= interval["high"]


def test_scores_of_another_record_leave_the_run_alone(run: Path, tmp_path: Path) -> None:
    before = RunFolder(run).metrics_file.read_text() if RunFolder(run).metrics_file.is_file() else ""
    evaluate(run, "val", ["cam"], record=tmp_path / "mine")
    found = evaluate(run, "list:train", ["cam"], record=tmp_path / "mine")
    after = RunFolder(run).metrics_file.read_text() if RunFolder(run).metrics_file.is_file() else ""
    assert before == after
    kept = json.loads((tmp_path / "mine" / "metrics.json").read_text())["scores"]
    assert [s["name"] for s in kept] == ["cam", "cam", "cam (val threshold)"] and len(found) == 2


def test_a_score_says_its_grid_precision_and_rims(run: Path, tmp_path: Path) -> None:
    opened = Run(run)

    def scored(*settings: str) -> dict[str, Any]:
        (score,) = evaluate(opened, "list:train", ["cam"], settings, record=tmp_path / "own")
        return score["stamp"]

    plain = scored()
    assert plain["settings"]["train.precision"] == "fp32" and plain["settings"]["evaluate.boundary"] == 0.02
    assert not {"encoder.weights", "data.root", "seed"} & set(plain["run"]["settings"]), "folders are nobody else's"
    changes = ["label.max_side=256", "views.short_side=16", "train.precision=bf16", "evaluate.boundary=0.0"]
    changes += ["evaluate.bins=10", "evaluate.without=[cat]", "evaluate.only=[cat]"]
    for change in changes:
        assert list(difference(scored(change), plain)) == [f"settings.{change.partition('=')[0]}"]
    assert len(RunFolder(tmp_path / "own").metrics()["scores"]) == 8, "none took another's place"
    scored("label.scales=[0.5]", "evaluate.bootstrap=5")
    assert len(RunFolder(tmp_path / "own").metrics()["scores"]) == 8, "of the segmenter, and of intervals"


def test_thresholds_of_val_stay_on_their_grid(run: Path, tmp_path: Path) -> None:
    opened = Run(run)
    evaluate(opened, "val", ["cam"], record=tmp_path)

    def names(*settings: str) -> list[str]:
        return [score["name"] for score in evaluate(opened, "list:train", ["cam"], settings, record=tmp_path)]

    assert names() == ["cam", "cam (val threshold)"] and names("label.max_side=256") == ["cam"]
    assert names("evaluate.bins=10") == ["cam"], "another search"


def test_no_rims_are_counted_during_training(
    run: Path, rims_in_training: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert any("val/segmenter" in json.dumps(line) for line in RunFolder(run).log()) and not rims_in_training
    counted: list[int] = []
    update = BoundaryIoU.update
    monkeypatch.setattr(BoundaryIoU, "update", lambda self, *maps: counted.append(1) or update(self, *maps))
    evaluate(run, "val", ["segmenter"], record=tmp_path)
    assert len(counted) == 2, "they are when the run is scored"


def test_masks_that_tagmask_did_not_make_are_told_by_their_folder(voc: Path, tmp_path: Path) -> None:
    own = tmp_path / "drawn"
    for item in open_data(settings(voc).data).split("train"):
        assert item.mask is not None
        write_mask(own / f"{item.id}.png", read_mask(item.mask, 20))
    of_masks = {"data": {"train_masks": str(own)}, "method": {"name": "supervised"}}
    base = settings(voc).model_dump(mode="json", exclude={"method"})
    for name, values in {"drawn": of_masks, "true": {"method": {"name": "supervised"}}}.items():
        train(load_config(base, values), tmp_path / name / "run")
    of = {n: evaluate(tmp_path / n / "run", "val", ["segmenter"])[0]["stamp"]["run"] for n in ("drawn", "true")}
    assert of["drawn"]["supervision"] == "masks" and of["drawn"]["masks"] == {"folder": "drawn"}
    assert of["true"]["supervision"] == "true masks" and of["true"]["masks"] is None
