"""``tagmask evaluate --what localization``: boxes of CAMs against true boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console

from tagmask.data import Item
from tagmask.errors import ConfigError, DataError
from tagmask.evaluate import Localization
from tagmask.evaluate.scores import percent
from tagmask.evaluate.stamp import BY_SPLIT, headline
from tagmask.label import Look, go_over
from tagmask.training import RunFolder
from tagmask.workflow.opened import Run
from tagmask.workflow.scorer import LOCALIZATION, photos_of
from tagmask.workflow.stamp import in_force, make_stamp

COLUMNS = {"top1": "top-1", "top5": "top-5", "gt_known": "GT-known", "max_box_acc": "MaxBoxAcc"}


def localize(run: Run, folder: RunFolder, split: str, console: Console | None = None) -> dict[str, Any]:
    """Top-1, top-5, GT-known and MaxBoxAcc at IoU 0.5 of a split's photos that show one class and have a true box.

    The box is that of the true class's CAM at ``label.threshold`` of its maximum; MaxBoxAcc goes over
    ``evaluate.bins`` thresholds; intervals are over images. The result (see ``Localization``, with 'name', 'stamp'
    and 'left_out', the photos of several classes or none) enters the folder's metrics.json under 'localization', by
    split. Raises DataError where no photo has one class and a box, and ConfigError for a method without CAMs or
    classifier.
    """
    inference, collection, config = run.inference, run.collection, run.config
    if not inference.method.has_cams:
        raise ConfigError(f"Method '{config.method.name}' has no CAMs, whose boxes could be compared with true ones.")
    boxed = [item for item in collection.split(split) if item.boxes]
    items = photos_of(LOCALIZATION, collection, split)
    bins = config.evaluate.bins
    counts = Localization(threshold=inference.config.threshold, thresholds=[i / bins for i in range(bins)])
    go_over(inference, items, [lambda item, look: add(counts, item, look)], "boxes", console)
    left_out = len(boxed) - len(items)
    label = inference.config
    stamp = make_stamp(
        run,
        split,
        items,
        f"{collection.source}:boxes",
        in_force(config, {"cams", "curve"}),
        tags=False,
        threshold=label.threshold,
        threshold_from=label.threshold_from,
        left_out=left_out,
    )
    shares = counts.result(config.evaluate.bootstrap, config.seed)
    result = {"name": LOCALIZATION, **shares, "left_out": left_out, "stamp": stamp}
    folder.enter(LOCALIZATION, split, result)
    return result


def key_stamp(result: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The stamp of one of a result's shares: the threshold that it was counted at, and whether it took the tag.

    The result's own is that of the top-1 and top-5, which look at the true class's CAM only where it is predicted.
    GT-known and MaxBoxAcc always do, and MaxBoxAcc is at its best threshold. Classes alone have none.
    """
    changed: dict[str, Any] = {"tags": key in ("gt_known", "max_box_acc")}
    if key == "max_box_acc":
        changed |= {"threshold": result.get("best_threshold"), "threshold_from": BY_SPLIT}
    elif key in ("top1_class", "top5_class"):
        changed |= {"threshold": None, "threshold_from": None}
    return result["stamp"] | changed


def add(counts: Localization, item: Item, look: Look | DataError) -> None:
    """One photo of one class: its boxes are brought to the grid of its CAMs. Raises DataError and ConfigError."""
    if isinstance(look, DataError):
        raise look
    assert item.tags is not None
    if look.class_scores is None:
        name = look.inference.method.config.name
        raise ConfigError(f"Method '{name}' has no classifier to take the best classes from.")
    down, across = (n / size for n, size in zip(look.cams.shape[-2:], look.photo.shape[-2:]))
    boxes = torch.tensor(item.boxes, dtype=torch.float64) * torch.tensor([across, down, across, down])
    counts.update(look.cams[None].cpu(), look.class_scores[None], [item.tags[0]], [boxes])


def print_localization(result: Mapping[str, Any], console: Console) -> None:
    """The four shares in per cent, one line each."""
    for key, title in COLUMNS.items():
        line = f"{headline(title, key_stamp(result, key))}: {percent(result[key])} %"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
