"""``tagmask analyse``: what a run did in training, and what its method makes of photos, as table and picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from tagmask.data import Item, read_image, tag_vector, true_mask
from tagmask.errors import ConfigError, DataError
from tagmask.evaluate import AccuracyByValue, ThresholdCurve
from tagmask.files import write_text, written
from tagmask.label import Inference, Look, go_over
from tagmask.label.overlay import fitted, heat, overlay, resized
from tagmask.methods import Method
from tagmask.methods.base import MAIN, Analysis
from tagmask.report.grid import Picture, grid_png
from tagmask.report.plots import Draw, curves, heatmap, png
from tagmask.training import load_model
from tagmask.training.checkpoint import checkpoints, weights_of
from tagmask.workflow.opened import Run, default_device, opened
from tagmask.workflow.report import sample
from tagmask.workflow.scorer import cams_at, photos_of

TRAINING, CAMS = "training", "cams"
"""Analyses that are not a method's own."""
PHOTOS, SIDE = 4, 320
"""Photos whose maps are drawn, and the longer side of a picture in pixels."""
Rows = list[list[Any]]
"""Of a table, the names of its columns first."""


def analyse(
    run: Run | str | Path,
    what: str,
    split: str = "val",
    photos: Sequence[str] = (),
    at: tuple[float, float] | None = None,
    every_checkpoint: bool = False,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Path]:
    """Write analysis/WHAT.csv and analysis/WHAT.png into the run's folder; returns their paths, by 'table', 'picture'.

    what: 'training', the scores of ``train.watch`` and the method's own figures over the steps; 'cams', mIoU of each
    kind of CAMs that the method has at every threshold; or one of the method's ``analyses``. split: whose photos are
    looked at. photos: ids of those whose maps are drawn, by default a sample of the split; maps have no table. at: a
    place (x,y) of the photos in pixels, by default their middle. every_checkpoint: also what the run was like at each
    checkpoint that is kept, for tables.

    Raises ConfigError for what the run does not have, naming what there is, and DataError where there is nothing to
    look at.
    """
    with opened(run, overrides).alone() as run:
        table: Rows | None = None
        if what == TRAINING:
            if photos or at or every_checkpoint:
                raise ConfigError(f"'{TRAINING}' is of the log: it takes no photos, place or checkpoints.")
            table, picture = _training(run)
        else:
            own = run.method.analyses()
            known = [TRAINING, *([CAMS] if run.method.has_cams else []), *own]
            if what not in known:
                name = run.config.method.name
                raise ConfigError(f"'{what}' is no analysis of method '{name}'. There is: {', '.join(known)}.")
            kind = own[what].kind if what in own else ""
            drawn = kind in ("maps", "place")
            if (every_checkpoint and drawn) or (photos and not drawn) or (at and kind != "place"):
                raise ConfigError(
                    f"'{what}': photos can be named for maps, a place for 'affinity', checkpoints for tables."
                )
            if drawn:
                picture = _maps(run, what, own[what], split, photos, at)
            elif what == CAMS:
                table, picture = _cams(run, split, every_checkpoint, console)
            elif own[what].kind == "numbers":
                table, picture = _numbers(run, what, own[what], split, every_checkpoint, console)
            else:
                table, picture = _accuracy(run, what, own[what], split, every_checkpoint, console)
        folder = run.folder.path / "analysis"
        paths = {"picture": folder / f"{what}.png"}
        with written(paths["picture"]) as part:
            part.write_bytes(picture)
        if table is not None:
            paths["table"] = folder / f"{what}.csv"
            write_text(paths["table"], "".join(",".join(map(str, row)) + "\n" for row in table))
        return paths


def _training(run: Run) -> tuple[Rows, bytes]:
    """Scores and figures of the log: step, name, value."""
    rows: Rows = []
    panels = []
    for kind, factor, label in (("scores", 100, "mIoU, %"), ("figures", 1, "figure")):
        series: dict[str, tuple[list[int], list[float]]] = {}
        for record in run.folder.log():
            for name, value in record.get(kind, {}).items():
                rows.append([record["step"], name, value])
                steps, values = series.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(factor * value)
        if series:
            panels.append(curves(series, "step", label))
    if not rows:
        raise DataError(
            f"{run.folder.log_file}: has no scores and no figures. Train with true masks of val, train.evaluate_every "
            "and train.watch."
        )
    return [["step", "name", "value"], *rows], png("Over the training", panels)


