"""``tagmask evaluate --what spread``: how much CAMs depend on the scale that the photo is looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, pstdev
from typing import Any

import numpy as np
from rich.console import Console

from tagmask.data import Item, true_mask
from tagmask.errors import ConfigError, DataError
from tagmask.evaluate import ThresholdCurve
from tagmask.evaluate.bootstrap import interval_of, resampled
from tagmask.evaluate.scores import percent
from tagmask.evaluate.stamp import headline
from tagmask.label import Inference, Look, go_over
from tagmask.training import RunFolder
from tagmask.workflow.opened import Run
from tagmask.workflow.scorer import SPREAD, cams_at, photos_of
from tagmask.workflow.stamp import in_force, make_stamp, truth_of


def spread(run: Run, folder: RunFolder, split: str, console: Console | None = None) -> dict[str, Any]:
    """mIoU of the CAMs made at each of ``label.cam_scales`` alone, with the mean and deviation over these scales.

    Each scale has its own best threshold of ``evaluate.bins`` on this very split. The deviation is that of the scales
    themselves (divided by their number), as in Yoon et al. (Exploring Pixel-level Self-supervision, appendix A).
    Keys: name, stamp, mean, std, scales [{scale, miou, threshold}], in [0,1], and intervals {mean, std} over images,
    each scale at its threshold (none with ``evaluate.bootstrap`` 0). The result enters the folder's metrics.json under
    'spread', by split. Redrawing photos makes any deviation larger than 0: its interval does not say whether scales
    differ at all. Raises DataError where no photo has both tags and a true mask or no pixel of it has a truth, and
    ConfigError for a method without CAMs and for fewer than two scales.
    """
    config, method, collection = run.config, run.method, run.collection
    if not method.has_cams:
        raise ConfigError(f"Method '{config.method.name}' has no CAMs, whose scales could be compared.")
    label = config.label
    if len(label.cam_scales) < 2:
        raise ConfigError(f"label.cam_scales is {label.cam_scales}; a spread is over two scales or more.")
    have_masks = [item for item in collection.split(split) if item.mask is not None]
    items = photos_of(SPREAD, collection, split)
    alone = [
        config.model_copy(update={"label": label.model_copy(update={"cam_scales": [s]})}) for s in label.cam_scales
    ]
    views = [Inference(method, one) for one in alone]
    resamples = config.evaluate.bootstrap
    curves = [ThresholdCurve(collection.num_classes, config.evaluate.bins, keep=resamples > 0) for _ in views]

    def compare(item: Item, look: Look | DataError) -> None:
        if isinstance(look, DataError):
            raise look
        truth = true_mask(item, collection)
        for view, curve in zip(views, curves):
            curve.update(cams_at(Look(view, look.photo, look.tags), truth.shape).cpu(), look.tags, truth)

    go_over(views[0], items, [compare], "scales", console)
    peaks = [curve.peak() for curve in curves]
    values = [miou for _, miou in peaks]
    if any(math.isnan(value) for value in values):
        raise DataError(f"{collection.root}: the true masks of '{split}' hold only 255, 'ignore'; score another split.")
    result: dict[str, Any] = {
        "name": SPREAD,
        "mean": fmean(values),
        "std": pstdev(values),
        "scales": [{"scale": s, "miou": m, "threshold": t} for s, (t, m) in zip(label.cam_scales, peaks)],
        "stamp": make_stamp(
            run,
            split,
            items,
            truth_of(collection, items),
            in_force(config, {"cams", "curve"}),
            tags=True,
            left_out=len(have_masks) - len(items),
        ),
    }
    if resamples:
        # (N,scales,K): a photo that is drawn is drawn for every scale
        sums = [np.stack(part, axis=1) for part in zip(*(c.image_sums(t) for c, (t, _) in zip(curves, peaks)))]
        drawn = resampled(sums, resamples, config.seed)
        result["intervals"] = {"mean": interval_of(drawn.mean(axis=1)), "std": interval_of(drawn.std(axis=1))}
    folder.enter(SPREAD, split, result)
    return result


def print_spread(result: Mapping[str, Any], console: Console) -> None:
    """The mIoU of each scale, their mean and deviation in per cent, one line each."""
    head = headline("CAMs of single scales", result["stamp"])
    each = ", ".join(f"{percent(entry['miou'])} at {entry['scale']:g}" for entry in result["scales"])
    ends = {k: f" [{percent(i['low'])}, {percent(i['high'])}]" for k, i in result.get("intervals", {}).items()}
    both = f"mean {percent(result['mean'])}{ends.get('mean', '')}, deviation {percent(result['std'])}"
    for text in (each, both + ends.get("std", "")):
        console.print(f"{head}: {text}", markup=False, highlight=False, soft_wrap=True)
