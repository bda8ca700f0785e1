"""Work on parts of a batch in parallel, one part a thread.

torch shares each single operation out among its threads and waits for the slowest. The refinements are thousands of
short operations: where other processes want the cores, too (data loading workers, a second job), a wait costs a time
slice of the system, and the sum was measured at ten to a hundred times the work. Here each thread carries its
part through all operations alone, and waits once.
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
    """Call ``work`` on every part: in parallel on a CPU with several threads, else in turn. Raises what it raises."""
    threads = worker_count(device)
    if threads == 1:
        for part in parts:
            work(part)
        return
    inference = torch.is_inference_mode_enabled()

    def call(part: slice) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # both are settings of a thread
            work(part)

    for _ in _pool(threads).map(call, parts):
        pass


def cut(length: int, parts: int) -> list[slice]:
    """0..length in at most that many slices, alike but for the last."""
    step = math.ceil(length / max(1, parts))
    return [slice(start, min(start + step, length)) for start in range(0, length, max(1, step))]


def worker_count(device: torch.device) -> int:
    """Parts that ``for_each`` works on at the same time: torch's number of threads on a CPU."""
    # Other builds of torch cannot limit the threads of a single thread's operations.
    return torch.get_num_threads() if device.type == "cpu" and _openmp() else 1


@cache
def _openmp() -> bool:
    return "parallel backend: OpenMP" in torch.__config__.parallel_info()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose torch operations run in that thread alone; made once, kept."""
    barrier = threading.Barrier(threads + 1)

    def start() -> None:
        # With OpenMP the number is each thread's own, once the thread has one: ask first, then set.
        torch.get_num_threads()
        torch.set_num_threads(1)
        barrier.wait()

    pool = ThreadPoolExecutor(threads, "tagmask-refine", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    barrier.wait()
    torch.set_num_threads(threads)  # what threads to come will start with
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
