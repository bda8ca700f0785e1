"""Masks to what the VOC 2012 test server takes."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tagmask.data.find import is_image
from tagmask.data.names import bare_flaw
from tagmask.data.pixels import check_size, read_image, read_mask, write_mask
from tagmask.data.source_voc import VOC_CLASSES
from tagmask.errors import DataError
from tagmask.files import sweep, written
from tagmask.types import IGNORE

COMPETITIONS = ("comp5", "comp6")


def voc_submission(
    masks: str | Path,
    out: str | Path,
    ids: Sequence[str],
    images: str | Path,
    competition: str = "comp6",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write ``results/VOC2012/Segmentation/<competition>_test_cls/<id>.png`` below ``out``, and ``out``/results.tgz.

    masks: folder of label maps ``<id>.png``, 0 to 20. ids: of the whole test list. images: folder of the photos.
    competition: comp5 is for methods trained on VOC's own data only, comp6 for all others, such as those whose weights
    were pretrained. Returns the archive's path. Raises DataError on a mask that is absent, is of another size than its
    photo, or holds 255: the server counts on a class at every pixel.
    """
    masks, out = Path(masks), Path(out)
    if competition not in COMPETITIONS:
        raise DataError(f"competition '{competition}' is not one of {' and '.join(COMPETITIONS)}.")
    if not ids:
        raise DataError(f"{masks}: the list of test images is empty.")
    ids = list(dict.fromkeys(ids))
    unfit = [id for id in ids if bare_flaw(id)]
    if unfit:
        raise DataError(
            f"The list of test images names {unfit[0]!r}. Write names of photos without folders, one a line."
        )
    absent = [id for id in ids if not (masks / f"{id}.png").is_file()]
    if absent:
        raise DataError(
            f"{masks}: {len(absent)} of {len(ids)} test images have no mask (the first is {absent[0]}). Make them with "
            "'tagmask predict'."
        )
    inner = Path("results") / "VOC2012" / "Segmentation" / f"{competition}_test_cls"
    sweep(out / inner)
    photos = {path.stem: path for path in Path(images).iterdir() if is_image(path)}
    for done, id in enumerate(ids, 1):
        path = masks / f"{id}.png"
        mask = read_mask(path, len(VOC_CLASSES))
        unsure = (mask == IGNORE).float().mean().item()
        if unsure:
            raise DataError(
                f"{path}: {unsure:.1%} of its pixels are 255 (unsure), which the server does not take. Make the masks "
                "with label.unsure=0 and without label.high and label.low."
            )
        if id not in photos:
            raise DataError(f"{images}: there is no photo '{id}'.")
        check_size(path, mask, photos[id], read_image(photos[id]))
        write_mask(out / inner / f"{id}.png", mask)
        progress(done, len(ids))
    archive = out / "results.tgz"
    with written(archive) as part, tarfile.open(part, "w:gz") as tar:
        # Only these files: the folder may hold masks of an earlier list.
        for id in ids:
            tar.add(out / inner / f"{id}.png", (inner / f"{id}.png").as_posix())
    return archive
