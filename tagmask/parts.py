"""Connected parts of label maps, their run lengths, and both as COCO's objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from tagmask.errors import DataError


class Part(NamedTuple):
    """Pixels of one label that hang together by their sides. inside: bool (h,w), whose corner lies at (top, left)."""

    label: int
    top: int
    left: int
    inside: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, width and height."""
        return (self.left, self.top, self.inside.shape[1], self.inside.shape[0])


def parts(labels: np.ndarray, leave_out: Sequence[int] = (0,)) -> Iterator[Part]:
    """The parts of a label map uint8 (H,W), label by label."""
    for label in np.unique(labels).tolist():
        if label in leave_out:
            continue
        numbers, _ = ndimage.label(labels == label)
        for number, (rows, columns) in enumerate(ndimage.find_objects(numbers), 1):
            yield Part(label, rows.start, columns.start, numbers[rows, columns] == number)


def run_lengths(positions: np.ndarray, total: int) -> list[int]:
    """Lengths of runs outside, inside, outside, … of ``total`` pixels. positions: of those inside, ascending."""
    if not positions.size:
        return [total]
    cuts = np.flatnonzero(np.diff(positions) > 1)
    starts, ends = positions[np.append(0, cuts + 1)], positions[np.append(cuts, -1)] + 1
    edges = np.append(np.stack([starts, ends], axis=1).ravel(), total)
    lengths = np.diff(edges, prepend=0).tolist()
    return lengths if lengths[-1] else lengths[:-1]


def coco_objects(labels: np.ndarray, leave_out: Sequence[int] = (0,)) -> Iterator[dict[str, Any]]:
    """Each part of a label map as category_id (its label), segmentation (packed run lengths), area and bbox.

    Raises DataError without pycocotools, which packs the run lengths.
    """
    tools = mask_tools()
    height, width = size = labels.shape
    for part in parts(labels, leave_out):
        columns, rows = np.nonzero(part.inside.T)  # COCO's runs go down the columns of the whole photo
        runs = run_lengths((columns + part.left) * height + rows + part.top, height * width)
        packed = tools.frPyObjects({"size": size, "counts": runs}, height, width)
        yield {
            "category_id": part.label,
            "segmentation": {"size": list(size), "counts": packed["counts"].decode("ascii")},
            "area": int(part.inside.sum()),
            "bbox": list(part.box),
        }


def mask_tools() -> Any:
    """pycocotools.mask. Raises DataError that says how to install it."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise DataError(
            "COCO's polygons and run lengths are read through pycocotools, which is not installed: "
            "pip install 'tagmask[coco]', or pip install pycocotools."
        ) from error
    return mask
