"""SBD's .mat files to PNG masks, and the list train_aug."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tagmask.data.find import read_lines
from tagmask.data.pixels import read_mask, write_mask
from tagmask.data.source_voc import AUGMENTED, VOC_CLASSES, augmented_list, find_sbd, is_sbd
from tagmask.errors import DataError
from tagmask.files import sweep, write_text


def sbd_masks(
    voc: str | Path,
    sbd: str | Path | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write SBD's class masks and the list train_aug into a VOC 2012 folder.

    voc: the folder with JPEGImages. sbd: SBD's folder with cls, train.txt and val.txt; default: found in ``voc`` or
    above. Masks go to ``SegmentationClassAug/<id>.png``, those that are there already are kept; the list to
    ``ImageSets/Segmentation/train_aug.txt``: VOC's train and all of SBD without VOC's val. progress: called with the
    number of masks that are done, and of all. Returns counts: written, kept, train_aug. Raises DataError; for
    broken masks only when the others are written.
    """
    voc = Path(voc)
    folder = Path(sbd) if sbd is not None else find_sbd(voc)
    if folder is None or not is_sbd(folder):
        raise DataError(
            f"{folder or voc}: SBD, a folder with cls, train.txt and val.txt, is not there. Unpack benchmark.tgz (it "
            "holds benchmark_RELEASE/dataset) and name the folder with --sbd."
        )
    lists = voc / "ImageSets" / "Segmentation"
    own = {name: [line for _, line in read_lines(lists / f"{name}.txt")] for name in ("train", "val")}
    names = sorted(path.stem for path in (folder / "cls").glob("*.mat") if path.is_file())
    if not names:
        raise DataError(f"{folder / 'cls'}: there are no .mat files. Unpack benchmark.tgz again.")
    augmented = augmented_list(own["train"], own["val"], folder)
    absent = sorted(set(augmented) - set(own["train"]) - set(names))
    if absent:
        raise DataError(
            f"{folder / 'cls'}: {len(absent)} listed masks are not there ({absent[0]}.mat). Unpack it again."
        )
    out = voc / AUGMENTED
    sweep(out)
    todo = [name for name in names if not (out / f"{name}.png").is_file()]
    broken: list[DataError] = []

    def one(name: str) -> None:
        try:
            write_mask(out / f"{name}.png", read_mask(folder / "cls" / f"{name}.mat", len(VOC_CLASSES)))
        except DataError as error:
            broken.append(error)

    with ExitStack() as stack:
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        for done, _ in enumerate(pool.map(one, todo), len(names) - len(todo) + 1):
            progress(done, len(names))
    if broken:
        raise DataError(f"{len(broken)} of {len(todo)} masks were not made, the others were. The first: {broken[0]}")
    write_text(lists / "train_aug.txt", "\n".join(augmented) + "\n")
    return {"written": len(todo), "kept": len(names) - len(todo), "train_aug": len(augmented)}
