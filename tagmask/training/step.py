"""One training step: losses and gradients of its parts, clipping, optimiser, running averages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tagmask import comm
from tagmask.config import RunConfig, TrainConfig
from tagmask.errors import ConfigError, TrainingError
from tagmask.methods import Method
from tagmask.training.accumulate import known, rehearse, restore
from tagmask.types import Batch, Losses


class NotFinite(TrainingError):
    """A loss or a gradient is infinite or no number."""


class TrainStep:
    """A method with all that a training step needs: ``run`` makes one. Fabric has to be launched.

    However the batch is shared by processes and parts (``train.accumulate``), losses and gradients are those of the
    whole: see ``comm``. Raises ConfigError for batch norm that is trained where that cannot be.

    optimizer: its parameter groups carry their learning rates of the step before. shown: the method that is scored and
    saved, with ``train.ema`` the running average. waited: seconds that ``run`` waited for batches.
    """

    def __init__(self, method: Method, config: RunConfig, fabric: Fabric) -> None:
        train = config.train
        self.method, self.config, self.fabric = method, config, fabric
        self.waited = 0.0
        share_statistics(method, train, fabric)
        if train.channels_last:
            method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = method.param_groups(train.lr, train.head_lr, train.freeze_norm)
        self._base_rates = [group["lr"] for group in groups]
        self._wrapped, self.optimizer = fabric.setup(_Forward(method), make_optimizer(groups, train))
        self._ema: AveragedModel | None = None
        if train.ema:
            self._ema = AveragedModel(method, multi_avg_fn=get_ema_multi_avg_fn(train.ema), use_buffers=True)
        self.shown = method if self._ema is None else cast(Method, self._ema.module)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold of it."""
        state: dict[str, Any] = {"method": self.method, "optimizer": self.optimizer}
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None:
            state["scaler"] = scaler
        if self._ema is not None:
            state["ema"] = self._ema
        return state

    def run(self, batches: Iterator[Batch], step: int, factor: float = 1.0) -> list[Losses]:
        """Make step number ``step`` with the next ``train.accumulate`` batches; their losses.

        factor: of the learning rates. Raises NotFinite on a loss or gradient that is not finite (with the ids of the
        batch), before the weights change, and TrainingError when memory runs out.
        """
        train = self.config.train
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = factor * base * rate(step, train.steps, train.warmup, train.warmup_ratio, train.power)
        self._wrapped.train()
        asked = time.perf_counter()
        with _memory_advice(self.config):
            taken = [to_device(next(batches), self.fabric, train) for _ in range(train.accumulate)]
        self.waited += time.perf_counter() - asked
        with _memory_advice(self.config):
            parts = [self._part(taken[0], 0, step)] if train.accumulate == 1 else self._parts(taken, step)
        self._clip(taken[-1], step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(step)
        if self._ema is not None:
            self._ema.update_parameters(self.method)
        return parts

    def _parts(self, batches: list[Batch], step: int) -> list[Losses]:
        """Losses and gradients of a batch in parts, each with the sums over all of them."""
        count, buffers = len(batches), list(self.method.buffers())
        before, drawn = [buffer.clone() for buffer in buffers], [batch.generator.get_state() for batch in batches]

        def forward(part: int) -> None:
            self._seed(step, part)
            with self.fabric.autocast():
                self.method.losses(batches[part], step)

        sums = rehearse([partial(forward, part) for part in range(count)], buffers, self.fabric.device)
        found = []
        for part, batch in enumerate(batches):
            # As if all parts were at once: each begins with the same state, and leaves the same behind.
            restore(buffers, before)
            batch.generator.set_state(drawn[part])
            last = part == count - 1
            alone = nullcontext() if last else self.fabric.no_backward_sync(self._wrapped)
            with comm.accumulating(count, known(sums)), alone:
                found.append(self._part(batch, part, step))
        return found

    def _part(self, batch: Batch, part: int, step: int) -> Losses:
        """Losses and gradients of one part of the step's batch."""
        self._seed(step, part)
        losses = self._wrapped(lambda: batch, step)
        _check_finite(losses, batch, step)
        self.fabric.backward(losses.total / self.config.train.accumulate)
        return losses

    def _seed(self, step: int, part: int) -> None:
        """The step's own seed, not a running one: dropout is the same after a resume."""
        share = part * self.fabric.world_size + self.fabric.global_rank
        torch.manual_seed(comm.mix_seed(self.config.seed, step, share))

    def _clip(self, batch: Batch, step: int) -> None:
        train = self.config.train
        largest = math.inf if train.clip is None else train.clip
        # fp16's scaler skips a step with infinite gradients by itself; elsewhere they would wreck the weights.
        strict = train.precision != "fp16"
        try:
            self.fabric.clip_gradients(self._wrapped, self.optimizer, max_norm=largest, error_if_nonfinite=strict)
        except RuntimeError as error:
            if "non-finite" not in str(error):
                raise
            raise _not_finite("A gradient", batch, step) from error


def share_statistics(method: Method, train: TrainConfig, fabric: Fabric) -> None:
    """Let batch norm that is trained take the statistics of the whole batch. Raises ConfigError where it cannot."""
    method.train()
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in method.modules()):
        return
    way = "set encoder.norm_eval=true and, for head 'segformer', the option norm: group"
    if train.accumulate > 1:
        raise ConfigError(
            f"train.accumulate={train.accumulate}: batch norm that is trained needs the whole batch at once; {way}, or "
            "train.accumulate=1."
        )
    if fabric.world_size > 1:
        if fabric.device.type == "cpu":
            raise ConfigError(f"Batch norm that is trained is shared by processes on GPUs only; {way}.")
        convert_sync_batchnorm(method)


