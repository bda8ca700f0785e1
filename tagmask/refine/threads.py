"""Process parts of a batch in parallel, one part a thread.

torch splits every single operation among its threads and waits for the slowest. A refinement has thousands of short
operations. If other processes use the cores, too (data loading workers, a second job), each wait costs a time slice
of the system; the sum was measured at ten to a hundred times the work. Here each thread takes its part through all
operations, and there is one wait at the end.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


def for_each(work: Callable[[slice], None], parts: Sequence[slice], device: torch.device) -> None:
    """Call ``work`` on every part: in parallel on a CPU with several threads, else in turn. Its errors pass through."""
    threads = worker_count(device)
    if threads == 1:
        for part in parts:
            work(part)
        return
    inference = torch.is_inference_mode_enabled()

    def call(part: slice) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # a new thread inherits neither
            work(part)

    for _ in _pool(threads).map(call, parts):
        pass


def each_image(work: Callable[[int], None], count: int, device: torch.device) -> None:
    """Call ``work`` on 0..count: several images side by side, each on one thread; a single one in the caller's thread,
    where its own operations are divided among the threads."""

    def several(part: slice) -> None:
        for i in range(part.start, part.stop):
            work(i)

    if count == 1:
        work(0)
    else:
        for_each(several, cut(count, worker_count(device)), device)


def cut(length: int, parts: int) -> list[slice]:
    """0..length in at most ``parts`` slices, equal but for the last."""
    step = math.ceil(length / max(1, parts))
    return [slice(start, min(start + step, length)) for start in range(0, length, max(1, step))]


def worker_count(device: torch.device) -> int:
    """Number of parts that ``for_each`` processes at the same time: torch's number of threads on a CPU."""
    # Without OpenMP, torch cannot limit the threads of one thread's operations.
    return torch.get_num_threads() if device.type == "cpu" and _openmp() else 1


@cache
def _openmp() -> bool:
    return "parallel backend: OpenMP" in torch.__config__.parallel_info()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """A lasting pool of threads, in each of which torch uses a single thread."""
    barrier = threading.Barrier(threads + 1)

    def start() -> None:
        # In OpenMP each thread has its own number, but only after it was read once: read, then set.
        torch.get_num_threads()
        torch.set_num_threads(1)
        barrier.wait()

    pool = ThreadPoolExecutor(threads, "tagmask-refine", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    barrier.wait()
    torch.set_num_threads(threads)  # the default of later threads
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
