"""From counts to the score that is saved, printed and reported: one JSON-able dictionary with its stamp."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tagmask.errors import ConfigError, nearest
from tagmask.evaluate.bootstrap import interval_of, resampled
from tagmask.evaluate.boundary import BoundaryIoU
from tagmask.evaluate.confusion import ConfusionMatrix, LabelError, intersection_over_union, mean_over_classes, sums
from tagmask.evaluate.curve import ThresholdCurve
from tagmask.evaluate.stamp import Stamp, headline

BACKGROUND = "background"
ALL_UNSURE = "all unsure"
INTERVALS = ("interval", "interval_precision", "interval_recall", "interval_without", "interval_c_miou")


class ImageMatrices(Mapping):
    """Confusion matrices (K,K) by image id, of which only the cells that are not 0 are kept.

    An image shows few classes: at 81 classes this takes some hundred bytes where the matrix takes 26 kB.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._cells: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, image_id: str, matrix: np.ndarray) -> None:
        """Keep the matrix of one image. Raises LabelError where the id has one already."""
        if image_id in self._cells:
            raise LabelError(f"Image '{image_id}' was scored twice; an id belongs to one image.")
        cells = np.flatnonzero(matrix)
        self._cells[image_id] = (cells.astype(np.uint16), matrix.ravel()[cells].astype(np.int32))

    def __getitem__(self, image_id: str) -> np.ndarray:
        matrix = np.zeros(self.num_classes**2, dtype=np.int64)
        cells, counts = self._cells[image_id]
        matrix[cells] = counts
        return matrix.reshape(self.num_classes, self.num_classes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


class ScoreStream:
    """Collects the counts of one score image by image, over all and per image.

    boundary: width of the rims of the Boundary IoU as a share of the diagonal; 0: not counted.
    """

    def __init__(self, num_classes: int, ignore: int = 255, boundary: float = 0.0) -> None:
        self.confusion = ConfusionMatrix(num_classes, ignore)
        self.per_image = ImageMatrices(num_classes)
        self.boundary = BoundaryIoU(num_classes, boundary, ignore) if boundary else None

    def update(self, image_id: str, pred: Any, target: Any) -> ScoreStream:
        """Add one image, label maps as in ``ConfusionMatrix.update``; returns itself. Errors name the image."""
        one = ConfusionMatrix(self.confusion.num_classes, self.confusion.ignore)
        try:
            one.update(pred, target)
        except LabelError as error:
            raise LabelError(f"{image_id}: {error}") from error
        self.per_image.add(image_id, one.matrix)
        self.confusion.merge(one)
        if self.boundary is not None:
            self.boundary.update(pred, target)
        return self

    def miou_of(self, image_id: str) -> float:
        """The mIoU of one image, in [0,1]; NaN where it has no class."""
        return mean_over_classes(intersection_over_union(*sums(self.per_image[image_id])))

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
        """The score of all images so far; see ``score``."""
        return score(
            name,
            self.confusion,
            classes,
            stamp,
            self.per_image,
            curve,
            bootstrap,
            without,
            seed,
            only,
            self.boundary,
        )


def score(
    name: str,
    confusion: ConfusionMatrix,
    classes: Sequence[str],
    stamp: Stamp,
    per_image: Mapping[str, np.ndarray] | None = None,
    curve: ThresholdCurve | None = None,
    bootstrap: int = 1000,
    without: Sequence[str] = (),
    seed: int = 0,
    only: Sequence[str] = (),
    boundary: BoundaryIoU | None = None,
) -> dict[str, Any]:
    """Everything that is known about one set of label maps, ready for JSON (NaN becomes None; shares in [0,1]).

    classes: names of the foreground classes, or of all with the background first. per_image: (K,K) matrices by id,
    for the interval (``bootstrap`` resamples; 0 for none) and the images' own scores. without: names of classes
    left out of a second mean. only: names of classes of a third one, the C-mIoU of Co-training with Swapping
    Assignments (ECCV 2024, table 4b), there over classes that occur together. Keys: name, stamp, miou,
    miou_strict, coverage, accuracy, precision, recall (means over the classes that have one), boundary_iou, without,
    miou_without, only, c_miou, interval, interval_precision, interval_recall, interval_without and interval_c_miou
    {low, high, std, resamples}, classes, per_class {name: {iou, precision, recall, boundary_iou, pixels}}, confusion
    (rows are the truth), images {id: {miou, accuracy}}, curve {thresholds, miou, peak {threshold, miou, precision,
    recall}}; with ``only`` the peak has c_miou, too, and where the curve kept its images interval, interval_precision,
    interval_recall and interval_c_miou at its threshold. What was not asked for is None. Raises ConfigError for an
    unknown class in ``without`` or ``only`` and LabelError for a list of classes that does not fit.
    """
    names = all_classes(classes, confusion.num_classes)
    left_out = _indices("without", without, names)
    # A mean over some classes is one without all others.
    others = sorted(set(range(len(names))) - set(_indices("only", only, names))) if only else []
    images: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, Any] | None] = dict.fromkeys(INTERVALS)
    if per_image:
        rows = []
        for image_id, matrix in per_image.items():
            hit, true, predicted = sums(np.asarray(matrix))
            total = true.sum()
            images[image_id] = {
                "miou": mean_over_classes(intersection_over_union(hit, true, predicted)),
                "accuracy": float(hit.sum() / total) if total else math.nan,
            }
            rows.append((hit, true, predicted))
        if bootstrap:
            tables = [np.stack(part) for part in zip(*rows)]
            intervals |= _intervals(tables, bootstrap, seed, others if only else None)
            if left_out:
                intervals["interval_without"] = interval_of(resampled(tables, bootstrap, seed, left_out))
    iou, precision, recall = confusion.iou(), confusion.precision(), confusion.recall()
    rims = np.full(len(names), np.nan) if boundary is None else boundary.iou()
    pixels = confusion.counts.sum(axis=1)
    result = {
        "name": name,
        "stamp": dict(stamp),
        "miou": confusion.miou(),
        "miou_strict": confusion.miou_strict(),
        "coverage": confusion.coverage(),
        "accuracy": confusion.accuracy(),
        "precision": mean_over_classes(precision),
        "recall": mean_over_classes(recall),
        "boundary_iou": mean_over_classes(rims),
        "without": list(without) or None,
        "miou_without": confusion.miou(without=left_out) if left_out else None,
        "only": list(only) or None,
        "c_miou": confusion.miou(without=others) if only else None,
        **intervals,
        "classes": names,
        "per_class": {
            name: {
                "iou": float(iou[i]),
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "boundary_iou": float(rims[i]),
                "pixels": int(pixels[i]),
            }
            for i, name in enumerate(names)
        },
        "confusion": confusion.matrix.tolist(),
        "images": images or None,
        "curve": _curve(curve, others if only else None, bootstrap, seed) if curve is not None else None,
    }
    return jsonable(result)