class _Forward(nn.Module):
    """``Method.losses`` as the forward pass that Fabric and DDP wrap.

    The batch comes through a function: Fabric casts tensors among the arguments to the autocast type, and images
    in bfloat16 would lose colours.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Callable[[], Batch], step: int) -> Losses:
        return self.method.losses(batch(), step)


def rate(step: int, steps: int, warmup: int, warmup_ratio: float, power: float) -> float:
    """Factor on the base learning rate at ``step`` of ``steps``, in (0, 1]: warm-up, then DeepLab's "poly" decay.

    Up to ``warmup`` it rises linearly from ``warmup_ratio`` to 1; then it is (1 − step/steps)^power.
    """
    if step < warmup:
        return warmup_ratio + (1 - warmup_ratio) * step / warmup
    return (1 - step / steps) ** power


def make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over parameter groups that carry their own learning rates."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        groups, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
    )


def to_device(batch: Batch, fabric: Fabric, train: TrainConfig) -> Batch:
    """The batch on Fabric's device, its generator there with the same seed."""
    generator = batch.generator
    if fabric.device.type != "cpu":
        generator = torch.Generator(device=fabric.device)
        generator.manual_seed(batch.generator.initial_seed())
    batch = batch.to(fabric.device, generator)
    if train.channels_last:
        batch.images = batch.images.contiguous(memory_format=torch.channels_last)
    return batch


def _check_finite(losses: Losses, batch: Batch, step: int) -> None:
    # Every process has to stop, or the others would wait for it for ever.
    if comm.over_processes((~torch.isfinite(losses.total.detach())).float()) > 0:
        terms = ", ".join(f"{name}={value.item():.4g}" for name, value in losses.terms.items())
        raise _not_finite(f"The loss ({terms})", batch, step)


def mean_of(values: Sequence[Tensor]) -> float:
    """The mean of scalars of all processes."""
    return float(comm.over_processes(torch.stack([v.detach().float() for v in values]).mean()) / comm.world_size())


def _not_finite(what: str, batch: Batch, step: int) -> NotFinite:
    return NotFinite(
        f"{what} at step {step} is not finite; images {', '.join(batch.ids)}. Train again, into another folder, with a "
        "lower train.lr or train.clip, or with train.precision=fp32."
    )


@contextmanager
def _memory_advice(config: RunConfig) -> Iterator[None]:
    """Turns an out-of-memory error into one that says what to lower, also where it struck a process that reads."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if "DataLoader worker" in str(error):
            raise TrainingError(
                "A process that reads photos was killed, as a system does that runs out of memory. Lower train.workers "
                "or train.batch_size, and go on with --resume."
            ) from error
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        train = config.train
        raise TrainingError(
            f"Memory ran out with train.batch_size={train.batch_size}, views.crop={config.views.crop}, "
            f"train.precision={train.precision}. Lower views.crop, raise train.accumulate (now {train.accumulate}), "
            "use train.precision=bf16 or encoder.checkpointing=true."
        ) from error
