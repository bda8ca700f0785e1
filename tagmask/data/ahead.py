"""Work that threads do ahead, in order, a bounded stretch of it at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(work: Callable[[T], R], entries: Iterable[T], threads: int = 2) -> Iterator[R]:
    """``work`` of each entry, in their order. At most twice as many results as threads wait, however many entries."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        for entry in entries:
            waiting.append(pool.submit(work, entry))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
