"""How good masks are where nobody drew the truth: label maps that should agree, and tags that should be found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from tagmask.evaluate.confusion import (
    ConfusionMatrix,
    intersection_over_union,
    mean_over_classes,
    ratio,
    sums,
    to_numpy,
)

LARGER = "larger"
"""The view that counts for the estimate: the photo, larger than it was when the mask was made."""


@dataclass(frozen=True)
class PhotoQuality:
    """What is known about the mask of one photo without a truth.

    agreement: by view, the mean IoU of mask and view, in [0,1]; a view that shows nothing surely is left out. sure:
    mean over pixels of the largest probability. match: what the segmenter finds without tags against the tags, see
    ``tag_match``. Each is None where there is none. tagged: whether the photo is
    tagged with a class. missing: indices of tagged classes that the mask lacks. unexpected:
    of classes that the segmenter finds without tags, and that the photo is not tagged with. iou: the mask's mean IoU
    with the truth, None where there is none.
    """

    id: str
    split: str
    agreement: Mapping[str, float]
    sure: float | None = None
    match: float | None = None
    tagged: bool = False
    missing: Sequence[int] = ()
    unexpected: Sequence[int] = ()
    iou: float | None = None

    @property
    def estimate(self) -> float | None:
        """Mean of what is known of the larger view's agreement, ``sure`` and ``match``, in [0,1]. It is no IoU."""
        known = [v for v in (self.agreement.get(LARGER), self.sure, self.match) if v is not None]
        return float(np.mean(known)) if known else None

    @property
    def doubt(self) -> float | None:
        """1 − estimate, in [0,1]."""
        return None if self.estimate is None else 1 - self.estimate


def tag_match(found: Sequence[int], tags: Sequence[int]) -> float:
    """Classes that are found and tagged, over those that are found or tagged (Jaccard); 1 where there is neither."""
    either = {*found, *tags}
    return len({*found} & {*tags}) / len(either) if either else 1.0


def agreement(counts: np.ndarray, tags: Sequence[int] = ()) -> float:
    """Mean IoU of two label maps of one photo, over the classes that one of them shows and the tagged ones.

    A tagged class that neither shows counts as 0. counts: (C+1,C+2), of a ``ConfusionMatrix``; pixels that are 255 in
    one of the maps are left out. tags: foreground classes, 0..C-1. NaN where no pixel is left and nothing is tagged.
    """
    iou = intersection_over_union(*sums(counts[:, :-1]))
    for tag in tags:
        if np.isnan(iou[tag + 1]):
            iou[tag + 1] = 0.0
    return mean_over_classes(iou)


