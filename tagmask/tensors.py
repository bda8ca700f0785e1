"""What operators on tensors share: a check of shapes, a type wide enough for sums, resizing, strips of products."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask.errors import TagmaskError

CPU_VALUES = 2**18
GPU_VALUES = 2**24
"""Values of a strip; on CPUs as many as fit in the cache."""


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


def resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear resize of (B,C,h,w) to size = (H,W), align_corners=False; the input itself where sizes agree."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def strips(rows: int, width: int, device: torch.device) -> list[slice]:
    """0..rows in slices that hold about CPU_VALUES or GPU_VALUES values, ``width`` a row; at least one row each."""
    step = max(1, (CPU_VALUES if device.type == "cpu" else GPU_VALUES) // max(1, width))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def inside(boxes: Tensor, size: Sequence[int], grid: Sequence[int] | None = None) -> Tensor:
    """Pixels of an image of ``size`` (H,W) inside boxes (B,4) of (x0,y0,x1,y1), half-open → bool (B,H,W).

    grid: (h,w), coarser positions over the same image; a position is inside if its centre is → bool (B,h,w).
    """
    y = torch.arange(size[0], device=boxes.device)[None, :, None]
    x = torch.arange(size[1], device=boxes.device)[None, None, :]
    x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
    pixels = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    if grid is None:
        return pixels
    return F.interpolate(pixels[:, None].float(), size=tuple(grid), mode="nearest-exact")[:, 0] > 0
