"""From counts to the score that is saved, printed and reported: one JSON-able dictionary with its stamp."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tagmask.errors import ConfigError, nearest
from tagmask.evaluate.bootstrap import interval_of, resampled
from tagmask.evaluate.boundary import BoundaryIoU
from tagmask.evaluate.confusion import (
    ConfusionMatrix,
    LabelError,
    intersection_over_union,
    mean_over_classes,
    ratio,
    sums,
)
from tagmask.evaluate.curve import ThresholdCurve
from tagmask.evaluate.stamp import Stamp, headline

BACKGROUND = "background"
INTERVALS = ("interval", "interval_precision", "interval_recall", "interval_without", "interval_c_miou")


class ScoreStream:
    """What a score needs, collected image by image. Pixels whose truth is 255 are left out.

    boundary: width of the rims of the Boundary IoU as a share of the diagonal; 0: not counted.
    """

    def __init__(self, num_classes: int, boundary: float = 0.0) -> None:
        self.confusion = ConfusionMatrix(num_classes)
        # By the image's id: hits, true and predicted pixels by class, int32 (3,K).
        self.per_image: dict[str, np.ndarray] = {}
        self.boundary = BoundaryIoU(num_classes, boundary) if boundary else None

    def update(self, image_id: str, pred: Any, target: Any) -> ScoreStream:
        """Add one image, label maps (H,W) as in ``ConfusionMatrix.update``; returns itself.

        Raises LabelError, which names the image, for maps that do not fit and for an id that was added already.
        """
        if image_id in self.per_image:
            raise LabelError(f"Image '{image_id}' was scored twice; an id belongs to one image.")
        one = ConfusionMatrix(self.confusion.num_classes)
        try:
            one.update(pred, target)
        except LabelError as error:
            raise LabelError(f"{image_id}: {error}") from error
        self.per_image[image_id] = np.stack(sums(one.matrix)).astype(np.int32)
        self.confusion.counts += one.counts
        if self.boundary is not None:
            self.boundary.update(pred, target)
        return self

    def state(self) -> dict[str, Any]:
        """All that was counted, for ``merge``; of dictionaries, lists and arrays."""
        rims = None if self.boundary is None else self.boundary.counts
        return {"counts": self.confusion.counts, "images": self.per_image, "rims": rims}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add what another stream counted of other images. Raises LabelError for an image that both have."""
        if both := self.per_image.keys() & state["images"].keys():
            raise LabelError(f"Image '{min(both)}' was scored twice; an id belongs to one image.")
        self.per_image |= {id: np.asarray(table) for id, table in state["images"].items()}
        self.confusion.counts += np.asarray(state["counts"])
        if self.boundary is not None:
            self.boundary.counts += np.asarray(state["rims"])

    def miou_of(self, image_id: str) -> float:
        """The mIoU of one image, in [0,1]; NaN where it has no class."""
        return mean_over_classes(intersection_over_union(*self.per_image[image_id]))

    def result(
        self,
        name: str,
        classes: Sequence[str],
        stamp: Stamp,
        curve: ThresholdCurve | None = None,
        bootstrap: int = 1000,
        without: Sequence[str] = (),
        seed: int = 0,
        only: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The score of all images so far, ready for JSON: NaN is None, shares are in [0,1].

        classes: names of the foreground. bootstrap: resamples of the images for intervals; 0 for none. without: classes
        left out of a second mean. only: classes of a third one, the C-mIoU of Co-training with Swapping Assignments
        (ECCV 2024, table 4b), there over classes that occur together.

        Keys: name, stamp, miou, miou_strict, coverage, accuracy; precision, recall and boundary_iou, means over the
        classes that have one; without, miou_without, only, c_miou; interval, interval_precision, interval_recall,
        interval_without, interval_c_miou, each {low, high, std, resamples}; classes; per_class {name: {iou, precision,
        recall, boundary_iou, pixels}}; confusion, whose rows are the truth; images {id: {miou, accuracy}}; curve
        {thresholds, miou, peak {threshold, miou, precision, recall}}. The peak has c_miou with ``only``, and where
        the curve kept its images the intervals at its threshold. What was not asked for is None.

        Raises ConfigError for an unknown class in ``without`` or ``only``, LabelError for another number of classes.
        """
        confusion, names = self.confusion, [BACKGROUND, *classes]
        if len(names) != confusion.num_classes:
            raise LabelError(f"{len(classes)} class names do not fit {confusion.num_classes} classes with background.")
        left_out, kept = _indices("without", without, names), _indices("only", only, names)
        # A mean over some classes is one without all others.
        others = [i for i in range(len(names)) if i not in kept]
        means: dict[str, dict[str, Any]] = {
            "interval": {},
            "interval_precision": {"of": "precision"},
            "interval_recall": {"of": "recall"},
        }
        if only:
            means["interval_c_miou"] = {"without": others}
        drawn = None if curve is None else _curve(curve, means, bootstrap, seed)
        if without:
            means["interval_without"] = {"without": left_out}
        found: dict[str, Any] = dict.fromkeys(INTERVALS)
        if bootstrap and self.per_image:
            found |= _intervals(list(np.stack(list(self.per_image.values()), axis=1)), means, bootstrap, seed)
        columns = {
            "iou": confusion.iou(),
            "precision": confusion.precision(),
            "recall": confusion.recall(),
            "boundary_iou": np.full(len(names), np.nan) if self.boundary is None else self.boundary.iou(),
            "pixels": confusion.counts.sum(axis=1),
        }
        result = {
            "name": name,
            "stamp": dict(stamp),
            "miou": confusion.miou(),
            "miou_strict": confusion.miou_strict(),
            "coverage": confusion.coverage(),
            "accuracy": confusion.accuracy(),
            **{key: mean_over_classes(columns[key]) for key in ("precision", "recall", "boundary_iou")},
            "without": list(without) or None,
            "miou_without": confusion.miou(left_out) if without else None,
            "only": list(only) or None,
            "c_miou": confusion.miou(others) if only else None,
            **found,
            "classes": names,
            "per_class": {name: {key: values[i] for key, values in columns.items()} for i, name in enumerate(names)},
            "confusion": confusion.matrix,
            "images": {
                id: {"miou": self.miou_of(id), "accuracy": ratio(hit.sum(), true.sum())}
                for id, (hit, true, _) in self.per_image.items()
            }
            or None,
            "curve": drawn,
        }
        return jsonable(result)


def jsonable(value: Any) -> Any:
    """``value`` with NaN and infinity as None and numpy numbers and arrays as Python's, at any depth."""
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_scores(scores: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print scores (results of ``ScoreStream``), one line each."""
    for score in scores:
        console.print(score_line(score), markup=False, highlight=False, soft_wrap=True)


def score_line(score: Mapping[str, Any]) -> str:
    """One line: what was scored, split, tags or not, threshold, and the mIoU in per cent with its interval."""
    interval = score["interval"]
    shown = f" [{percent(interval['low'])}, {percent(interval['high'])}]" if interval else ""
    parts = [f"{percent(score['miou'])} mIoU{shown}"]
    if score["coverage"] is not None and score["coverage"] < 1:
        parts.append(f"{percent(score['miou_strict'])} with 255 as missed ({percent(score['coverage'])} % covered)")
    if score["without"]:
        parts.append(f"{percent(score['miou_without'])} without {', '.join(score['without'])}")
    if score["only"]:
        parts.append(f"{percent(score['c_miou'])} over {', '.join(score['only'])}")
    if score["curve"] and score["curve"]["peak"]["miou"] is not None:
        peak = score["curve"]["peak"]
        parts.append(f"best {percent(peak['miou'])} at {peak['threshold']:g}")
    return f"{headline(score['name'], score['stamp'])}: {'; '.join(parts)}"


def print_classes(score: Mapping[str, Any], console: Console) -> None:
    """Print IoU, precision, recall and boundary IoU of each class of one score and their means, in per cent.

    A dash stands for a class that is absent, and for what was not counted; 'all unsure' for the IoU of a class whose
    true pixels are all 255 in the prediction.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{escape(score['name'])}, {escape(score['stamp']['split'])}", overflow="fold")
    columns = {"IoU": "iou", "precision": "precision", "recall": "recall", "boundary IoU": "boundary_iou"}
    for column in columns:
        table.add_column(column, justify="right")
    for name, found in score["per_class"].items():
        cells = [percent(found[key]) for key in columns.values()]
        if found["iou"] is None and found["pixels"]:
            cells[0] = "all unsure"
        table.add_row(escape(name), *cells)
    table.add_section()
    table.add_row("mean", *(percent(score[key]) for key in ("miou", *list(columns.values())[1:])))
    console.print(table)


def percent(value: float | None) -> str:
    """A share as per cent with one decimal; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def _intervals(
    tables: Sequence[np.ndarray], means: Mapping[str, dict[str, Any]], resamples: int, seed: int
) -> dict[str, Any]:
    """The interval of each mean, from images' pixel sums; means: arguments of ``resampled`` by key."""
    return {key: interval_of(resampled(tables, resamples, seed, **mean)) for key, mean in means.items()}


def _curve(curve: ThresholdCurve, means: Mapping[str, dict[str, Any]], resamples: int, seed: int) -> dict[str, Any]:
    """The peak's intervals are at its threshold: that it was chosen on these images is not in them."""
    threshold, miou = curve.peak()
    # Without pixels there is no peak, and the matrix at any threshold is empty.
    at = curve.at(0.0 if math.isnan(threshold) else threshold)
    peak: dict[str, Any] = {
        "threshold": threshold,
        "miou": miou,
        "precision": mean_over_classes(at.precision()),
        "recall": mean_over_classes(at.recall()),
    }
    if "interval_c_miou" in means:
        peak["c_miou"] = at.miou(**means["interval_c_miou"])
    if resamples and curve.images and not math.isnan(threshold):
        peak |= _intervals(curve.image_sums(threshold), means, resamples, seed)
    return {"thresholds": curve.thresholds, "miou": curve.miou(), "peak": peak}


def _indices(key: str, chosen: Sequence[str], names: list[str]) -> list[int]:
    for name in chosen:
        if name not in names:
            raise ConfigError(f"evaluate.{key} names the unknown class '{name}'.{nearest(name, names)}")
    return [names.index(name) for name in chosen]
