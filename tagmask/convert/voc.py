"""Masks to what the VOC 2012 test server takes."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tagmask.data.pixels import read_mask, write_mask
from tagmask.data.source_voc import VOC_CLASSES
from tagmask.errors import DataError
from tagmask.types import IGNORE

COMPETITIONS = ("comp5", "comp6")


def voc_submission(
    masks: str | Path,
    out: str | Path,
    ids: Sequence[str],
    images: str | Path | None = None,
    competition: str = "comp6",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``results/VOC2012/Segmentation/<competition>_test_cls/<id>.png`` below ``out``, and ``out``/results.tgz.

    masks: folder of label maps ``<id>.png``, 0 to 20. ids: of the whole test list. images: folder of the photos, to
    compare sizes. competition: comp5 is for methods trained on VOC's own data only, comp6 for all others, such as
    those whose weights were pretrained. Returns the archive's path. Raises DataError on a mask that is absent, is of
    another size than its photo, or holds 255: the server counts on a class at every pixel.
    """
    masks, out = Path(masks), Path(out)
    if competition not in COMPETITIONS:
        raise DataError(f"competition '{competition}' is not one of {' and '.join(COMPETITIONS)}.")
    if not ids:
        raise DataError(f"{masks}: the list of test images is empty.")
    absent = [id for id in ids if not (masks / f"{id}.png").is_file()]
    if absent:
        raise DataError(
            f"{masks}: {len(absent)} of {len(ids)} test images have no mask (the first is {absent[0]}). Make them with "
            "'tagmask predict'."
        )
    inner = Path("results") / "VOC2012" / "Segmentation" / f"{competition}_test_cls"
    photos = {p.stem: p for p in Path(images).iterdir()} if images is not None else {}
    for done, id in enumerate(ids, 1):
        values = read_mask(masks / f"{id}.png", len(VOC_CLASSES)).numpy()
        if (values == IGNORE).any():
            raise DataError(
                f"{masks / f'{id}.png'}: {np.mean(values == IGNORE):.1%} of its pixels are 255 (unsure), which the "
                "server does not take. Make the masks with label.unsure=0 and without label.high and label.low."
            )
        if images is not None:
            _check_size(values, photos.get(id), id, Path(images))
        write_mask(out / inner / f"{id}.png", values)
        if progress is not None:
            progress(done, len(ids))
    archive = out / "results.tgz"
    partial = archive.with_suffix(".part")
    with tarfile.open(partial, "w:gz") as tar:
        # Only these files: the folder may hold masks of an earlier list.
        for id in ids:
            tar.add(out / inner / f"{id}.png", (inner / f"{id}.png").as_posix())
    partial.replace(archive)
    return archive


def _check_size(values: np.ndarray, photo: Path | None, id: str, folder: Path) -> None:
    if photo is None:
        raise DataError(f"{folder}: there is no photo '{id}'.")
    with Image.open(photo) as opened:
        size = opened.size
    if size != values.shape[::-1]:
        raise DataError(
            f"{id}: its mask has {values.shape[1]}x{values.shape[0]} pixels, its photo {photo} has {size[0]}x{size[1]}."
        )
