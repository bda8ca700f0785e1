"""``tagmask evaluate --what spread``: how much CAMs depend on the scale that the photo is looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, pstdev
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn import functional as F

from tagmask.config import RunConfig
from tagmask.data import Collection, read_ahead, read_mask, tag_vector
from tagmask.data.collection import hash_ids
from tagmask.errors import ConfigError, DataError
from tagmask.evaluate import Protocol, ThresholdCurve
from tagmask.evaluate.bootstrap import interval_of, resampled
from tagmask.evaluate.scores import percent
from tagmask.label import Inference
from tagmask.methods import Method
from tagmask.training import RunFolder, write_json
from tagmask.workflow.runs import cam_stamp, run_stamp
from tagmask.workflow.scoring import SPREAD, photos_of, truth_of


def spread(
    folder: RunFolder,
    config: RunConfig,
    method: Method,
    collection: Collection,
    split: str,
    console: Console | None = None,
) -> dict[str, Any]:
    """mIoU of the CAMs made at each of ``label.cam_scales`` alone, with the mean and deviation over these scales.

    Each scale has its own best threshold of ``evaluate.bins`` on this very split. The deviation is that of the scales
    themselves (divided by their number), as in Yoon et al. (Exploring Pixel-level Self-supervision, appendix A).
    Keys: name, protocol, mean, std, scales [{scale, miou, threshold}], in [0,1], and intervals {mean, std} over images,
    each scale at its threshold (none with ``evaluate.bootstrap`` 0). The result enters metrics.json under 'spread', by
    split. Redrawing photos makes any deviation larger than 0: its interval does not say whether scales differ at all.
    Raises DataError where no photo has both tags and a true mask or no pixel of it has a truth, and ConfigError for a
    method without CAMs and for fewer than two scales.
    """
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
    console = console or Console(stderr=True)
    for item, photo in track(read_ahead(items), "scales", len(items), console=console, disable=not console.is_terminal):
        if isinstance(photo, DataError):
            raise photo
        tags = tag_vector(item.tags or (), len(collection.classes))
        truth = read_mask(item.mask, len(collection.classes), collection.colour_map)  # type: ignore[arg-type]
        for view, curve in zip(views, curves):
            cams = view.cams(photo, tags)[None]
            full = F.interpolate(cams, size=truth.shape, mode="bilinear", align_corners=False)[0]
            curve.update(full.cpu(), tags, truth)
    peaks = [curve.peak() for curve in curves]
    values = [miou for _, miou in peaks]
    if any(math.isnan(value) for value in values):
        raise DataError(f"{collection.root}: the true masks of '{split}' hold only 255, 'ignore'; score another split.")
    result: dict[str, Any] = {
        "name": SPREAD,
        "mean": fmean(values),
        "std": pstdev(values),
        "scales": [{"scale": s, "miou": m, "threshold": t} for s, (t, m) in zip(label.cam_scales, peaks)],
        "protocol": Protocol(
            split=split,
            split_hash=hash_ids(item.id for item in items),
            images=len(items),
            truth=truth_of(collection, items),
            tags_at_test=True,
            left_out=len(have_masks) - len(items),
            threshold_source="best on this split (oracle)",
            bins=config.evaluate.bins,
            **cam_stamp(config),
            **run_stamp(config, method),
        ).model_dump(mode="json"),
    }
    if resamples:
        # (N,scales,K): a photo that is drawn is drawn for every scale
        sums = [np.stack(part, axis=1) for part in zip(*(c.image_sums(t) for c, (t, _) in zip(curves, peaks)))]
        drawn = resampled(sums, resamples, config.seed)
        result["intervals"] = {"mean": interval_of(drawn.mean(axis=1)), "std": interval_of(drawn.std(axis=1))}
    metrics = folder.metrics()
    metrics[SPREAD] = metrics.get(SPREAD, {}) | {split: result}
    write_json(folder.metrics_file, metrics)
    return result


def print_spread(result: Mapping[str, Any], console: Console) -> None:
    """The mIoU of each scale, their mean and deviation in per cent, and the protocol."""
    protocol = Protocol(**result["protocol"])
    names = [f"scale {entry['scale']:g}" for entry in result["scales"]]
    table = Table("split", *names, "mean", "deviation", box=None, pad_edge=False, header_style="bold")
    cells = [percent(entry["miou"]) for entry in result["scales"]]
    table.add_row(protocol.split, *cells, percent(result["mean"]), percent(result["std"]))
    console.print(table)
    if intervals := result.get("intervals"):
        mean, std = (f"{percent(intervals[key]['low'])}–{percent(intervals[key]['high'])}" for key in ("mean", "std"))
        console.print(f"95 % over images: mean {mean}, deviation {std}", highlight=False)
    console.print(f"{SPREAD}: each scale alone · {protocol.describe()}", style="dim", markup=False, highlight=False)
