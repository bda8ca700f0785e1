"""The training loop, top to bottom: no hidden callbacks. Lightning Fabric brings devices, precision and processes."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from rich.console import Console

from tagmask import comm
from tagmask.config import RunConfig, TrainConfig
from tagmask.data import Item, TrainLoader, TrainViews
from tagmask.errors import ConfigError, Stopped, TrainingError
from tagmask.files import write_text
from tagmask.methods import Method
from tagmask.stop import Later, on_signal
from tagmask.training.checkpoint import InPlace, load_checkpoint, save_checkpoint
from tagmask.training.folder import RunFolder
from tagmask.training.model_files import save_model
from tagmask.training.progress import shown_progress
from tagmask.training.step import NotFinite, TrainStep, mean_of
from tagmask.training.watch import Watch, describe
from tagmask.types import Batch, Losses

Evaluate = Callable[[Method, int], dict[str, float]]
PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


@dataclass
class Trained:
    """What a training run cost, before and after resuming.

    seconds: in the loop, scoring left out. data_share: of them spent waiting for images.
    """

    steps: int
    seconds: float
    data_share: float


def make_fabric(config: TrainConfig) -> Fabric:
    """Fabric for the configured devices, processes and precision."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces the precision at every start
    several = config.nodes > 1 or _device_count(config) > 1
    try:
        return Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            # Heads whose loss is not on yet take no part in a step: DDP has to look for them.
            strategy="ddp_find_unused_parameters_true" if several and config.strategy == "auto" else config.strategy,
            precision=PRECISIONS[config.precision],
            plugins=InPlace(),
        )
    except (RuntimeError, ValueError, TypeError) as error:  # Fabric has no error of its own
        raise ConfigError(
            f"train.accelerator={config.accelerator} with train.devices={config.devices} is not possible on this "
            f"machine ({str(error)[:300]}). Set train.accelerator=auto and train.devices=1."
        ) from error


