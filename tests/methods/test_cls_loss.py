"""``cls_loss``: a softmax over the classes for photos of one class each, in every method that classifies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tagmask.errors import DataError
from tagmask.methods import build_method
from tagmask.methods.base import ClassifierConfig, class_share, tag_loss
from tagmask.registry import METHODS
from tagmask.workflow import train
from tagmask.workflow.plan import choose
from tests.methods.contract import CLASSES, squares, tiny
from tests.workflow.drawn import draw

CLASSIFIERS = [name for name in METHODS.names() if issubclass(METHODS.get(name).config_class, ClassifierConfig)]
SETTINGS: dict[str, dict[str, Any]] = {
    "afa": {"affinity": "none"},
    "tscd": {"affinity": "none"},
    "crt": {"cnn": {"name": "test_resnet"}, "tile": None, "loops": 0, "attention": "none"},
    "eca": {"affinity": "none", "weight_region": 0, "weight_corr": 0},
    "cosa": {"warmup": 9, "inference": "online"},
}


def cross_entropy(scores: Tensor, tags: Tensor) -> float:
    """In loops: minus the logarithm of the share that the true class has of the exponentials, mean over images."""
    total = 0.0
    for row, tag in zip(scores.double().tolist(), tags.tolist()):
        total -= math.log(math.exp(row[tag.index(1)]) / sum(math.exp(s) for s in row))
    return total / len(tags)


def build(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    sections = {"views": {"crop": 64, "local": {"size": 32}}}
    return build_method(tiny({"name": name, **SETTINGS.get(name, {}), **changes}, **sections), CLASSES)


def test_softmax_equals_loops() -> None:
    scores = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tags = torch.eye(7)[[0, 6, 3, 3, 1]]
    assert tag_loss(scores, tags, "softmax").item() == pytest.approx(cross_entropy(scores, tags), rel=1e-12)
    assert tag_loss(scores.half(), tags, "softmax").dtype == torch.float32


@pytest.mark.parametrize("tags", [[0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
def test_no_tag_and_several_are_refused(tags: list[float]) -> None:
    with pytest.raises(DataError, match=r"method\.cls_loss"):
        tag_loss(torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 0.0], tags]), "softmax")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_method_learns_and_scores_by_it(name: str) -> None:
    batch = squares()
    for view in METHODS.get(name).wanted_views | {"strong"}:
        batch.views.setdefault(view, type("View", (), {"images": batch.images, "boxes": batch.boxes})())
    plain, soft = (build(name, cls_loss=loss).eval() for loss in ("multilabel", "softmax"))
    with torch.no_grad():
        for method in (plain, soft):
            method.classifier.conv.weight.mul_(40)
        values = [method.losses(batch, 0).terms["cls"].item() for method in (plain, soft)]
        odds = torch.logit(plain.class_scores(batch.images).double())
        scores = soft.class_scores(batch.images)
    torch.testing.assert_close(scores.sum(1), torch.ones(4))
    torch.testing.assert_close(scores, odds.softmax(1).float(), rtol=1e-3, atol=1e-5)
    if name != "seam":  # the mean of two copies
        assert values[1] == pytest.approx(cross_entropy(odds, batch.tags), rel=1e-3)
    assert values[1] != pytest.approx(values[0], rel=1e-2)


@pytest.mark.parametrize("name", ["baseline", "eca", "rcm_mam", "cosa"])
def test_tags_are_trusted_by_the_probability_of_the_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three equal logits of 0 are 1/2 each to a sigmoid, and 1/3 to a softmax: a gate lies between."""
    seen: list[Tensor] = []
    for loss in ("multilabel", "softmax"):
        method = build(name, gate=0.4, warmup=0, cls_loss=loss, **({"weight_mam": 0} if name == "rcm_mam" else {}))
        assert (method.probabilities(torch.zeros(1, 3)) >= 0.4).all() == (loss == "multilabel")
        original = method.probabilities
        monkeypatch.setattr(method, "probabilities", lambda scores, f=original: seen.append(scores) or f(scores))
        batch = squares()
        batch.views["strong"] = type("View", (), {"images": batch.images, "boxes": batch.boxes})()  # type: ignore[assignment]
        method.losses(batch, 5)
        assert len(seen) == 1 and seen.pop().shape == (4, CLASSES), "asked once for the batch"


def test_many_classes_are_learned_sooner() -> None:
    """200 classes, 100 steps of 32 vectors, with the weight that the plan gives the mean over 200 binary losses."""
    right = {}
    for loss, weight in (("multilabel", class_share(200)), ("softmax", 1.0)):
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(200, 64, generator=generator)
        weights = torch.zeros(200, 64, requires_grad=True)
        optimizer = torch.optim.SGD([weights], lr=0.1, momentum=0.9)
        for step in range(101):
            classes = torch.randint(200, (32 if step < 100 else 2000,), generator=generator)
            vectors = (centres[classes] + torch.randn(len(classes), 64, generator=generator)).relu()
            scores = vectors @ weights.T
            optimizer.zero_grad()
            (weight * tag_loss(scores, torch.eye(200)[classes], loss)).backward()
            torch.nn.utils.clip_grad_norm_([weights], 1.0)
            optimizer.step()
        right[loss] = (scores.argmax(1) == classes).float().mean().item()
    assert right["softmax"] > 0.85 and right["softmax"] > right["multilabel"] + 0.3, right


def planned(tags: dict[str, int], labelled: int, empty: int = 0, **method: Any) -> dict[str, Any]:
    """The plan's choices for photos that have these tags, by class."""
    found = {
        "classes": list(tags),
        "counts": {"labelled": labelled, "empty": empty},
        "tags": tags,
        "splits": {},
        "sizes": {"width": {"median": 320}, "height": {"median": 213}},
    }
    given = {"method": {"name": "baseline", **method}, "encoder": {"name": "resnet18"}}
    return {c.key: c for c in choose(found, torch.device("cpu"), given)}


def test_the_plan_takes_a_softmax_where_photos_have_one_of_many_classes() -> None:
    many = {f"c{i}": 10 for i in range(20)}
    plan = planned(many, 200)
    assert plan["method.cls_loss"].value == "softmax" and "20 classes" in plan["method.cls_loss"].why
    assert "method.weight_cls" not in plan and plan["method.gate"].value == 0
    few = {f"c{i}": 10 for i in range(14)}
    for other in (planned(few, 140), planned(many, 190), planned(many, 200, empty=1), planned(many, 201, empty=1)):
        assert "method.cls_loss" not in other and other["method.gate"].value > 0 and "method.weight_cls" in other
    asked = planned(many, 200, cls_loss="multilabel")
    assert "method.cls_loss" not in asked and asked["method.weight_cls"].value == pytest.approx(20 / 14, abs=1e-4)
    asked = planned(few, 140, cls_loss="softmax")
    assert "method.weight_cls" not in asked and asked["method.gate"].value == 0


@pytest.mark.parametrize("empty", [False, True])
def test_photos_of_none_or_several_classes_are_refused_before_training(empty: bool, tmp_path: Path) -> None:
    folder = draw(tmp_path / "data", 3, 12, many=not empty, empty=empty)
    config = tiny({"name": "baseline", "cls_loss": "softmax", "warmup": 0}, data={"root": str(folder)})
    with pytest.raises(DataError, match=r"method\.cls_loss"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()
