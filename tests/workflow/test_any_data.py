"""Data that nobody tuned for: any number of classes and photos trains, and a run that learned nothing says so."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from tagmask.config import load_config, merge
from tagmask.data import fingerprint, open_data
from tagmask.evaluate import average_precision, chance_precision
from tagmask.methods import build_method
from tagmask.methods.base import tag_loss
from tagmask.registry import METHODS
from tagmask.training import RunFolder, train_method
from tagmask.workflow import run
from tagmask.workflow.plan import as_mapping, choose
from tagmask.workflow.verdict import verdict
from tests.workflow.drawn import draw

SMALL = {
    "encoder": {"name": "test_resnet", "weights": "none"},
    "views": {"crop": 32},
    "train": {"workers": 0, "accelerator": "cpu", "channels_last": False},
    "label": {"cam_scales": [1.0], "refine": "none", "refine_masks": "none"},
    "method": {"refine": "none", "weight_seg": 0.0, "head_options": {"hidden": 8}},
    "evaluate": {"bootstrap": 0},
}
"""Settings of a user in a hurry."""


def planned(folder: Path, given: dict[str, Any]) -> tuple[Any, Any]:
    """The collection, and the configuration that ``run`` makes for it."""
    given = merge(given, {"data": {"root": str(folder)}})
    collection = open_data(load_config(given).data)
    choices = choose(fingerprint(collection), torch.device("cpu"), given)
    return collection, load_config({"method": {"name": "baseline"}}, as_mapping(choices), given)


def trained(folder: Path, out: Path, **train: Any) -> list[dict[str, Any]]:
    """The log of a training."""
    collection, config = planned(folder, merge(SMALL, {"train": train}))
    torch.manual_seed(0)
    method = build_method(config, len(collection.classes))
    train_method(method, config, collection.split("train"), collection.classes, RunFolder(out))
    return RunFolder(out).log()


@pytest.mark.parametrize("classes", [1, 2, 3, 14, 60])
@pytest.mark.parametrize("photos,many", [(12, False), (100, True)])
def test_any_data_is_planned(tmp_path: Path, classes: int, photos: int, many: bool) -> None:
    collection, config = planned(draw(tmp_path / "data", classes, photos, many, empty=classes == 1), {})
    found = len(collection.classes)
    assert found == min(classes, photos) and config.train.batch_size <= len(collection.split("train"))
    assert config.method.weight_cls == pytest.approx(found / 14, abs=1e-4) and config.train.clip == 1.0


@pytest.mark.parametrize("classes,many", [(1, False), (2, False), (3, True), (14, True), (60, False)])
def test_any_data_is_trained(tmp_path: Path, classes: int, many: bool) -> None:
    log = trained(draw(tmp_path / "data", classes, 12, many, empty=classes == 1), tmp_path / "run", steps=3)
    assert log[-1]["step"] == 3 and np.isfinite(log[-1]["losses"]["total"])


@pytest.mark.slow
@pytest.mark.parametrize("classes,photos", [(1, 100), (2, 100), (3, 1000), (14, 1000), (60, 1000)])
def test_the_planned_rate_is_not_lost_on_drawn_photos(tmp_path: Path, classes: int, photos: int) -> None:
    log = trained(draw(tmp_path / "data", classes, photos, empty=classes == 1), tmp_path / "run", steps=150)
    assert not any("lost" in record for record in log)
    losses = [record["losses"]["cls"] for record in log]
    assert losses[-1] < losses[0] and max(losses) < 1.2 * losses[0]


@pytest.mark.parametrize("classes", [2, 60])
def test_a_class_learns_as_fast_among_few_as_among_fourteen(classes: int) -> None:
    """The gradient of a class's score, of the weighted loss."""
    for name in METHODS.names():
        config = METHODS.get(name).config_class
        if "weight_cls" not in config.model_fields:
            continue
        given = {"method": {"name": name}, "encoder": {"name": "resnet18"}}
        gradients = []
        for count in (14, classes):
            found = {
                "classes": [f"c{i}" for i in range(count)],
                "counts": {"labelled": 99},
                "splits": {},
                "sizes": {},
            }
            plan = {c.key: c.value for c in choose(found, torch.device("cpu"), given)}
            scores = torch.zeros(1, count, requires_grad=True)
            (plan["method.weight_cls"] * tag_loss(scores, torch.zeros(1, count))).backward()
            gradients.append(scores.grad[0, 0].item())  # type: ignore[index]
        assert gradients[1] == pytest.approx(gradients[0], rel=1e-3), name


