"""Published data sets: how many photos each of their lists has, and which archive of which page holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VOC_PAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
COCO_PAGE = "https://cocodataset.org/#download"


@dataclass(frozen=True)
class Listed:
    """One list of a published data set. photos: how many it has; archive, page: where it comes from."""

    photos: int
    archive: str
    page: str
    step: str = ""

    def describe(self) -> str:
        """Where the list is to be had, as a sentence that starts with a blank."""
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
        "train": Listed(5994, "CUB_200_2011.tgz", "https://www.vision.caltech.edu/datasets/cub_200_2011/"),
        "test": Listed(5794, "CUB_200_2011.tgz", "https://www.vision.caltech.edu/datasets/cub_200_2011/"),
    },
}
"""Photos by list. Of COCO those with an annotation are counted, as in papers: 702 of train2014's 82,783 have none."""


def missing(benchmark: str | None, name: str) -> str:
    """Which archive holds a list, as a sentence that starts with a blank; '' where that is not known."""
    listed = BENCHMARKS.get(benchmark or "", {}).get(name)
    return listed.describe() if listed is not None else ""


def count_lists(benchmark: str, lists: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Every published list with keys list, expected, found (None: the list is not there) and what (what to do)."""
    rows = []
    for name, listed in BENCHMARKS[benchmark].items():
        found = len(lists[name]) if name in lists else None
        what = ""
        if found is None:
            what = f"not there.{listed.describe()}"
        elif found != listed.photos:
            what = (
                f"{found} photos, that of {benchmark} has {listed.photos}: a part of it, or data of your own in its "
                f"layout.{listed.describe()}"
            )
        rows.append({"list": name, "expected": listed.photos, "found": found, "what": what})
    return rows
