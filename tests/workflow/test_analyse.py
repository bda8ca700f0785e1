"""``tagmask analyse`` and ``train.watch`` on runs of two steps: tables against scores that are made by hand."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tagmask
from tagmask.config import load_config, merge
from tagmask.data import read_image, read_mask, tag_vector
from tagmask.errors import ConfigError, DataError
from tagmask.label import Inference
from tagmask.training import RunFolder
from tagmask.workflow import Run, analyse, evaluate, opened, train
from tests.cli.calls import call, raise_error
from tests.cosa_loops import assignment_loops, perplexity_loops
from tests.workflow.conftest import BASE

WATCHED = ["segmenter", "segmenter_online", "cam", "cam_aux", "cam_online"]
VIT = {"name": "test_vit", "weights": "none"}


def trained(scenes: Path, out: Path, method: dict[str, Any], **sections: Any) -> Path:
    data = {"root": str(scenes), "train": "train.txt", "val": "val.txt", "test": "test.txt", "masks": "masks"}
    base = {key: value for key, value in BASE.items() if key != "method"}
    train(load_config(merge(merge(base, {"data": data, "method": method}), sections)), out)
    return out


@pytest.fixture(scope="module")
def cosa(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CoSA after two steps, each watched and kept."""
    method = {"name": "cosa", "warmup": 0, "momentum": 0.9, "head_options": {"hidden": 16}}
    watched = {"train": {"watch": WATCHED, "evaluate_every": 1, "keep": 9, "log_every": 1}}
    encoder = {"name": "resnet18"}  # one whose two networks segment differently after two steps
    return trained(scenes, tmp_path_factory.mktemp("analyse") / "cosa", method, encoder=encoder, **watched)


