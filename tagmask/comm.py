"""Sums and numbers of processes. In a single process a sum is its input."""

from __future__ import annotations

import hashlib

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes in this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process, 0 is the main one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_sum(value: Tensor) -> Tensor:
    """Sum of ``value`` over all processes (any shape, the same in each). Without gradient."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several integers: a node of the run's seed tree. The same parts give the same seed."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
