"""Published data sets: the size of each of their lists, the archive that holds it, and counts to compare with."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagmask.errors import DataError

VOC_PAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
COCO_PAGE = "https://cocodataset.org/#download"
CUB_PAGE = "https://www.vision.caltech.edu/datasets/cub_200_2011/"


@dataclass(frozen=True)
class Listed:
    """One list of a published data set. photos: how many it has; archive, page: where it comes from."""

    photos: int
    archive: str
    page: str
    step: str = ""

    def describe(self) -> str:
        """Where to get the list: a sentence with a leading blank."""
        return f" It comes with {self.archive}, see {self.page}" + (f"; then {self.step}." if self.step else ".")


BENCHMARKS: dict[str, dict[str, Listed]] = {
    "voc2012": {
        "train": Listed(1464, "VOCtrainval_11-May-2012.tar", VOC_PAGE),
        "train_aug": Listed(
            10582,
            "benchmark.tgz (SBD, the Semantic Boundaries Dataset)",
            "http://home.bharathh.info/pubs/codes/SBD/download.html",
            "'tagmask convert sbd'",
        ),
        "val": Listed(1449, "VOCtrainval_11-May-2012.tar", VOC_PAGE),
        "test": Listed(1456, "VOC2012test.tar, for registered users", "http://host.robots.ox.ac.uk:8080/"),
    },
    "coco2014": {
        "train2014": Listed(82081, "annotations_trainval2014.zip and train2014.zip", COCO_PAGE),
        "val2014": Listed(40137, "annotations_trainval2014.zip and val2014.zip", COCO_PAGE),
    },
    "coco2017": {
        "train2017": Listed(117266, "annotations_trainval2017.zip and train2017.zip", COCO_PAGE),
        "val2017": Listed(4952, "annotations_trainval2017.zip and val2017.zip", COCO_PAGE),
    },
    "cub200_2011": {
        "train": Listed(5994, "CUB_200_2011.tgz", CUB_PAGE),
        "test": Listed(5794, "CUB_200_2011.tgz", CUB_PAGE),
    },
}
"""Photos by list. Of COCO those with an annotation are counted, as in papers: 702 of train2014's 82,783 have none."""


def missing(benchmark: str | None, name: str) -> str:
    """Where to get a list: a sentence with a leading blank; '' where that is not known."""
    listed = BENCHMARKS.get(benchmark or "", {}).get(name)
    return listed.describe() if listed is not None else ""


ARCHIVES = {
    "VOCtrainval_11-May-2012.tar": "6cd6e144f989b92b3379bac3b3de84fd",
    "benchmark.tgz": "82b4d87ceb2ed10f6038a1cba92111cb",
    "annotations_trainval2014.zip": "0a379cfc70b0e71301e0f377548639bd",
    "train2014.zip": "0da8c0bd3d6becc4dcb32757491aca88",
    "val2014.zip": "a3d79f5ed8d289b7a7554ce06a5782b3",
    "annotations_trainval2017.zip": "f4bbac642086de4f52a3fdda2de5fa2c",
    "train2017.zip": "cced6f7f71b7629ddf16f17bbcfab6b2",
    "val2017.zip": "442b8da7639aecaf257c1dceb8ba8c80",
    "CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78",
}
"""MD5 of the archives as published (VOC's test photos come without one)."""
WITHOUT_MASKS = ("test", "cub200_2011")
"""Lists and sets whose truth is no label map, or not public."""


def check_archives(folder: Path) -> list[dict[str, Any]]:
    """Archives of the published data sets in a folder, with keys archive, md5, whole (it is as published) and what.

    Reads each file whole. Raises DataError where none of them lies there.
    """
    there = [name for name in ARCHIVES if (folder / name).is_file()]
    if not there:
        raise DataError(f"{folder}: none of the known archives is there: {', '.join(ARCHIVES)}.")
    rows = []
    for name in there:
        md5 = hashlib.md5(usedforsecurity=False)
        with (folder / name).open("rb") as file:
            while part := file.read(1 << 22):
                md5.update(part)
        whole = md5.hexdigest() == ARCHIVES[name]
        what = "" if whole else f"differs from the published {ARCHIVES[name]}: download it again"
        rows.append({"archive": name, "md5": md5.hexdigest(), "whole": whole, "what": what})
    return rows


def count_lists(benchmark: str, lists: Mapping[str, Sequence[str]], masked: Collection[str]) -> list[dict[str, Any]]:
    """Every published list with keys list, expected, found (None: the list is not there), masks and what (what to do).

    masked: ids of the photos that have a mask. masks: how many of a list have one; None for lists whose truth is no
    label map.
    """
    rows = []
    for name, listed in BENCHMARKS[benchmark].items():
        found = len(lists[name]) if name in lists else None
        counted = found is not None and not {name, benchmark}.intersection(WITHOUT_MASKS)
        masks = len(set(lists[name]).intersection(masked)) if counted else None
        what = ""
        if found is None:
            what = f"not there.{listed.describe()}"
        elif found != listed.photos:
            what = (
                f"{found} photos, that of {benchmark} has {listed.photos}: a part of it, or data of your own in its "
                f"layout.{listed.describe()}"
            )
        if masks is not None and masks < len(lists[name]):
            how = "'tagmask convert coco' makes them" if benchmark.startswith("coco") else listed.describe().strip()
            what = f"{what} {len(lists[name]) - masks} photos have no mask to be scored with. {how}".strip()
        rows.append({"list": name, "expected": listed.photos, "found": found, "masks": masks, "what": what})
    return rows
