"""What seeded campaigns share: how often, how inputs are damaged, and what counts as a right outcome."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from tagmask.errors import LONGEST, TagmaskError, plain

ODD = [b"", b"\x00", b"\xff\xff\xff\xff", b"-1", b"1e999", b"NaN", b"../", b"\x1b[2J", b"\n\n", b'"']
"""What is put in the place of some bytes."""


def times(short: int, long: int | None = None) -> int:
    """How many inputs a campaign tries: ``short`` in 'make test' and 'make test-slow'; in 'make test-faults' a multiple
    of ``long``, default ``short``."""
    factor = int(os.environ.get("TAGMASK_CAMPAIGN", "1"))
    return short if factor == 1 else factor * (long or short)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes after one to three damages: cut off, changed, taken out, repeated, or replaced by something odd."""
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(0, max(1, len(data))))
        stop = start + int(rng.integers(1, 40))
        kind = rng.integers(0, 6)
        if kind == 0:
            data = data[:start]
        elif kind == 1:
            data = data[:start] + rng.bytes(len(data[start:stop])) + data[stop:]
        elif kind == 2:
            data = data[:start] + data[stop:]
        elif kind == 3:
            data = data[:stop] + data[start:]
        else:
            data = data[:start] + ODD[rng.integers(0, len(ODD))] + data[stop:]
    return data


def outcome(call: Callable[[], Any], names: str = "") -> str:
    """'read', or 'refused': with a message that names the file or key, is short and has no control characters.

    Any other exception is a fault of tagmask and fails the test.
    """
    try:
        call()
    except TagmaskError as error:
        text = str(error)
        assert names in text, f"does not name '{names}': {text[:500]}"
        assert len(plain(text).encode()) <= LONGEST and "weights_only" not in text
        return "refused"
    return "read"


def told(counts: Counter[str]) -> None:
    """Print what came of a campaign; 'make test-faults' shows it."""
    print(f"\n{sum(counts.values())} tried: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")
