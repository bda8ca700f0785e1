"""``tagmask evaluate --what localization``: boxes of CAMs against true boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tagmask.config import RunConfig
from tagmask.data import Collection, Item, read_ahead, tag_vector
from tagmask.data.collection import hash_ids
from tagmask.errors import ConfigError, DataError
from tagmask.evaluate import THRESHOLD_SOURCES, Localization, Protocol
from tagmask.evaluate.scores import percent
from tagmask.label import Inference
from tagmask.methods import Method
from tagmask.training import RunFolder, write_json
from tagmask.workflow.runs import cam_stamp, run_stamp
from tagmask.workflow.scoring import LOCALIZATION, photos_of

COLUMNS = {"top1": "top-1", "top5": "top-5", "gt_known": "GT-known", "max_box_acc": "MaxBoxAcc"}


def localize(
    folder: RunFolder,
    config: RunConfig,
    method: Method,
    collection: Collection,
    split: str,
    console: Console | None = None,
) -> dict[str, Any]:
    """Top-1, top-5, GT-known and MaxBoxAcc at IoU 0.5 of a split's photos that show one class and have a true box.

    The box is that of the true class's CAM at ``label.threshold`` of its maximum; MaxBoxAcc goes over
    ``evaluate.bins`` thresholds; intervals are over images. The result (see ``Localization``, with 'name', 'protocol'
    and 'left_out', the photos of several classes or none) enters metrics.json under 'localization', by split. Raises
    DataError where no photo has one class and a box, and ConfigError for a method without CAMs or classifier.
    """
    if not method.has_cams:
        raise ConfigError(f"Method '{config.method.name}' has no CAMs, whose boxes could be compared with true ones.")
    boxed = [item for item in collection.split(split) if item.boxes]
    items = photos_of(LOCALIZATION, collection, split)
    inference = Inference(method, config)
    bins = config.evaluate.bins
    counts = Localization(threshold=inference.config.threshold, thresholds=[i / bins for i in range(bins)])
    console = console or Console(stderr=True)
    shown = track(read_ahead(items), "boxes", len(items), console=console, disable=not console.is_terminal)
    for item, photo in shown:
        if isinstance(photo, DataError):
            raise photo
        add(counts, inference, item, photo)
    result = {
        "name": LOCALIZATION,
        **counts.result(config.evaluate.bootstrap, config.seed),
        "left_out": len(boxed) - len(items),
    }
    label = inference.config
    result["protocol"] = Protocol(
        split=split,
        split_hash=hash_ids(item.id for item in items),
        images=len(items),
        truth=f"{collection.source}:boxes",
        tags_at_test=False,
        left_out=len(boxed) - len(items),
        threshold=label.threshold,
        threshold_source=THRESHOLD_SOURCES[label.threshold_from],
        bins=config.evaluate.bins,
        **cam_stamp(config),
        **run_stamp(config, method),
    ).model_dump(mode="json")
    metrics = folder.metrics()
    metrics[LOCALIZATION] = metrics.get(LOCALIZATION, {}) | {split: result}
    write_json(folder.metrics_file, metrics)
    return result


def key_protocol(result: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The protocol of one of a result's shares: the threshold that it was counted at, and whether it took the tag.

    The result's own is that of the top-1 and top-5, which look at the true class's CAM only where it is predicted.
    GT-known and MaxBoxAcc always do, and MaxBoxAcc is at its best threshold. Classes alone have none.
    """
    changed: dict[str, Any] = {"tags_at_test": key in ("gt_known", "max_box_acc")}
    if key == "max_box_acc":
        changed |= {"threshold": result.get("best_threshold"), "threshold_source": "best on this split (oracle)"}
    elif key in ("top1_class", "top5_class"):
        changed |= {"threshold": None, "threshold_source": "none"}
    return result["protocol"] | changed


def add(counts: Localization, inference: Inference, item: Item, photo: torch.Tensor) -> None:
    """One photo, uint8 (3,H,W), of one class: its boxes are brought to the grid of its CAMs."""
    assert item.tags is not None
    scores = inference.class_scores(photo)
    if scores is None:
        raise ConfigError(f"Method '{inference.method.config.name}' has no classifier to take the best classes from.")
    cams = inference.cams(photo, tag_vector(item.tags, inference.method.classes))
    down, across = (n / size for n, size in zip(cams.shape[-2:], photo.shape[-2:]))
    boxes = torch.tensor(item.boxes, dtype=torch.float64) * torch.tensor([across, down, across, down])
    counts.update(cams[None].cpu(), scores[None], [item.tags[0]], [boxes])


def print_localization(result: Mapping[str, Any], console: Console) -> None:
    """The four shares in per cent, and the protocol of each."""
    protocol = Protocol(**result["protocol"])
    table = Table("split", *COLUMNS.values(), "at threshold", box=None, pad_edge=False, header_style="bold")
    cells = [percent(result[key]) for key in COLUMNS]
    table.add_row(protocol.split, *cells, f"{result['best_threshold']:g} (best on this split)")
    console.print(table)
    for key, title in COLUMNS.items():
        line = f"{title}: {Protocol(**key_protocol(result, key)).describe()}"
        console.print(line, style="dim", markup=False, highlight=False)