def _cams(run: Run, split: str, every: bool, console: Console | None) -> tuple[Rows, bytes]:
    """mIoU at each threshold: step, which, threshold, miou."""
    items = photos_of("cam", run.collection, split)
    rows: Rows = []
    series = {}
    for step, method in _methods(run, every):
        for which, curve in _threshold_curves(run, method, items, console).items():
            peak, best = curve.peak()
            name = f"{which}, step {step}" if every else which
            series[f"{name}: {100 * best:.1f} at {peak:g}"] = (curve.thresholds, 100 * curve.miou())
            rows += [[step, which, *cells] for cells in zip(curve.thresholds, curve.miou())]
    title = f"CAMs of {len(items)} photos of {split}"
    return [["step", "which", "threshold", "miou"], *rows], png(title, [curves(series, "threshold", "mIoU, %")])


def _threshold_curves(
    run: Run, method: Method, items: Sequence[Item], console: Console | None
) -> dict[str, ThresholdCurve]:
    """Of each kind of CAMs that the method has."""
    kinds = [MAIN, *(name for name, maps in method.others().items() if maps.cam_maps is not None)]
    views = {which: Inference(method, run.config, which) for which in kinds}
    found = {which: ThresholdCurve(run.collection.num_classes, run.config.evaluate.bins) for which in kinds}

    def add(item: Item, look: Look | DataError) -> None:
        look, truth = _readable(look), true_mask(item, run.collection)
        for which, view in views.items():
            cams = cams_at(Look(view, look.photo, look.tags), truth.shape)
            found[which].update(cams.cpu(), look.tags, truth)

    go_over(views[MAIN], items, [add], CAMS, console)
    return found


def _numbers(
    run: Run, what: str, analysis: Analysis, split: str, every: bool, console: Console | None
) -> tuple[Rows, bytes]:
    """Means over photos: step, the axis, mean, deviation."""
    items = [item for item in run.collection.split(split) if item.tags is not None]
    if not items:
        raise DataError(f"{run.collection.root}: no photo of '{split}' has tags.")
    rows: Rows = []
    series = {}
    for step, method in _methods(run, every):
        each: list[list[float]] = []
        go_over(
            Inference(method, run.config),
            items,
            [lambda _, look: each.append(_readable(look).analyse(what).tolist())],  # noqa: B023 (called at once)
            what,
            console,
        )
        columns = list(zip(*each, strict=True))
        series[f"step {step}"] = (range(1, len(columns) + 1), [fmean(values) for values in columns])
        rows += [[step, n, fmean(values), pstdev(values)] for n, values in enumerate(columns, 1)]
    panel = curves(series, analysis.axis, "mean")
    return [["step", analysis.axis, "mean", "deviation"], *rows], png(analysis.about, [panel])


def _accuracy(
    run: Run, what: str, analysis: Analysis, split: str, every: bool, console: Console | None
) -> tuple[Rows, bytes]:
    """Accuracy of labels by value: step, which, low, high, pixels, accuracy and, with a ``cut``, miou_up_to."""
    edges, items = analysis.edges, photos_of("cam", run.collection, split)
    head = ["step", "which", "low", "high", "pixels", "accuracy"]
    if analysis.cut is not None:
        head.append("miou_up_to")
    rows: Rows = []
    steps = []
    for step, method in _methods(run, every):
        found = _streams(run, what, analysis, method, items, console)
        steps.append((step, found))
        for which, stream in found.items():
            columns = [edges[:-1], edges[1:], stream.pixels(), stream.accuracy(), stream.miou_up_to()]
            rows += [[step, which, *cells][: len(head)] for cells in zip(*columns)]
    title = f"{analysis.about}, {len(items)} photos of {split}"
    return [head, *rows], png(title, _accuracy_panels(analysis, steps))


def _streams(
    run: Run, what: str, analysis: Analysis, method: Method, items: Sequence[Item], console: Console | None
) -> dict[str, AccuracyByValue]:
    """Of each series that the analysis gives."""
    found: dict[str, AccuracyByValue] = {}

    def add(item: Item, look: Look | DataError) -> None:
        truth = true_mask(item, run.collection)
        for which, maps in _readable(look).analyse(what).items():
            labels, values = (F.interpolate(x[None, None].float(), size=truth.shape)[0, 0] for x in maps)
            stream = found.setdefault(which, AccuracyByValue(run.collection.num_classes, analysis.edges))
            stream.update(labels.long(), values, truth)

    go_over(Inference(method, run.config), items, [add], what, console)
    return found


