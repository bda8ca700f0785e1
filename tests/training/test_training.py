"""The training loop: schedule, failure modes, accumulation, averages, logs and checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tagmask import workflow
from tagmask.config import MethodConfig, RunConfig, TrainConfig
from tagmask.data import open_data
from tagmask.errors import ConfigError, TrainingError
from tagmask.methods import Method, build_method
from tagmask.registry import METHODS
from tagmask.training import RunFolder, Trained, load_model, loop, rate, readers, train_method
from tagmask.training.accumulate import known
from tagmask.training.checkpoint import checkpoints
from tagmask.training.step import share_statistics
from tagmask.types import Batch, Losses
from tests.methods.contract import tiny


class ToyConfig(MethodConfig):
    name: Literal["toy-for-tests"] = "toy-for-tests"
    fail: str = ""
    at: int = 0


class Toy(Method):
    """One weight, loss = weight × mean brightness: its gradient can be computed by hand."""

    config_class = ToyConfig
    config: ToyConfig

    def __init__(self, config: ToyConfig, encoder: Any, classes: int) -> None:
        super().__init__(config, encoder, classes)
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, list[str]]] = []
        self.brightness: list[float] = []

    def losses(self, batch: Batch, step: int) -> Losses:
        self.seen.append((step, batch.ids))
        self.brightness.append(batch.images.mean().item())
        value = self.weight * batch.images.mean()
        if step == self.config.at:
            if self.config.fail == "nan":
                value = value * float("nan")
            elif self.config.fail == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            elif self.config.fail == "gradient":
                value = value + (self.weight - self.weight.detach()).abs().sqrt()  # infinite slope at 0
            elif self.config.fail == "other":
                raise RuntimeError("something else")
        return Losses({"value": value}, value)

    def figures(self) -> dict[str, float]:
        return {"seen": float(len(self.seen))}


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    METHODS.names()
    METHODS.register("toy-for-tests")(Toy)
    yield
    METHODS._parts.pop("toy-for-tests")


def configure(tmp_path: Path, method: dict[str, Any] | None = None, **train: Any) -> RunConfig:
    data = {"source": "demo", "root": str(tmp_path / "scenes"), "demo_images": 12}
    train = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 0.1, "head_lr": 1.0, "power": 0.0} | train
    return tiny({"name": "toy-for-tests", **(method or {})}, data=data, train=train)


def run(config: RunConfig, out: Path, resume: bool = False, evaluate: Any = None) -> tuple[Toy, RunFolder, Trained]:
    collection = open_data(config.data)
    method = build_method(config, len(collection.classes))
    folder = RunFolder(out)
    done = train_method(method, config, collection.split("train"), collection.classes, folder, resume, evaluate)
    return method, folder, done


@pytest.mark.parametrize("step,expected", [(0, 1e-6), (50, 0.5 + 0.5e-6), (100, 0.9), (550, 0.45), (999, 0.001)])
def test_rate_rises_linearly_then_decays(step: int, expected: float) -> None:
    assert rate(step, 1000, 100, 1e-6, 1.0) == pytest.approx(expected, rel=1e-6)


def test_sgd_follows_the_gradient_that_is_known_by_hand(tmp_path: Path) -> None:
    method, _, _ = run(configure(tmp_path, steps=3), tmp_path / "run")
    assert method.weight.item() == pytest.approx(1 - 0.1 * sum(method.brightness), rel=1e-5)


def test_accumulation_averages_its_parts_and_sees_as_many_images(tmp_path: Path) -> None:
    method, _, _ = run(configure(tmp_path, steps=2, accumulate=2), tmp_path / "run")
    seen, brightness = [], []
    for at, value in zip(method.seen, method.brightness):
        if at not in seen:  # else it is looked at twice, to know what the whole batch has
            seen.append(at)
            brightness.append(value)
    assert [step for step, _ in seen] == [0, 0, 1, 1]
    assert all(len(ids) == 2 for _, ids in seen)
    assert method.weight.item() == pytest.approx(1 - 0.1 * sum(brightness) / 2, rel=1e-5)


def test_parts_and_processes_take_the_images_of_the_whole(tmp_path: Path) -> None:
    whole, _, _ = run(configure(tmp_path, steps=3), tmp_path / "whole")
    parts, _, _ = run(configure(tmp_path, steps=3, accumulate=4), tmp_path / "parts")
    assert parts.weight.item() == pytest.approx(whole.weight.item(), rel=1e-6)


def test_an_error_in_a_part_is_that_of_the_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"train\.accumulate \(now 2\)"):
        run(configure(tmp_path, {"fail": "memory"}, accumulate=2), tmp_path / "run")


@pytest.mark.parametrize("train", [{"accumulate": 2}, {"devices": 2}])
def test_batch_norm_that_is_trained_needs_the_whole_batch(tmp_path: Path, train: dict[str, int]) -> None:
    config = configure(tmp_path, **train)
    config.encoder.norm_eval = False
    if "accumulate" in train:
        with pytest.raises(ConfigError, match="norm_eval"):
            run(config, tmp_path / "run")
        return
    fabric = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    method = build_method(config, 3)
    with pytest.raises(ConfigError, match="norm_eval"):
        share_statistics(method, config.train, fabric)
    fabric.device = torch.device("cuda")
    share_statistics(method, config.train, fabric)
    kinds = {type(m).__name__ for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds <= {"SyncBatchNorm", "SyncBatchNormAct"} and kinds


def test_the_gradient_of_a_sum_over_the_batch_is_refused_in_parts() -> None:
    with pytest.raises(TrainingError, match="accumulate=1"):
        known([torch.ones(())])(torch.ones((), requires_grad=True))


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size 4"):
        run(configure(tmp_path, accumulate=3), tmp_path / "run")


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    method, _, _ = run(configure(tmp_path, steps=1, clip=0.01), tmp_path / "run")
    assert method.weight.item() == pytest.approx(1 - 0.1 * 0.01, rel=1e-4)


@pytest.mark.parametrize("fail", ["nan", "gradient"])
def test_non_finite_stops_with_the_ids_and_leaves_the_weights_alone(tmp_path: Path, fail: str) -> None:
    config = configure(tmp_path, {"fail": fail, "at": 3}, steps=5)
    with pytest.raises(TrainingError, match=r"step 3 .*scene.*train\.lr"):
        run(config, tmp_path / "run")
    saved = torch.load(checkpoints(tmp_path / "run" / "checkpoints")[-1], weights_only=True)
    assert saved["step"] == 2 and torch.isfinite(saved["method"]["weight"])


def test_gradients_are_checked_without_clipping_too(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 0 .*train\.lr"):
        run(configure(tmp_path, {"fail": "gradient"}, clip=None), tmp_path / "run")


@pytest.mark.parametrize(
    "workers,device,cores,processes,expected",
    [
        ("auto", "cpu", 32, 1, 2),
        ("auto", "cpu", 1, 1, 1),
        ("auto", "cuda", 16, 1, 8),
        ("auto", "cuda", 8, 1, 4),
        ("auto", "cuda", 64, 8, 4),
        ("auto", "cuda", 2, 1, 2),
        ("auto", "cuda", 128, 1, 8),
        (0, "cuda", 16, 1, 0),
        (5, "cpu", 2, 4, 5),
    ],
)
def test_readers_of_photos(
    workers: Any, device: str, cores: int, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    config = TrainConfig(workers=workers)
    assert readers(config, torch.device(device), processes) == expected


def test_a_training_has_its_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = loop.TrainLoader

    def loader(*args: Any, workers: int, **kwargs: Any) -> Any:
        seen.append(workers)
        return real(*args, workers=0, **kwargs)

    monkeypatch.setattr(loop, "TrainLoader", loader)
    for workers in ("auto", 3):
        run(configure(tmp_path, workers=workers), tmp_path / str(workers))
    assert seen == [min(2, len(os.sched_getaffinity(0))), 3]
    with pytest.raises(ValidationError):
        TrainConfig(workers=-1)


def test_half_precision_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.precision"):
        run(configure(tmp_path, precision="fp16"), tmp_path / "run")


@pytest.mark.parametrize("section", ["train", "method"])
def test_a_warm_up_as_long_as_the_training_is_refused(tmp_path: Path, section: str) -> None:
    config = tiny({"name": "baseline", "warmup": 2}, train={"steps": 4})
    getattr(config, section).warmup = 4
    with pytest.raises(ConfigError, match=rf"{section}\.warmup"):
        workflow.train(config, tmp_path / "run")


def test_out_of_memory_says_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"train\.batch_size=4.*views\.crop=64.*train\.accumulate"):
        run(configure(tmp_path, {"fail": "memory"}), tmp_path / "run")


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="something else"):
        run(configure(tmp_path, {"fail": "other"}), tmp_path / "run")


def test_average_of_weights_is_what_is_scored_and_saved(tmp_path: Path) -> None:
    config = configure(tmp_path, steps=2, ema=0.5)
    scored = []
    method, folder, _ = run(config, tmp_path / "run", evaluate=lambda m, step: scored.append(m.weight.item()) or {})
    after_one = 1 - 0.1 * method.brightness[0]
    # The average starts as a copy of the weights after the first step.
    expected = 0.5 * after_one + 0.5 * method.weight.item()
    assert scored == [pytest.approx(expected, rel=1e-5)]
    loaded, _, _ = load_model(folder.model)
    assert loaded.weight.item() == pytest.approx(expected, rel=1e-5)


def test_average_of_weights_survives_a_resume(tmp_path: Path) -> None:
    _, whole, _ = run(configure(tmp_path, steps=5, ema=0.5), tmp_path / "whole")
    with pytest.raises(TrainingError):
        run(configure(tmp_path, {"fail": "nan", "at": 3}, steps=5, ema=0.5), tmp_path / "parts")
    _, parts, _ = run(configure(tmp_path, steps=5, ema=0.5), tmp_path / "parts", resume=True)
    assert load_model(whole.model)[0].weight.item() == load_model(parts.model)[0].weight.item()


def test_log_has_losses_speed_and_scores(tmp_path: Path) -> None:
    config = configure(tmp_path, steps=4, log_every=2, evaluate_every=2, tensorboard=True)
    _, folder, done = run(config, tmp_path / "run", evaluate=lambda m, step: {"val/segmenter": 0.5})
    records = folder.log()
    assert [r["step"] for r in records] == [2, 2, 4, 4]
    assert records[0]["losses"].keys() == {"value", "total"} and records[0]["images_per_second"] > 0
    assert [r["figures"] for r in records[::2]] == [{"seen": 2.0}, {"seen": 4.0}]
    assert records[1]["scores"] == {"val/segmenter": 0.5}
    assert 0 <= done.data_share <= 1 and done.steps == 4
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"loss/value", "loss/total", "figure/seen", "lr", "score/val/segmenter"} <= set(board.Tags()["scalars"])
    assert [event.value for event in board.Scalars("figure/seen")] == [2.0, 4.0]


def test_log_after_resume_holds_each_step_once(tmp_path: Path) -> None:
    config = configure(tmp_path, {"fail": "nan", "at": 3}, steps=5)
    with pytest.raises(TrainingError):
        run(config, tmp_path / "run")
    healthy = configure(tmp_path, steps=5)
    _, folder, done = run(healthy, tmp_path / "run", resume=True)
    assert [r["step"] for r in folder.log()] == [1, 2, 3, 4, 5]
    seconds = [r["seconds"] for r in folder.log()]
    assert seconds == sorted(seconds) and done.seconds >= seconds[-1] - 0.01, "time before the break counts"


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    _, folder, _ = run(configure(tmp_path, steps=8, checkpoint_every=2, keep=2), tmp_path / "run")
    assert [p.name for p in checkpoints(folder.checkpoints)] == ["step_0000006.ckpt", "step_0000008.ckpt"]


def test_a_checkpoint_of_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    run(configure(tmp_path, steps=2), tmp_path / "run")
    other = configure(tmp_path, steps=2)
    other.encoder.name = "resnet34"
    with pytest.raises(TrainingError, match="step_0000002.ckpt"):
        run(other, tmp_path / "run", resume=True)


def test_training_into_a_finished_run_is_refused(tmp_path: Path) -> None:
    config = configure(tmp_path, steps=1)
    workflow.train(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="--resume"):
        workflow.train(config, tmp_path / "run")


def test_the_folder_says_how_it_was_made(tmp_path: Path) -> None:
    config = configure(tmp_path, steps=1)
    workflow.train(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert folder.config() == config
    assert json.loads(folder.environment_file.read_text())["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "background" in (folder.model / "README.md").read_text()
