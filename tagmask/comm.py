"""Sums over all that shares a training step's batch: processes, and the parts of an accumulated batch.

With one process and one part a sum is its input. A loss that divides by what it finds in a batch divides by its
``share``: the mean of the shares' losses and gradients is then that of the whole batch.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


class _Accumulated(threading.local):
    """Of this thread: into how many parts its process shares the batch, and what sums a value over them."""

    parts: int = 1
    total: Callable[[Tensor], Tensor] | None = None


_accumulated = _Accumulated()


def world_size() -> int:
    """Number of processes in this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process, 0 is the main one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def over_processes(value: Tensor) -> Tensor:
    """Sum of ``value`` over all processes (any shape, the same in each), with gradient."""
    return value if world_size() == 1 else _AllReduce.apply(value)


class _AllReduce(Function):
    """Sum over processes. Each gets the sum of all gradients, as each one's loss depends on all values."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _AllReduce.apply(grad)


def all_sum(value: Tensor) -> Tensor:
    """Sum of ``value`` over the shares of the batch (any shape, the same in each).

    Gradient flows through it into all processes, but not into the other parts of an accumulated batch: a value that
    has one raises TagmaskError there. All shares must ask for the same sums in the same order.
    """
    return over_processes(value) if _accumulated.total is None else _accumulated.total(value)


def shares() -> int:
    """Number of shares of the batch."""
    return world_size() * _accumulated.parts


def share(counted: Tensor, least: float = 1.0) -> Tensor:
    """What a share's sum is divided by, so that the mean over shares is a mean over all that the batch has.

    counted: number or total weight of what a share has, any shape. least: lower bound of that of the whole batch.
    """
    return all_sum(counted).clamp(min=least) / shares()


@contextmanager
def accumulating(parts: int, total: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within it, in this thread, the batch has so many parts, and ``total`` sums over them and all processes."""
    _accumulated.parts, _accumulated.total = parts, total
    try:
        yield
    finally:
        _accumulated.parts, _accumulated.total = 1, None


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several integers: a node of the run's seed tree. The same parts give the same seed."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