@pytest.fixture(scope="module")
def eca(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    method = {"name": "eca", "warmup": 0, "affinity": "none", "head_options": {"embed": 8}, "guide": {"encoder": VIT}}
    out = tmp_path_factory.mktemp("analyse") / "eca"
    return trained(scenes, out, method, views={"local": {"size": 32}})


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def picture(path: Path) -> Image.Image:
    image = Image.open(path)
    image.load()
    assert image.format == "PNG" and len(np.unique(np.asarray(image.convert("L")))) > 10
    return image


def logged(run: Path) -> dict[int, dict[str, float]]:
    return {record["step"]: record["scores"] for record in RunFolder(run).log() if "scores" in record}


def test_what_is_watched_is_logged_as_it_is_scored_later(cosa: Path) -> None:
    scores = logged(cosa)
    cams = [f"val/{name} (best threshold)" for name in WATCHED if name.startswith("cam")]
    assert list(scores) == [1, 2] and set(scores[2]) == {*(f"val/{name}" for name in WATCHED), *cams}
    for network, end in (("assignment", ""), ("online", "_online")):
        run = opened(cosa, [f"method.inference={network}"])
        out = cosa.parent / f"scored{end}"
        found = {s["name"]: s for s in evaluate(run, "val", ["segmenter", "cam"], record=out)}
        assert scores[2][f"val/segmenter{end}"] == pytest.approx(found["segmenter"]["miou"])
        assert scores[2][f"val/cam{end}"] == pytest.approx(found["cam"]["miou"])
        peak = found["cam"]["curve"]["peak"]["miou"]
        assert scores[2][f"val/cam{end} (best threshold)"] == pytest.approx(peak)
    assert len({scores[2][f"val/{name}"] for name in ("segmenter", "segmenter_online")}) == 2
    assert scores[2]["val/cam_aux (best threshold)"] == pytest.approx(float(best(cosa, "aux")["miou"]))


def best(run: Path, which: str, *overrides: str) -> dict[str, str]:
    rows = table(analyse(run, "cams", overrides=overrides)["table"])
    return max((row for row in rows if row["which"] == which), key=lambda row: float(row["miou"]))


def test_without_a_list_the_segmenter_is_watched(classifier: Path) -> None:
    assert set(logged(classifier)[2]) == {"val/segmenter"}


def test_what_the_method_has_not_is_not_watched(scenes: Path, tmp_path: Path) -> None:
    method = {"name": "baseline", "warmup": 1, "head_options": {"hidden": 16}}
    with pytest.raises(ConfigError, match=r"train\.watch: 'cam_aux'.*segmenter, cam"):
        trained(scenes, tmp_path / "run", method, train={"watch": ["cam_aux"]})


def test_stages_do_not_watch_maps_of_the_first_method(scenes: Path) -> None:
    from tagmask.workflow.stages import network_config

    config = load_config(BASE, {"train": {"watch": ["cam"]}, "stages": ["classifier", "masks", "segmenter"]})
    assert network_config(config, "segmenter", RunFolder(scenes)).train.watch == []


def test_training_is_what_the_log_has(cosa: Path) -> None:
    paths = analyse(cosa, "training")
    rows = {(int(row["step"]), row["name"]): float(row["value"]) for row in table(paths["table"])}
    for step, scores in logged(cosa).items():
        assert {name: rows[step, name] for name in scores} == scores
    method = opened(cosa).method
    assert rows[2, "threshold_main"] == pytest.approx(float(method.thresholds["main"].value))
    assert (1, "threshold_aux") in rows
    picture(paths["picture"])


def test_cams_of_each_kind_at_every_threshold(cosa: Path) -> None:
    paths = analyse(cosa, "cams")
    rows = table(paths["table"])
    assert list(dict.fromkeys(row["which"] for row in rows)) == ["main", "aux", "online", "aux_online"]
    (score,) = [s for s in evaluate(cosa, "val", ["cam"], record=cosa.parent / "again") if s["name"] == "cam"]
    found = [float(row["miou"]) for row in rows if row["which"] == "main"]
    assert found == pytest.approx(score["curve"]["miou"], abs=1e-6)
    own = [float(row["miou"]) for row in rows if row["which"] == "aux"]
    assert own != pytest.approx(found)
    picture(paths["picture"])


@pytest.mark.parametrize("what", ["confidence", "perplexity"])
def test_accuracy_of_labels_equals_loops(what: str, cosa: Path) -> None:
    paths = analyse(cosa, what)
    run = opened(cosa)
    rows = table(paths["table"])
    assert {row["step"] for row in rows} == {"2"}
    for which in ("main", "aux"):
        xi = float(run.method.thresholds[which].value)
        pixels = []
        for item in run.collection.split("val"):
            tags = tag_vector(item.tags or (), len(run.collection.classes))
            images = read_image(item.image)[None] / 255
            cams = run.method.cams(images, tags[None], which=which).double()
            labels, values = assignment_loops(cams, tags[None] > 0, xi)
            if what == "perplexity":
                values = perplexity_loops(values, xi, 0.8, 1.0)
            truth = read_mask(item.mask, len(run.collection.classes))  # type: ignore[arg-type]
            pixels += list(zip(truth.flatten().tolist(), labels.flatten().tolist(), values.flatten().tolist()))
        own = [row for row in rows if row["which"] == which]
        assert sum(int(row["pixels"]) for row in own) == sum(truth != 255 for truth, _, _ in pixels)
        for row in own:
            low, high = float(row["low"]), float(row["high"])
            inside = [t == p for t, p, v in pixels if t != 255 and (low <= v < high or v == high == math.inf)]
            # Values next to an edge may fall to its other side.
            assert int(row["pixels"]) == pytest.approx(len(inside), abs=4)
            if len(inside) > 50:
                assert float(row["accuracy"]) == pytest.approx(sum(inside) / len(inside), abs=0.05)
    picture(paths["picture"])


def test_every_checkpoint_that_is_kept(cosa: Path) -> None:
    last = table(analyse(cosa, "perplexity")["table"])
    paths = analyse(cosa, "perplexity", every_checkpoint=True)
    rows = table(paths["table"])
    assert [row for row in rows if row["step"] == "2"] == last
    first = [row for row in rows if row["step"] == "1"]
    assert len(first) == len(last) and [row["pixels"] for row in first] != [row["pixels"] for row in last]
    assert {"low", "high", "miou_up_to"} <= set(first[0])
    picture(paths["picture"])


def test_what_a_run_does_not_have_is_refused_with_what_there_is(cosa: Path, classifier: Path) -> None:
    with pytest.raises(ConfigError, match="'loops'.*training, cams, confidence, perplexity"):
        analyse(cosa, "loops")
    with pytest.raises(ConfigError, match="'confidence'.*training, cams"):
        analyse(classifier, "confidence")
    with pytest.raises(ConfigError, match="'cams'.*photos"):
        analyse(cosa, "cams", at=(1, 1))


def test_maps_of_chosen_photos(eca: Path) -> None:
    run = opened(eca)
    ids = [item.id for item in run.collection.split("val") if item.tags][:1]
    paths = analyse(eca, "regions", photos=ids)
    assert set(paths) == {"picture"}
    classes = 1 + len(run.collection.item(ids[0]).tags or ())
    image = picture(paths["picture"])
    assert image.width > image.height * 4 / classes
    picture(analyse(eca, "affinity", photos=ids, at=(70, 8))["picture"])
    picture(analyse(eca, "affinity")["picture"])
    with pytest.raises(ConfigError, match="at=80,8"):
        analyse(eca, "affinity", photos=ids, at=(80, 8))
    with pytest.raises(ConfigError, match="'regions'"):
        analyse(eca, "regions", every_checkpoint=True)
    with pytest.raises(DataError, match="'nonsense'"):
        analyse(eca, "regions", photos=["nonsense"])


def test_the_command_line(eca: Path) -> None:
    ids = [item.id for item in opened(eca).collection.split("val") if item.tags]
    words = ("analyse", eca, "affinity", "--photo", ids[0])
    paths = json.loads(call(*words, "--at", "70,8", "--json").stdout)
    assert paths == {"picture": str(eca / "analysis" / "affinity.png")}
    with pytest.raises(ConfigError, match="--at 70"):
        raise_error(*words, "--at", "70")


def test_means_over_photos(scenes: Path, tmp_path: Path) -> None:
    method = {"name": "crt", "warmup": 0, "weight_l1": 0, "tile": 48, "stride": 32, "loops": 2}
    run = trained(scenes, tmp_path / "crt", method, encoder={"name": "test_vit"})
    paths = analyse(run, "loops", split="train")
    rows = table(paths["table"])
    one = opened(run)
    found = torch.stack(
        [
            one.inference.analyse("loops", read_image(item.image), torch.zeros(len(one.collection.classes)))
            for item in one.collection.split("train")
        ]
    )
    assert [float(row["mean"]) for row in rows] == pytest.approx(found.mean(0).tolist())
    assert [float(row["deviation"]) for row in rows] == pytest.approx(found.std(0, correction=0).tolist(), rel=1e-3)
    picture(paths["picture"])


def test_from_python(cosa: Path, eca: Path, scenes: Path) -> None:
    photo = next((scenes / "images").iterdir())
    segmenter = tagmask.load(cosa)
    tags = segmenter.classes[:2]
    given = torch.tensor([1.0, 1.0, *[0.0] * (len(segmenter.classes) - 2)])
    expected = Inference(segmenter.method, Run(cosa).config, "aux").cams(read_image(photo), given)
    assert np.array_equal(segmenter.cams(photo, tags, which="aux"), expected.cpu().numpy())
    assert not np.array_equal(segmenter.cams(photo, tags), segmenter.cams(photo, tags, which="aux"))
    with pytest.raises(ConfigError, match="nonsense"):
        segmenter.cams(photo, tags, which="nonsense")
    with pytest.raises(ConfigError, match="'regions'.*confidence"):
        segmenter.regions(photo, tags)
    found = tagmask.load(eca).regions(photo, tags)
    assert set(found) == {"seeds", "carm_raw", "labels_raw", "carm_calibrated", "labels_calibrated"}
    assert found["seeds"].dtype == bool and found["seeds"].shape == found["carm_raw"].shape
    assert found["labels_raw"].shape == (64, 80) and 0 <= found["carm_calibrated"].min() <= 1