def _accuracy_panels(analysis: Analysis, steps: Sequence[tuple[int, dict[str, AccuracyByValue]]]) -> list[Draw]:
    edges = np.array(analysis.edges)
    if np.isinf(edges[-1]):
        edges[-1] = 2 * edges[-2] - edges[-3]
    middle, last = (edges[:-1] + edges[1:]) / 2, steps[-1][1]
    names = [step for step, _ in steps]
    if len(steps) > 1:
        panels = [
            heatmap(f"{which}: accuracy, %", 100 * np.stack([f[which].accuracy() for _, f in steps]), edges, names,
                    analysis.axis)
            for which in last
        ]  # fmt: skip
    else:
        shares = {w: (middle, 100 * s.pixels() / max(1, s.pixels().sum())) for w, s in last.items()}
        panels = [
            curves({w: (middle, 100 * s.accuracy()) for w, s in last.items()}, analysis.axis, "accuracy, %"),
            curves(shares, analysis.axis, "share of the pixels, %"),
        ]
    if analysis.cut is not None and len(steps) == 1:
        filtered = {which: (edges[1:], 100 * stream.miou_up_to()) for which, stream in last.items()}
        panels.append(curves(filtered, f"{analysis.axis} up to", "mIoU of these pixels, %"))
    elif analysis.cut is not None:
        upper = {f"up to {analysis.cut:g}": analysis.edges.index(analysis.cut) - 1, "all": -1}
        panels.append(
            curves(
                {
                    f"{which}, {name}": (names, [100 * found[which].miou_up_to()[i] for _, found in steps])
                    for which in last
                    for name, i in upper.items()
                },
                "step",
                "mIoU, %",
            )
        )
    return panels


def _maps(
    run: Run, what: str, analysis: Analysis, split: str, photos: Sequence[str], at: tuple[float, float] | None
) -> bytes:
    """A row of pictures for each photo and class."""
    items = [run.collection.item(id) for id in photos] or [i for i in sample(run, split, PHOTOS) if i.tags]
    for item in items:
        if not item.tags:
            raise DataError(f"{item.image}: has no tags; name photos that have some.")
    if not items:
        raise DataError(f"{run.collection.root}: no photo of '{split}' has tags.")
    rows = []
    for item in items:
        photo = read_image(item.image)
        tags = tag_vector(item.tags or (), len(run.collection.classes))
        place = []
        if analysis.kind == "place":
            height, width = photo.shape[-2:]
            x, y = at or (width / 2, height / 2)
            if not (0 <= x < width and 0 <= y < height):
                raise ConfigError(f"at={x:g},{y:g} lies outside of photo '{item.id}' of {width}x{height} pixels.")
            place = [(x / width, y / height)]
        rows += _photo_rows(run, item, photo, run.inference.analyse(what, photo, tags, *place), *place)
    return grid_png(rows)


def _photo_rows(
    run: Run, item: Item, photo: Tensor, maps: dict[str, Tensor], place: tuple[float, float] | None = None
) -> list[list[Picture | None]]:
    """The pictures of one photo: in the first row also those that are not of a class."""
    size = fitted(tuple(photo.shape[-2:]), SIDE)
    image = resized(photo.permute(1, 2, 0).numpy(), size)
    shown = image
    if place is not None:
        x, y = int(place[0] * size[1]), int(place[1] * size[0])
        shown = image.copy()
        shown[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5] = (255, 0, 0)
    first: list[Picture | None] = [Picture(item.id, shown)]
    if item.mask is not None:
        truth = true_mask(item, run.collection).numpy()
        first.append(Picture("truth", overlay(image, resized(truth, size, labels=True))))
    whole = {name: one.cpu() for name, one in maps.items() if one.dim() == 2}
    for name, one in whole.items():
        if one.is_floating_point():
            first.append(Picture(name, heat(image, resized(one.numpy(), size))))
        else:
            first.append(Picture(name, overlay(image, resized(one.numpy(), size, labels=True))))
    by_class = {name: one.cpu() for name, one in maps.items() if one.dim() == 3}
    rows: list[list[Picture | None]] = []
    for k in (0, *(tag + 1 for tag in item.tags or ())) if by_class else ():
        title = "background" if k == 0 else run.collection.classes[k - 1]
        own = [
            Picture(f"{name}, {title}", heat(image, resized(one[k].numpy(), size, labels=one.dtype == torch.bool)))
            for name, one in by_class.items()
        ]
        rows.append([*([None] * len(first) if rows else first), *own])
    return rows or [first]


def _methods(run: Run, every: bool) -> Iterator[tuple[int, Method]]:
    """Steps, and the method as it was then: at the end, or at each checkpoint that is kept."""
    if not every:
        yield run.config.train.steps, run.method
        return
    kept = checkpoints(run.folder.checkpoints)
    if not kept:
        raise DataError(f"{run.folder.checkpoints}: no checkpoint is there; train.keep says how many are kept.")
    method = load_model(run.folder.model, default_device(run.config), run.config)[0]
    for path in kept:
        step, weights = weights_of(path)
        method.load_state_dict({k: v for k, v in weights.items() if k.partition(".")[0] not in method.training_only})
        yield step, method


def _readable(look: Look | DataError) -> Look:
    if isinstance(look, DataError):
        raise look
    return look
