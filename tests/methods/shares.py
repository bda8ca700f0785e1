"""A training step of each contract, in one process or in several: ``python -m tests.methods.shares FILE``."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tagmask.training.loop import make_fabric
from tagmask.training.step import TrainStep, mean_of
from tagmask.types import IGNORE, Batch, View
from tests.methods.contract import MethodContract


def contracts() -> dict[str, type[MethodContract]]:
    """All of tests/methods, by name."""
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"tests.methods.{file.stem}")
    found, left = {}, [MethodContract]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if hasattr(kind, "settings"):
            found[f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"] = kind
    return dict(sorted(found.items()))


def part_of(batch: Batch, number: int, count: int) -> Batch:
    """One of ``count`` equal parts of a batch."""
    size = len(batch.images) // count
    taken = slice(number * size, (number + 1) * size)
    generator = torch.Generator()
    generator.set_state(batch.generator.get_state())
    return replace(
        batch,
        images=batch.images[taken],
        tags=batch.tags[taken],
        boxes=batch.boxes[taken],
        masks=None if batch.masks is None else batch.masks[taken],
        views={k: View(v.images[taken], v.boxes[taken], v.affine[taken]) for k, v in batch.views.items()},
        ids=batch.ids[taken],
        generator=generator,
        first=taken.start,
        whole=len(batch.images),
    )


def numbers(contract: MethodContract, parts: int = 1, processes: int = 1) -> dict[str, Tensor]:
    """Losses, gradients and buffers after one step on the contract's batch, in float32 and without dropout."""
    method = contract.build()
    for module in method.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0  # each process draws its own
    train = {"accumulate": parts, "devices": processes, "clip": None, "ema": None, "precision": "fp32"}
    config = contract.config(train=train)
    fabric = make_fabric(config.train)
    fabric.launch()
    stepper = TrainStep(method, config, fabric)
    batch = contract.batch(method.reads_masks)
    if batch.masks is not None:
        batch.masks[0, : len(batch.masks[0]) // 2] = IGNORE  # parts that have unequally many labels
    batches = [part_of(batch, p * processes + fabric.global_rank, parts * processes) for p in range(parts)]
    kept: dict[str, Tensor] = {}
    stepper.optimizer.step = lambda *_: kept.update(  # type: ignore[method-assign]
        {f"gradient of {name}": p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    )
    losses = stepper.run(iter(batches), contract.step)
    kept |= {name: torch.tensor(mean_of([part.terms[name] for part in losses])) for name in losses[0].terms}
    return kept | {f"buffer {name}": buffer.clone() for name, buffer in method.named_buffers()}


if __name__ == "__main__":
    everything = {name: numbers(kind(), processes=2) for name, kind in contracts().items()}
    torch.save(everything, f"{sys.argv[1]}.{torch.distributed.get_rank()}")