def test_an_absurd_rate_is_lowered_until_it_learns(tmp_path: Path) -> None:
    """A third of the rate may be lost, too: that depends on how a processor rounds."""
    log = trained(draw(tmp_path / "data", 3, 12), tmp_path / "run", steps=30, lr=30.0, clip=5.0, log_every=1)
    lost, steps = ([record for record in log if name in record] for name in ("lost", "losses"))
    chance = lost[0]["lost"]["chance"]
    assert log[0] == lost[0] and all(record["step"] == 0 for record in lost)
    assert lost[0]["lost"]["loss"] > chance and len(steps) == 30
    assert max(record["lr"] for record in steps) == pytest.approx(30 / 3 ** len(lost), rel=0.05)
    assert np.mean([record["losses"]["cls"] for record in steps[-5:]]) < chance, "it has looked at the photos"


def test_a_run_that_learned_nothing_says_so_first(tmp_path: Path) -> None:
    out, said = tmp_path / "run", io.StringIO()
    data = {"root": str(draw(tmp_path / "data", 3, 12))}
    given = merge(SMALL, {"data": data, "train": {"lr": 1e-9, "steps": 2}})
    result = run([given], {}, [], out, console=Console(file=said, width=400))
    found = result["verdict"]
    assert found["learned"] is False and "worth nothing" in found["text"] and "train.steps" in found["text"]
    assert said.getvalue().index("worth nothing") < said.getvalue().index("mAP")
    page = (out / "report.html").read_text()
    assert page.index("worth nothing") < page.index("mAP")


def judged(scores: Any, tags: np.ndarray, split: str = "val", method: str = "baseline", **others: Any) -> Any:
    """The verdict on class scores (N,C) of a split, whose tags the training photos have, too."""
    precision, chance = average_precision(scores, tags), chance_precision(scores, tags)
    entry = {
        "split": split,
        "images": len(tags),
        "map": float(np.nanmean(precision)),
        "chance": {"mean": float(chance.mean()), "high": float(np.quantile(chance, 0.99))},
    }
    items = [SimpleNamespace(tags=tuple(np.flatnonzero(row))) for row in tags]
    folder = SimpleNamespace(metrics=lambda: {"classification": others | {split: entry}}, log=list)
    collection = SimpleNamespace(split=lambda name: items)
    config = load_config({"method": {"name": method}})
    return verdict(SimpleNamespace(folder=folder, collection=collection, config=config))  # type: ignore[arg-type]


@pytest.mark.parametrize("classes,photos", [(2, 40), (3, 30), (14, 30), (14, 120), (60, 120)])
def test_the_verdict_tells_random_scores_from_learned_ones(classes: int, photos: int) -> None:
    random = np.random.default_rng(classes)
    tags = np.eye(classes)[np.arange(photos) % classes]
    by_chance = [judged(random.normal(size=tags.shape), tags)["learned"] for _ in range(10)]
    assert by_chance.count(False) >= 9, "one of a hundred may pass"
    noise = random.normal(size=tags.shape)
    assert judged(4 * tags + noise, tags)["learned"] is True
    assert judged(4 * tags + noise, tags, "train")["learned"] is None, "training photos show failures only"
    assert judged(-tags, tags, "train")["text"].count("training photos") == 1


def test_one_class_needs_photos_without_it(tmp_path: Path) -> None:
    tags, noise = np.ones((60, 1)), np.random.default_rng(0).normal(size=(60, 1))
    assert "empty tag cell" in judged(noise, tags)["text"]
    transferred = judged(noise, tags, method="class_transfer")
    assert transferred["learned"] is None and "look at some" in transferred["text"]
    assert "worth nothing" in judged(np.ones((60, 2)), np.ones((60, 2)), method="class_transfer")["text"]
    tags[::2] = 0
    assert judged(tags, tags)["learned"] is True and judged(noise, tags)["learned"] is False
    alone, both = (fingerprint(open_data(load_config({"data": {"root": str(folder)}}).data))["warnings"] for folder in (
        draw(tmp_path / "alone", 1, 6), draw(tmp_path / "both", 1, 6, empty=True)
    ))  # fmt: skip
    assert any("empty tag cell" in warning for warning in alone)
    assert not any("empty tag cell" in warning for warning in both)


def test_too_few_photos_get_no_verdict() -> None:
    tags, scores = np.eye(3)[[0, 1, 2, 0]], np.random.default_rng(0).normal(size=(4, 3))
    assert judged(scores, tags) == {"learned": None, "split": None, "map": None, "chance": None, "text": ""}


def test_methods_without_class_scores_get_no_verdict() -> None:
    folder = SimpleNamespace(metrics=lambda: {"scores": []})
    assert verdict(SimpleNamespace(folder=folder)) is None  # type: ignore[arg-type]


def test_chance_is_what_shuffled_tags_give() -> None:
    tags = np.eye(4)[np.arange(200) % 4]
    scores = np.random.default_rng(0).normal(size=tags.shape)
    chance = chance_precision(scores, tags)
    assert len(chance) == 200 and chance.mean() == pytest.approx(0.25, abs=0.04)
    assert np.array_equal(chance, chance_precision(torch.tensor(scores), torch.tensor(tags)))
    assert len(chance_precision(scores, np.zeros_like(tags))) == 0
