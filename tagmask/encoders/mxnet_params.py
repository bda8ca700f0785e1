"""Reads MXNet's binary parameter files (.params) without MXNet, which is no longer maintained."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FILE_MAGIC = 0x112
V1_MAGIC = 0xF993FAC8
V2_MAGIC = 0xF993FAC9
TYPES = {0: "<f4", 1: "<f8", 2: "<f2"}
MOST_DIMENSIONS = 32


def read_params(path: Path) -> dict[str, Tensor]:
    """Dense float arrays of a file that ``mxnet.nd.save`` wrote, by name ('arg:...', 'aux:...').

    The format is little-endian: a list of arrays, then a list of names. An array is its shape, which three
    generations of the format write differently, its device (two int32, of no use here), its type and its values.
    Raises ValueError for other content; struct.error or ValueError where the file is cut short.
    """
    data = path.read_bytes()
    at = 0

    def take(form: str) -> tuple[int, ...]:
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values

    def array() -> Tensor:
        nonlocal at
        (magic,) = take("I")
        if magic == V2_MAGIC and take("i") != (0,):
            raise ValueError("holds a sparse array")
        if magic in (V1_MAGIC, V2_MAGIC):
            (dimensions,) = take("I")
            size = "q"
        else:  # the oldest files have no magic number, and 32-bit sizes
            dimensions, size = magic, "I"
        if dimensions > MOST_DIMENSIONS:
            raise ValueError(f"holds an array of {dimensions} dimensions")
        shape = take(f"{dimensions}{size}")
        _, _, kind = take("3i")
        if kind not in TYPES:
            raise ValueError(f"holds an array of MXNet's type {kind}; only float16, float32 and float64 are read")
        if min(shape, default=0) < 1:
            raise ValueError(f"holds an array of shape {shape}")
        values = np.frombuffer(data, np.dtype(TYPES[kind]), prod(shape), at)
        at += values.nbytes
        return torch.from_numpy(values.reshape(shape).copy())

    if take("QQ")[0] != FILE_MAGIC:
        raise ValueError("not a .params file of MXNet")
    arrays = [array() for _ in range(take("Q")[0])]
    names = []
    for _ in range(take("Q")[0]):
        (length,) = take("Q")
        names.append(struct.unpack_from(f"{length}s", data, at)[0].decode())
        at += length
    if len(names) != len(arrays):
        raise ValueError(f"{len(arrays)} arrays, but {len(names)} names")
    return dict(zip(names, arrays))
