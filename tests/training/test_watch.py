"""The watch over the classification loss: what is lost, and that a training begins again, also after a resume."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from rich.console import Console
from torch import nn

from tagmask.config import MethodConfig, RunConfig
from tagmask.data import Item, open_data
from tagmask.errors import TrainingError
from tagmask.methods import Method, build_method
from tagmask.methods.base import tag_loss
from tagmask.registry import METHODS
from tagmask.training import RunFolder, train_method
from tagmask.training.watch import Watch, constant_loss
from tagmask.types import Batch, Losses
from tests.methods.contract import tiny

ISSUE = {10: 0.29, 20: 0.76, 30: 2.44, 50: 0.66, 70: 3.09, 90: 0.39, 110: 2.03, 130: 0.03, 150: 0.31, 230: 0.1}
"""A training at a too high rate with three classes: losses by step."""


def photos(tags: Sequence[Sequence[int]]) -> list[Item]:
    return [Item(f"p{i}", Path("none.png"), tuple(t)) for i, t in enumerate(tags)]


def watched(classes: int = 3, steps: int = 230, tags: Sequence[Sequence[int]] = (), **settings: Any) -> Watch:
    config = tiny({"name": "baseline"}, train={"steps": steps, "warmup": steps // 20}, **settings)
    return Watch(config, photos(tags or [[i % classes] for i in range(60)]), classes, {})


def lost_at(watch: Watch, losses: Sequence[float]) -> list[int]:
    """Steps, from 1 on, after which the training was lost."""
    found = []
    for step, loss in enumerate(losses):
        term = torch.tensor(loss)
        if record := watch.lost(step, [Losses({"cls": term}, term)]):
            found.append(record["at"])
    return found


def between(points: dict[int, float], steps: int) -> list[float]:
    known = sorted(points)
    at = [min(known, key=lambda k: (k < step, abs(k - step))) for step in range(1, steps + 1)]
    return [points[k] for k in at]


@pytest.mark.parametrize("tags", [[[0], [1], [2], []], [[0, 1], [0], [1, 2], [0, 2], [0]]])
def test_constant_loss_is_the_least_that_constant_scores_have(tags: list[list[int]]) -> None:
    vectors = torch.tensor([[float(c in t) for c in range(3)] for t in tags], dtype=torch.float64)
    share = vectors.mean(0)
    expected = sum(-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in share.tolist()) / 3
    assert constant_loss(tags, 3) == pytest.approx(expected, abs=1e-12)
    scores = (share / (1 - share)).log().expand(len(tags), 3)
    assert constant_loss(tags, 3) == pytest.approx(tag_loss(scores, vectors).item(), abs=1e-6)
    assert tag_loss(scores + 0.1, vectors) > constant_loss(tags, 3)
    assert constant_loss([[0]] * 4, 1) == constant_loss([[0]] * 4, 3) == constant_loss([], 2) == 0


def test_constant_loss_of_a_softmax() -> None:
    tags = [[0], [1], [1], [2], [1], [0]]
    vectors = torch.tensor([[float(c in t) for c in range(3)] for t in tags], dtype=torch.float64)
    expected = -sum(p * math.log(p) for p in (2 / 6, 3 / 6, 1 / 6))
    assert constant_loss(tags, 3, softmax=True) == pytest.approx(expected, abs=1e-12)
    scores = vectors.mean(0).log().expand(6, 3)
    assert tag_loss(scores, vectors, "softmax").item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("classes", [20, 200])
def test_a_softmax_is_lost_back_at_the_logarithm_of_its_classes(classes: int) -> None:
    """Its loss begins there, far above what the multi-label loss has when it is lost."""

    def watch() -> Watch:
        config = tiny({"name": "baseline", "cls_loss": "softmax"}, train={"steps": 230, "warmup": 11})
        return Watch(config, photos([[i % classes] for i in range(400)]), classes, {})

    top = math.log(classes)
    assert watch().chance == pytest.approx(top)
    falling = [top * 0.98**step for step in range(230)]
    slow = [top - 0.002 * step + 0.1 * math.sin(step) for step in range(230)]
    assert lost_at(watch(), falling) == lost_at(watch(), slow) == []
    assert lost_at(watch(), [*falling[:60], *[top] * 170])[0] == pytest.approx(60 + 230 / 5, abs=12)


def test_a_jumping_loss_is_lost() -> None:
    assert 46 < lost_at(watched(), between(ISSUE, 230))[0] < 115


def test_a_network_that_died_is_lost_though_its_loss_is_chance() -> None:
    assert lost_at(watched(2), [0.7, 0.6, 40.0, 9.0, *[0.6931] * 226])[0] == pytest.approx(57, abs=6)
    assert lost_at(watched(3), [*[0.69] * 20, *[0.6] * 80, *[0.6931] * 130])[0] == pytest.approx(150, abs=12)


@pytest.mark.parametrize("classes", [2, 3, 14, 60])
def test_a_loss_that_falls_or_stays_at_chance_is_not_lost(classes: int) -> None:
    chance = watched(classes).chance
    falling = [max(0.69 * 0.97**step, 0.01) for step in range(230)]
    slow = [chance + (0.69 - chance) * 0.98**step + 0.1 * chance * math.sin(step) for step in range(230)]
    bumps = [loss + 3 * chance * (step % 40 == 20) for step, loss in enumerate(falling)]
    for losses in (falling, slow, bumps):
        assert lost_at(watched(classes), losses) == []


def test_warm_up_and_few_steps_do_not_count() -> None:
    early = [0.69, *[5.0] * 10, *[0.3] * 219]
    late = [*[0.3] * 190, *[5.0] * 40]
    assert lost_at(watched(), early) == lost_at(watched(), late) == []
    assert lost_at(watched(steps=20), [0.69, *[5.0] * 19]) == []
    assert lost_at(watched(), [0.69, *[5.0] * 229]) and not lost_at(watched(tags=[[0, 1, 2]] * 9), [0.69, *[5.0] * 229])


def test_other_losses_are_not_watched() -> None:
    watch, term = watched(), torch.tensor(9.0)
    assert all(watch.lost(step, [Losses({"seg": term}, term)]) is None for step in range(230))
    assert not watch.may_restart


def test_its_state_goes_on_where_it_was() -> None:
    losses = between(ISSUE, 230)
    whole = lost_at(watched(), losses)
    for stop in (1, 20, 50):
        first, second = watched(), watched()
        lost_at(first, losses[:stop])
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        found = [
            record["at"]
            for step in range(stop, 230)
            if (record := second.lost(step, [Losses({"cls": torch.tensor(losses[step])}, torch.zeros(()))]))
        ]
        assert found == whole


class BowlConfig(MethodConfig):
    name: Literal["bowl-for-tests"] = "bowl-for-tests"
    bad: float = 1e30


class Bowl(Method):
    """One weight w, loss 0.3 + 0.4·w²: a learning rate above 2.5 throws it out of the bowl."""

    config_class = BowlConfig
    config: BowlConfig
    stop_at: int | None = None
    """The call of ``losses`` at which memory runs out."""

    def __init__(self, config: BowlConfig, encoder: Any, classes: int) -> None:
        super().__init__(config, encoder, classes)
        self.weight = nn.Parameter(torch.ones(()))
        self.calls = 0

    def losses(self, batch: Batch, step: int) -> Losses:
        self.calls += 1
        if self.calls == self.stop_at:
            raise torch.OutOfMemoryError("out of memory")
        value = 0.3 + 0.4 * self.weight**2
        if self.weight.abs() > self.config.bad:
            value = value * float("inf")
        return Losses({"cls": value}, value)


@pytest.fixture(autouse=True)
def bowl() -> Iterator[None]:
    METHODS.names()
    METHODS.register("bowl-for-tests")(Bowl)
    yield
    METHODS._parts.pop("bowl-for-tests")


def bowl_config(tmp_path: Path, lr: float, plan: bool = True, **method: Any) -> RunConfig:
    sgd = {"optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.0, "head_lr": 1.0, "power": 0.0, "clip": 5.0}
    data = {"source": "demo", "root": str(tmp_path / "scenes"), "demo_images": 12}
    train = {**sgd, "lr": lr, "steps": 40, "batch_size": 1, "checkpoint_every": 13, "ema": 0.5}
    return tiny({"name": "bowl-for-tests", **method}, data=data, train=train, plan=plan)


def fill(config: RunConfig, out: Path, stop_at: int | None = None, resume: bool = False) -> tuple[Bowl, RunFolder, str]:
    """Train into a folder: the method, the folder and what was said."""
    collection, said = open_data(config.data), io.StringIO()
    method: Any = build_method(config, len(collection.classes))
    method.stop_at = stop_at
    items = [replace(item, tags=item.tags or (0,)) for item in collection.split("train")]
    train_method(method, config, items, collection.classes, RunFolder(out), resume, console=Console(file=said))
    return method, RunFolder(out), said.getvalue()


def log_of(folder: RunFolder) -> list[Any]:
    """The log without times."""
    return [(r["step"], r.get("losses"), r.get("lr"), r.get("lost")) for r in folder.log()]


def test_a_lost_training_begins_again_at_a_third_of_the_rate(tmp_path: Path) -> None:
    method, folder, said = fill(bowl_config(tmp_path, lr=4.5), tmp_path / "run")
    first, *rest = folder.log()
    assert first["step"] == 0 and 8 < first["lost"]["at"] <= 20 and f"step {first['lost']['at']} of 40" in said
    assert [r["step"] for r in rest] == list(range(1, 41)) and {r["lr"] for r in rest} == {1.5}
    assert method.weight.abs() < 0.01 and rest[0]["losses"]["cls"] == pytest.approx(0.7)


def test_it_begins_again_twice_and_then_goes_on(tmp_path: Path) -> None:
    _, folder, said = fill(bowl_config(tmp_path, lr=400.0), tmp_path / "run")
    records = [r for r in folder.log() if "lost" in r]
    assert [r["step"] > 0 for r in records] == [False, False, True] and said.count("Training is lost") == 3
    assert folder.log()[-1]["step"] == 40 and folder.log()[-1]["lr"] == pytest.approx(400 / 9)


def test_a_loss_that_is_not_finite_begins_again_at_once(tmp_path: Path) -> None:
    method, folder, _ = fill(bowl_config(tmp_path, lr=4.5, bad=3.0), tmp_path / "run")
    assert folder.log()[0]["lost"].keys() == {"at", "chance"} and method.weight.abs() < 0.01
    with pytest.raises(TrainingError, match=r"train\.lr"):
        fill(bowl_config(tmp_path, lr=400.0, bad=3.0), tmp_path / "other")


def test_a_complete_configuration_goes_on_and_it_is_said(tmp_path: Path) -> None:
    _, folder, said = fill(bowl_config(tmp_path, lr=4.5, plan=False), tmp_path / "run")
    assert "Training is lost" in said and {r["lr"] for r in folder.log() if "lr" in r} == {4.5}


@pytest.mark.parametrize("stop_at", [20, 45])
def test_a_resumed_training_begins_again_where_an_uninterrupted_one_does(tmp_path: Path, stop_at: int) -> None:
    config = bowl_config(tmp_path, lr=4.5)
    whole, expected, _ = fill(config, tmp_path / "whole")
    with pytest.raises(TrainingError):
        fill(config, tmp_path / "parts", stop_at)
    parts, folder, _ = fill(config, tmp_path / "parts", resume=True)
    assert parts.weight.item() == whole.weight.item() and log_of(folder) == log_of(expected)