def all_classes(classes: Sequence[str], num_classes: int) -> list[str]:
    """The K class names, background first. Raises LabelError where their number fits neither K nor K − 1."""
    if len(classes) == num_classes - 1:
        return [BACKGROUND, *classes]
    if len(classes) != num_classes:
        raise LabelError(f"{len(classes)} class names do not fit {num_classes} classes (background included).")
    return list(classes)


def jsonable(value: Any) -> Any:
    """``value`` with NaN and infinity as None and numpy numbers and arrays as Python's, at any depth."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_scores(scores: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print scores (dictionaries of ``score``), one line each."""
    console = console or Console()
    for score in scores:
        console.print(score_line(score), markup=False, highlight=False, soft_wrap=True)


def score_line(score: Mapping[str, Any]) -> str:
    """One line: what was scored, split, tags or not, threshold, and the mIoU in per cent with its interval."""
    parts = [f"{percent(score['miou'])} mIoU" + _range(score["interval"])]
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


def _range(interval: Mapping[str, Any] | None) -> str:
    return f" [{percent(interval['low'])}, {percent(interval['high'])}]" if interval else ""


def print_classes(score: Mapping[str, Any], console: Console | None = None) -> None:
    """Print IoU, precision, recall and boundary IoU of each class of one score and their means, in per cent.

    A dash stands for a class that is absent, and for what was not counted; 'all unsure' for a class whose true pixels
    are all 255 in the prediction.
    """
    console = console or Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{escape(score['name'])}, {escape(score['stamp']['split'])}", overflow="fold")
    columns = {"IoU": "iou", "precision": "precision", "recall": "recall", "boundary IoU": "boundary_iou"}
    for column in columns:
        table.add_column(column, justify="right")
    for name, found in score["per_class"].items():
        cells = [percent(found.get(key)) for key in columns.values()]
        table.add_row(escape(name), ALL_UNSURE if all_unsure(found) else cells[0], *cells[1:])
    table.add_section()
    table.add_row("mean", *(percent(score.get(key)) for key in ("miou", *list(columns.values())[1:])))
    console.print(table)


def all_unsure(found: Mapping[str, Any]) -> bool:
    """Whether a class, an entry of per_class, is in the truth and has no IoU: all of it is 255 in the prediction."""
    return found["iou"] is None and bool(found.get("pixels"))


def percent(value: float | None) -> str:
    """A share as per cent with one decimal; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def _indices(key: str, chosen: Sequence[str], names: list[str]) -> list[int]:
    for name in chosen:
        if name not in names:
            raise ConfigError(f"evaluate.{key} names the unknown class '{name}'.{nearest(name, names)}")
    return [names.index(name) for name in chosen]


def _intervals(
    tables: Sequence[np.ndarray], resamples: int, seed: int, without: Sequence[int] | None
) -> dict[str, dict[str, Any] | None]:
    """Intervals of mIoU, precision and recall, and of the mIoU without some classes, from images' pixel sums."""
    found: dict[str, dict[str, Any] | None] = {
        "interval": interval_of(resampled(tables, resamples, seed)),
        "interval_precision": interval_of(resampled(tables, resamples, seed, of="precision")),
        "interval_recall": interval_of(resampled(tables, resamples, seed, of="recall")),
    }
    if without is not None:
        found["interval_c_miou"] = interval_of(resampled(tables, resamples, seed, without))
    return found


def _curve(curve: ThresholdCurve, without: Sequence[int] | None, resamples: int, seed: int) -> dict[str, Any]:
    """The peak's intervals are at its threshold: that it was chosen on these images is not in them."""
    threshold, miou = curve.peak()
    precision, recall = curve.precision_recall_at(threshold) if threshold == threshold else (math.nan, math.nan)
    peak: dict[str, Any] = {"threshold": threshold, "miou": miou, "precision": precision, "recall": recall}
    if without is not None:
        peak["c_miou"] = curve.at(threshold, without) if threshold == threshold else math.nan
    if curve.images and resamples and threshold == threshold:
        tables = list(curve.image_sums(threshold))
        peak |= _intervals(tables, resamples, seed, without)
    return {"thresholds": curve.thresholds, "miou": curve.miou(), "peak": peak}