def readers(train: TrainConfig, device: torch.device, processes: int = 1) -> int:
    """How many processes read photos for each of ``processes`` on this machine, as ``train.workers`` says.

    'auto' is two, or one on a single core; where a GPU trains, half of the cores that this process may use, shared by
    the processes, from two to eight. Other runs on the machine, and a container's quota of processor time, are not
    known here.
    """
    if train.workers != "auto":
        return train.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.type == "cpu":
        return min(2, cores)
    return min(8, max(2, cores // 2 // processes))


def train_method(
    method: Method,
    config: RunConfig,
    items: list[Item],
    classes: list[str],
    folder: RunFolder,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    colour_map: Any = None,
    console: Console | None = None,
) -> Trained:
    """Train ``method`` on ``items`` into ``folder``: log.jsonl, checkpoints/ and, at the end, model/.

    evaluate: called with the method in eval mode every ``train.evaluate_every`` steps and at the end; its numbers
    enter the log. resume: go on from the newest checkpoint, giving the numbers of an uninterrupted run.
    Raises TrainingError on a non-finite loss (with the ids of the batch) or when memory runs out, and Stopped on Ctrl-C
    or SIGTERM, after a step and its checkpoint.
    """
    train = config.train
    fabric = make_fabric(train)
    if train.precision == "fp16" and fabric.device.type != "cuda":
        raise ConfigError("train.precision=fp16 needs a GPU; use bf16 or fp32 on a CPU.")
    fabric.launch()
    micro, remainder = divmod(train.batch_size, fabric.world_size * train.accumulate)
    if remainder or micro < 1:
        raise ConfigError(
            f"train.batch_size {train.batch_size} cannot be shared by {fabric.world_size} processes and "
            f"{train.accumulate} accumulated parts; choose a multiple of {fabric.world_size * train.accumulate}."
        )
    stepper = TrainStep(method, config, fabric)
    watch = Watch(config, items, len(classes), stepper.state())
    state = {**stepper.state(), "watch": watch, "step": 0, "seconds": 0.0, "waited": 0.0}
    state["processes"] = fabric.world_size
    say = _speaker(console if fabric.is_global_zero else Console(quiet=True))
    start = load_checkpoint(fabric, folder.checkpoints, state, say) if resume else 0
    if resume and not start and folder.log():
        say(f"{folder.checkpoints}: no checkpoint is there; training begins at step 0 again.")
    if state["processes"] != fabric.world_size:
        say(
            f"The steps before {start} ran in {state['processes']} processes, these run in {fabric.world_size}: the "
            "batches are the same, dropout and rounding are not."
        )
        state["processes"] = fabric.world_size
    if fabric.world_size * train.accumulate > 1:
        taken = f", in {train.accumulate} parts" if train.accumulate > 1 else ""
        say(
            f"A step has {train.batch_size} photos, {train.batch_size // fabric.world_size} in each of "
            f"{fabric.world_size} processes{taken}; learning rate {train.lr:g}."
        )

    def batches_from(step: int) -> Iterator[Batch]:
        loader = TrainLoader(
            items,
            len(classes),
            TrainViews(config.views, method.wanted_views),
            batch_size=micro,
            steps=train.steps,
            seed=config.seed,
            workers=readers(train, fabric.device, fabric.world_size // train.nodes),
            start_step=step,
            rank=fabric.global_rank,
            world=fabric.world_size,
            parts=train.accumulate,
            masks=method.reads_masks,
            colour_map=colour_map,
        )
        return iter(loader)

    spent, stepper.waited, shown = state["seconds"], state["waited"], stepper.shown
    batches = batches_from(start)
    log = _Log(fabric, folder, train, start, spent)
    asked = Later()

    def due(done: int) -> bool:
        every = train.evaluate_every
        return evaluate is not None and (done == train.steps or bool(every and done % every == 0))

    def score(done: int) -> None:
        assert evaluate is not None
        alone = fabric.world_size == 1  # several processes stop after a step only, all after the same one
        with asked.interruptible(_kept(folder, done, train)) if alone else nullcontext():
            shown.eval()
            log.scores(done, evaluate(shown, done))
            shown.train()

    shown_by = shown_progress(train.steps, start, console, visible=fabric.is_global_zero)
    with _others_there(fabric, folder), on_signal(asked), shown_by as show:
        if start and due(start) and log.lacks_scores:
            score(start)
        for step in watch.steps(start):
            began = time.perf_counter()
            try:
                parts = stepper.run(batches, step, watch.factor)
            except NotFinite:
                if not watch.may_restart:
                    raise
                parts = None
            done = step + 1
            spent += time.perf_counter() - began
            if lost := watch.lost(step, parts):
                if watch.may_restart:
                    watch.restart(lost)
                    stepper.optimizer.zero_grad(set_to_none=True)
                    batches = batches_from(0)
                    log.begin_again(watch.restarts, spent)
                    say(describe(lost, train.steps, train.lr * watch.factor))
                    continue
                log.lost(lost)
                say(describe(lost, train.steps, None))
            assert parts is not None  # or it began again
            if done % train.log_every == 0 or done == train.steps:
                lr = stepper.optimizer.param_groups[0]["lr"]
                show(log.step(done, parts, method.figures(), lr, spent, stepper.waited))
            stop = _anywhere(asked.number, fabric)
            # Scoring takes long, and may be stopped: a checkpoint comes first.
            if done % train.checkpoint_every == 0 or done == train.steps or due(done) or stop:
                state |= {"step": done, "seconds": spent, "waited": stepper.waited}
                save_checkpoint(fabric, folder.checkpoints, state, done, train.keep)
            if stop:
                raise Stopped(stop, _kept(folder, done, train))
            if due(done):
                score(done)
        if fabric.is_global_zero:
            save_model(folder.model, shown.eval(), config, classes, method.origin())
        log.close()
        fabric.barrier()
    if asked.number:
        raise Stopped(asked.number, f"The training is done, its model is in {folder.model}.")
    return Trained(train.steps, spent, stepper.waited / spent if spent else 0.0)


def _kept(folder: RunFolder, done: int, train: TrainConfig) -> str:
    return f"Step {done} of {train.steps} is done and kept in {folder.checkpoints}."


@contextmanager
def _others_there(fabric: Fabric, folder: RunFolder) -> Iterator[None]:
    """Raises TrainingError where another process of this training is gone."""
    try:
        yield
    except RuntimeError as error:  # gloo has no error of its own
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise TrainingError(
            f"Process {fabric.global_rank + 1} of {fabric.world_size} stops, as another one of this training is gone: "
            f"its message or the system's log says why. Kept is what is in {folder.checkpoints}; go on with --resume."
        ) from error


def _anywhere(number: int, fabric: Fabric) -> int:
    """The signal that stops this process, or another one; 0 for none. All processes get an answer other than 0."""
    if fabric.world_size == 1:
        return number
    stops = comm.over_processes(torch.tensor(float(bool(number)), device=fabric.device)) > 0
    return (number or signal.SIGTERM) if stops else 0


def _speaker(console: Console | None) -> Callable[[str], None]:
    console = console or Console(stderr=True)
    return lambda text: console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _device_count(config: TrainConfig) -> int:
    if config.devices in ("auto", "-1", -1):
        return 1 if config.accelerator == "cpu" else torch.cuda.device_count()
    return len(str(config.devices).split(",")) if "," in str(config.devices) else int(config.devices)


class _Log:
    """Writes log.jsonl and, where asked, TensorBoard, from the main process. Losses are means over processes."""

    def __init__(self, fabric: Fabric, folder: RunFolder, train: TrainConfig, start: int, spent: float) -> None:
        self.batch_size = train.batch_size
        self.last = (start, spent)
        self.board: Any = None
        self.file: Any = None
        self.lacks_scores = False
        if not fabric.is_global_zero:
            return
        kept = [r for r in folder.log() if r["step"] <= start] if start else []
        self.lacks_scores = not any(r["step"] == start and "scores" in r for r in kept)
        write_text(folder.log_file, "".join(json.dumps(record) + "\n" for record in kept))
        self.file = folder.log_file.open("a", encoding="utf-8")
        if train.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError("train.tensorboard needs: pip install 'tagmask[tensorboard]'.") from error
            self.board = SummaryWriter(str(folder.path / "tensorboard"))

    def step(
        self, step: int, parts: list[Losses], figures: dict[str, float], lr: float, spent: float, waited: float
    ) -> dict[str, Any]:
        names = parts[-1].terms
        losses = {n: mean_of([p.terms[n] for p in parts]) for n in names} | {"total": mean_of([p.total for p in parts])}
        before, then = self.last
        images = (step - before) * self.batch_size / max(spent - then, 1e-9)
        self.last = (step, spent)
        record = {
            "step": step,
            "losses": losses,
            **({"figures": figures} if figures else {}),
            "lr": lr,
            "images_per_second": round(images, 3),
            "seconds": round(spent, 3),
            "data_share": round(waited / max(spent, 1e-9), 4),
        }
        self._write(record)
        return record

    def scores(self, step: int, scores: dict[str, float]) -> None:
        self._write({"step": step, "scores": scores})

    def lost(self, record: dict[str, Any]) -> None:
        self._write({"step": record["at"], "lost": record})

    def begin_again(self, restarts: list[dict[str, Any]], spent: float) -> None:
        """Leave of all that was logged the restarts alone."""
        self.last = (0, spent)
        if self.file is not None:
            self.file.truncate(0)
            for record in restarts:
                self._write({"step": 0, "lost": record})

    def _write(self, record: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        if self.board is not None:
            scalars = {"lr": record["lr"]} if "lr" in record else {}
            for part, title in (("losses", "loss"), ("figures", "figure"), ("scores", "score")):
                scalars |= {f"{title}/{name}": value for name, value in record.get(part, {}).items()}
            for name, value in scalars.items():
                self.board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        for writer in (self.file, self.board):
            if writer is not None:
                writer.close()