@dataclass
class QualityStream:
    """Collects, photo by photo, how masks agree with other views of their photos, and which tags they show.

    classes: foreground names.
    """

    classes: Sequence[str]
    photos: list[PhotoQuality] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._agreed: dict[str, ConfusionMatrix] = {}
        self._true = ConfusionMatrix(len(self.classes) + 1)
        self._tagged, self._shown, self._given, self._found, self._hit = np.zeros((5, len(self.classes)), dtype=int)

    def update(
        self,
        id: str,
        split: str,
        mask: Any,
        views: Mapping[str, Any],
        tags: Sequence[int] | None,
        found: Sequence[int] | None = None,
        sure: float | None = None,
        truth: Any = None,
        held_out: bool = False,
    ) -> PhotoQuality:
        """Add a photo. mask, views, truth: label maps (H,W). tags: None where nobody looked. found: classes that the
        segmenter finds without tags. held_out: whether the photo trained nothing, so that what is found in it says how
        well classes are recognised. Raises LabelError for maps that do not fit."""
        size = len(self.classes) + 1
        agreed: dict[str, float] = {}
        for name, view in views.items():
            one = ConfusionMatrix(size).update(view, mask)
            self._agreed.setdefault(name, ConfusionMatrix(size)).counts += one.counts
            value = agreement(one.counts, tags or ())
            agreed |= {} if np.isnan(value) else {name: value}
        shown = set(np.unique(to_numpy(mask)).tolist())
        missing = [tag for tag in tags or () if tag + 1 not in shown]
        self._tagged[list(tags or ())] += 1
        self._shown[[tag for tag in tags or () if tag not in missing]] += 1
        match, unexpected = None, []
        if found is not None and tags is not None:
            match, unexpected = tag_match(found, tags), [tag for tag in found if tag not in tags]
            if held_out:
                self._given[list(tags)] += 1
                self._found[list(found)] += 1
                self._hit[[tag for tag in found if tag in tags]] += 1
        photo = PhotoQuality(
            id, split, agreed, sure, match, bool(tags), missing, unexpected, self._compared(mask, truth)
        )
        self.photos.append(photo)
        return photo

    def _compared(self, mask: Any, truth: Any) -> float | None:
        """The photo's mean IoU with the truth, which is counted; None where there is none."""
        if truth is None:
            return None
        one = ConfusionMatrix(len(self.classes) + 1).update(mask, truth)
        self._true.counts += one.counts
        return None if np.isnan(one.miou()) else one.miou()

    def state(self) -> dict[str, Any]:
        """All that was counted, for ``merge``; of dictionaries, lists and arrays."""
        counts = [self._tagged, self._shown, self._given, self._found, self._hit]
        agreed = {name: matrix.counts for name, matrix in self._agreed.items()}
        photos = [asdict(photo) for photo in self.photos]
        return {"photos": photos, "counts": counts, "agreed": agreed, "true": self._true.counts}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add what another stream counted of other photos."""
        self.photos += [PhotoQuality(**photo) for photo in state["photos"]]
        own = (self._tagged, self._shown, self._given, self._found, self._hit)
        for mine, theirs in zip(own, state["counts"]):
            mine += np.asarray(theirs)
        for name, counts in state["agreed"].items():
            self._agreed.setdefault(name, ConfusionMatrix(len(self.classes) + 1)).counts += np.asarray(counts)
        self._true.counts += np.asarray(state["true"])

    def result(self) -> dict[str, Any]:
        """What metrics.json holds; a share that does not exist is NaN.

        Keys: images; estimate, the mean of the photos'; found, share of tagged classes that the masks show; precision
        and recall of the classes that the segmenter finds without tags, over all photos that trained nothing; per_class
        {name: {tagged, agreement (IoU of masks and larger view over all pixels), found, precision, recall, iou}};
        doubtful, ids, the most doubtful first; correlation {photos, shown, classes}: Spearman's rank correlation of the
        estimate with the true IoU over photos and over those that are tagged with a class, and of the agreement with it
        over classes. It is None without truth, and for fewer than three.
        """
        counted = self._agreed.get(LARGER)
        agreed = np.full(len(self.classes), np.nan) if counted is None else counted.iou()[1:]
        columns = {
            "tagged": self._tagged,
            "agreement": agreed,
            "found": ratio(self._shown, self._tagged),
            "precision": ratio(self._hit, self._found),
            "recall": ratio(self._hit, self._given),
            "iou": self._true.iou()[1:],
        }
        known = [photo for photo in self.photos if photo.estimate is not None]
        both = [(photo.estimate, photo.iou) for photo in known if photo.iou is not None]
        of_objects = [(photo.estimate, photo.iou) for photo in known if photo.iou is not None and photo.tagged]
        return {
            "images": len(self.photos),
            "estimate": float(np.mean([photo.estimate for photo in known])) if known else None,
            "found": ratio(self._shown.sum(), self._tagged.sum()),
            "precision": ratio(self._hit.sum(), self._found.sum()),
            "recall": ratio(self._hit.sum(), self._given.sum()),
            "per_class": {name: {k: v[i] for k, v in columns.items()} for i, name in enumerate(self.classes)},
            "doubtful": [photo.id for photo in by_doubt(known)],
            "correlation": {
                "photos": rank_correlation(*zip(*both)) if both else None,
                "shown": rank_correlation(*zip(*of_objects)) if of_objects else None,
                "classes": rank_correlation(agreed, columns["iou"]),
            },
        }


def by_doubt(photos: Sequence[PhotoQuality]) -> list[PhotoQuality]:
    """The most doubtful first; those of which nothing is known last."""
    return sorted(photos, key=lambda photo: (photo.doubt is None, -(photo.doubt or 0.0)))


def rank_correlation(one: Any, other: Any) -> float | None:
    """Spearman's rank correlation in [-1,1] of two sequences (N,), where both are known; ties share their mean rank.

    None where fewer than three pairs are left, or one side is constant.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (one, other))
    known = ~np.isnan(x) & ~np.isnan(y)
    x, y = x[known], y[known]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(spearmanr(x, y).statistic)
