"""What a pickle would build, read without building it."""

from __future__ import annotations

import pickletools
from typing import BinaryIO

DEEPEST = 100
"""Tuples within each other, at most. Python hashes them by recursion in C, which ends the process when it is deep."""


def check_pickle(file: BinaryIO) -> None:
    """Read one pickle from a file, up to its end. Raises ValueError where it is broken or nests tuples deeply."""
    stack: list[int] = []  # how deep each object is that an unpickler would have on its stack
    marks: list[int] = []
    memo: dict[int, int] = {}
    for code, argument, _ in pickletools.genops(file):
        before, after = code.stack_before, code.stack_after
        if pickletools.markobject in before:
            if not marks:
                raise ValueError("a broken pickle")
            start = marks.pop() - before.index(pickletools.markobject)
        else:
            start = len(stack) - len(before)
        taken = stack[max(0, start) :]
        del stack[max(0, start) :]
        if pickletools.markobject in after:
            marks.append(len(stack))
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument or 0, 0))
        elif code.name.startswith("TUPLE"):
            stack.append(1 + max(taken, default=0))
            if stack[-1] > DEEPEST:
                raise ValueError(f"more than {DEEPEST} tuples within each other")
        elif code.name in ("DUP", "MEMOIZE"):
            stack += taken[-1:] * len(after)
        else:
            stack += [0] * len(after)
        if "PUT" in code.name or code.name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1] if stack else 0
