"""``tagmask report``: pictures of the run's photos, with everything else that its folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from tagmask.data import Collection, Item, read_image, read_mask, tag_vector
from tagmask.label import Inference, read_missing
from tagmask.label.infer import best_labels
from tagmask.report import Panel, write_report
from tagmask.report.page import SHOWN
from tagmask.training import RunFolder, read_json
from tagmask.workflow.runs import open_run, reopen

PICTURE = 640
"""Photos are reduced to this many pixels on the long side for the page."""


def report(
    run: str | Path,
    split: str | None = None,
    photos: int = 16,
    overrides: Sequence[str] = (),
) -> Path:
    """Write the run's report.html. split: whose photos are shown; default: the last one scored, else 'train'.

    Of photos that a score knows, the best and the worst are shown; of others a seeded sample. Then come some whose
    masks lack a class that they are tagged with.
    """
    folder, config, method = open_run(run, overrides)
    collection = reopen(folder, config)
    metrics = folder.metrics()
    scores = metrics["scores"]
    split = split or (scores[-1]["protocol"]["split"] if scores else "train")
    scored: dict[str, dict[str, float]] = next(
        (s["images"] for s in reversed(scores) if s["protocol"]["split"] == split and s["images"]), {}
    )
    known: dict[str, float] = {name: image["miou"] for name, image in scored.items() if image["miou"] is not None}
    # A photo without objects scores 100 % by being left empty: it would crowd out the ones worth a look.
    items = [i for i in collection.split(split) if i.tags != ()] or collection.split(split)
    if known:
        ranked = sorted((i for i in items if i.id in known), key=lambda i: -known[i.id])
        shown = ranked if len(ranked) <= photos else ranked[: photos // 2] + ranked[-(photos - photos // 2) :]
    else:
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(config.seed)).tolist()
        shown = [items[i] for i in order[:photos]]
    lacking = {i: names for i, names in read_missing(folder.masks).items() if (folder.masks / f"{i}.png").is_file()}
    there = {item.id for item in shown}
    further = [item for item in collection.split("all") if item.id in lacking and item.id not in there][:SHOWN]
    inference = Inference(method, config)

    def panel(item: Item) -> Panel:
        return _panel(item, inference, collection, folder, known.get(item.id), lacking.get(item.id, []))

    return write_report(
        folder.path,
        [panel(item) for item in shown],
        metrics | {"classification": metrics.get("classification", {}).get(split)},
        folder.log(),
        folder.config_file.read_text(encoding="utf-8"),
        read_json(folder.environment_file),
        read_json(folder.fingerprint_file),
        title=f"{config.method.name} on {config.encoder.name}: {folder.path.name}",
        further=[panel(item) for item in further],
    )


def _panel(
    item: Item,
    inference: Inference,
    collection: Collection,
    folder: RunFolder,
    score: float | None,
    missing: Sequence[str],
) -> Panel:
    photo = read_image(item.image)
    names = [collection.classes[t] for t in item.tags or ()]
    factor = min(1.0, PICTURE / max(photo.shape[-2:]))
    size = [max(1, round(n * factor)) for n in photo.shape[-2:]]
    small = F.interpolate(photo[None].float(), size=size, mode="bilinear", antialias=True)[0].round().byte()

    def picture(labels: torch.Tensor) -> torch.Tensor:
        return F.interpolate(labels[None, None], size=size, mode="nearest-exact")[0, 0].cpu()

    panel = Panel(item.id, small.permute(1, 2, 0).numpy(), names, collection.classes, score=score, missing=missing)
    if inference.method.has_cams and item.tags:
        tags = tag_vector(item.tags, len(collection.classes))
        cams = inference.cams(photo, tags)
        panel.cam, panel.cam_names = cams[list(item.tags)].cpu().numpy(), names
        panel.refined = picture(best_labels(inference.refine(photo, cams, tags), photo)).numpy()
    made = folder.masks / f"{item.id}.png"
    if made.is_file():
        panel.prediction = picture(read_mask(made, len(collection.classes))).numpy()
    elif inference.method.has_segmenter:
        panel.prediction = picture(inference.predict(photo)[0]).numpy()
    if item.mask is not None:
        panel.truth = picture(read_mask(item.mask, len(collection.classes), collection.colour_map)).numpy()
    return panel
