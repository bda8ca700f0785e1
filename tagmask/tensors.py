"""What operators on tensors share: a check of shapes, and a type that is wide enough for sums."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from tagmask.errors import TagmaskError


def check_shapes(what: str, wanted: str, *tensors: Tensor | None) -> None:
    """Raise TagmaskError unless the tensors have the shapes in ``wanted``, such as 'CAMs (B,C,h,w) and tags (B,C)'.

    A name is the same size wherever it stands, B+1 is one more than B, and a number is itself. None is not checked.
    what: the operator, which begins the message.
    """
    sizes: dict[str, int] = {}
    fits = True
    for shape, tensor in zip(re.findall(r"\(([^)]*)\)", wanted), tensors, strict=True):
        if tensor is None:
            continue
        names = shape.rstrip(",").split(",")
        fits &= len(names) == tensor.dim()
        for part, size in zip(names, tensor.shape):
            name, _, more = part.partition("+")
            own = size - int(more or 0)
            fits &= own == (int(name) if name.isdigit() else sizes.setdefault(name, own))
    if not fits:
        got = ", ".join(str(tuple(tensor.shape)) for tensor in tensors if tensor is not None)
        raise TagmaskError(f"{what} takes {wanted}, each letter one size; got {got}.")


def full(x: Tensor) -> Tensor:
    """float32 for half precision, anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
