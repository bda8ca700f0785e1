"""Files of ``torch.save``, looked at before torch reads them: what their pickles would build, and how much."""

from __future__ import annotations

import pickletools
import zipfile
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import torch

DEEPEST = 100
"""Tuples within each other, at most. Python hashes them by recursion in C, which ends the process when it is deep."""
GROWTH, SPARE = 16, 2**26
"""What a file holds is at most so many times as large as the file, and so many bytes more."""


def check_saved(path: Path) -> None:
    """Raise ValueError where a file of ``torch.save`` is broken, nests tuples deeply, or grows far."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_size(archive, path)
        check_pickle(BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")))
        return
    with path.open("rb") as file:  # before 2020: three pickles of the format, the content's, one of the storages' names
        for _ in range(5):
            check_pickle(file)


def check_size(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise ValueError where the parts of an archive are far larger than its file."""
    if sum(part.file_size for part in archive.infolist()) > most(path):
        raise ValueError("its parts are packed too tightly for weights")


def most(path: Path) -> int:
    """What a file may hold: bytes unpacked, or values."""
    return GROWTH * path.stat().st_size + SPARE


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
