"""``tagmask report``: pictures of the run's photos, with everything else that its folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from tagmask.data import Item, read_image, read_mask, tag_vector, true_mask
from tagmask.files import read_record, read_text
from tagmask.label import Look, read_missing
from tagmask.report import Panel, write_report
from tagmask.report.page import SHOWN
from tagmask.workflow.opened import Run, opened
from tagmask.workflow.quality import doubtful
from tagmask.workflow.suspects import suspected
from tagmask.workflow.verdict import verdict

PICTURE = 640
"""Photos are reduced to this many pixels on the long side for the page."""
PHOTOS = 16
"""Photos that are shown, besides some whose masks lack a class."""


class Gallery:
    """Pictures that a report may show, drawn while their photos are scored, so that CAMs are not made again for it.

    Of the photos of ``split``: the best and the worst so far where they have a score, else those that ``sample``
    draws. Of all photos: the first ones whose masks lack a tagged class.
    """

    def __init__(self, run: Run, split: str) -> None:
        self.run, self.split = run, split
        self.candidates = {item.id for item in worth_showing(run, split)}
        self.sampled = {item.id for item in sample(run, split)}
        self.place = {item.id: i for i, item in enumerate(run.collection.items)}
        self.scores: dict[str, float] = {}
        self.lacking: list[str] = []
        self.panels: dict[str, Panel] = {}

    def add(self, item: Item, look: Look, score: float | None, lacks: bool) -> None:
        """Draw a photo of the pass if it may be shown.

        score: its mIoU, if it is of ``split``. lacks: whether its mask lacks a tagged class.
        """
        if "cams" not in look.__dict__:
            return  # there is nothing to save
        if score is not None and item.id in self.candidates:
            self.scores[item.id] = score
            ranked = sorted(self.scores, key=lambda name: -self.scores[name])
            self.scores = {name: self.scores[name] for name in best_and_worst(ranked, PHOTOS)}
        if lacks:
            first = sorted([*self.lacking, item.id], key=self.place.__getitem__)
            self.lacking = first[: PHOTOS + SHOWN]  # some may be among the best and worst, too
        wanted = {*self.scores, *self.lacking, *(() if self.scores else self.sampled)}
        if item.id in wanted:
            self.panels[item.id] = draw(self.run, item, look)
        self.panels = {name: panel for name, panel in self.panels.items() if name in wanted}


def report(
    run: Run | str | Path,
    split: str | None = None,
    photos: int = PHOTOS,
    overrides: Sequence[str] = (),
    gallery: Gallery | None = None,
) -> Path:
    """Write the run's report.html. split: whose photos are shown; default: the last one scored, else 'train'.

    Of photos that a score knows, the best and the worst are shown; of others a seeded sample. Then come some whose
    masks lack a class that they are tagged with. gallery: pictures that were drawn when these photos were scored.
    """
    with opened(run, overrides).alone() as run:
        return _report(run, split, photos, gallery)


def _report(run: Run, split: str | None, photos: int, gallery: Gallery | None) -> Path:
    folder, metrics, scores = run.folder, run.folder.metrics(), run.folder.scores()
    split = split or (scores[-1]["stamp"]["split"] if scores else "train")
    scored: dict[str, dict[str, float]] = next(
        (s["images"] for s in reversed(scores) if s["stamp"]["split"] == split and s["images"]), {}
    )
    known: dict[str, float] = {name: image["miou"] for name, image in scored.items() if image["miou"] is not None}
    if known:
        ranked = sorted((i.id for i in worth_showing(run, split) if i.id in known), key=lambda name: -known[name])
        shown = [run.collection.item(name) for name in best_and_worst(ranked, photos)]
    else:
        shown = sample(run, split, photos)
    lacking = {i: names for i, names in read_missing(folder.masks).items() if (folder.masks / f"{i}.png").is_file()}
    there = {item.id for item in shown}
    further = [item for item in run.collection.split("all") if item.id in lacking and item.id not in there][:SHOWN]
    drawn = gallery.panels if gallery is not None else {}

    def panel(item: Item) -> Panel:
        tags = None if item.tags is None else tag_vector(item.tags, len(run.collection.classes))
        made = drawn.get(item.id) or draw(run, item, Look(run.inference, read_image(item.image), tags))
        made.score, made.missing = known.get(item.id), lacking.get(item.id, [])
        made.prediction = written_mask(run, item, made.image.shape[:2], made.prediction)  # later than the picture
        return made

    return write_report(
        folder.path,
        [panel(item) for item in shown],
        metrics | {"scores": scores} | {"classification": metrics.get("classification", {}).get(split)},
        folder.log(),
        read_text(folder.config_file),
        read_record(folder.environment_file),
        run.fingerprint,
        title=f"{folder.path.resolve().name}: {run.config.method.name} on {run.config.encoder.name}",
        further=[panel(item) for item in further],
        doubtful=doubtful(run),
        verdict=(verdict(run) or {}).get("text", ""),
        taught=_taught(run),
        source=run.model_note["supervision"].partition(" + ")[0],
        lacking=len(lacking),
        suspects=suspected(folder.path),
    )


def _taught(run: Run) -> list[str]:
    """What was trained, a sentence each network."""
    config, last = run.config, run.last.config
    first = f"{config.method.name} on {config.encoder.name}, {config.train.steps} steps."
    if run.last is run:
        return [first]
    stages = config.stages
    rounds = stages.rounds.count if stages is not None and stages.rounds is not None else 1
    many = "a segmenter" if rounds == 1 else f"{rounds} segmenters, each taught by the masks of the one before"
    guide = f", with saliency ({config.guides.saliency})" if config.guides.saliency else ""
    return [f"First masks{guide}: {first}", f"Then {many}: {last.encoder.name}, {last.train.steps} steps."]


def worth_showing(run: Run, split: str) -> list[Item]:
    """Photos of a split. A photo without objects scores 100 % by being left empty: others go before it."""
    items = run.collection.split(split)
    return [item for item in items if item.tags != ()] or items


def sample(run: Run, split: str, photos: int = PHOTOS) -> list[Item]:
    """A seeded sample of the photos of a split."""
    items = worth_showing(run, split)
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(run.config.seed)).tolist()
    return [items[i] for i in order[:photos]]


def best_and_worst(ranked: Sequence[Any], count: int) -> list[Any]:
    """The first and the last half of ``count`` entries of a list, best first; all where there are no more."""
    if len(ranked) <= count:
        return list(ranked)
    return [*ranked[: count // 2], *ranked[len(ranked) - (count - count // 2) :]]


def draw(run: Run, item: Item, look: Look) -> Panel:
    """A photo with its CAMs, masks and truth. Raises DataError for files that cannot be read."""
    collection, method = run.collection, look.inference.method
    names = [collection.classes[t] for t in item.tags or ()]
    factor = min(1.0, PICTURE / max(look.photo.shape[-2:]))
    size = [max(1, round(n * factor)) for n in look.photo.shape[-2:]]
    small = F.interpolate(look.photo[None].float(), size=size, mode="bilinear", antialias=True)[0].round().byte()

    def picture(labels: torch.Tensor) -> Any:
        return shrunk(labels, size)

    panel = Panel(item.id, small.permute(1, 2, 0).numpy(), names, collection.classes)
    if method.has_cams and item.tags:
        panel.cam, panel.cam_names = look.cams[list(item.tags)].cpu().numpy(), names
        panel.refined = picture(look.refined_labels)
    panel.prediction = written_mask(run, item, size, None)
    if panel.prediction is None and method.has_segmenter and run.last is run:
        panel.prediction = picture(look.prediction[0])
    if item.mask is not None:
        panel.truth = picture(true_mask(item, collection))
    return panel


def written_mask(run: Run, item: Item, size: Sequence[int], other: Any) -> Any:
    """The photo's label map in the run's masks/, uint8 of ``size``; ``other`` where there is none."""
    made = run.folder.masks / f"{item.id}.png"
    return shrunk(read_mask(made, len(run.collection.classes)), size) if made.is_file() else other


def shrunk(labels: torch.Tensor, size: Sequence[int]) -> Any:
    """A label map (H,W) as a uint8 array of ``size``, by the nearest pixel."""
    return F.interpolate(labels[None, None], size=list(size), mode="nearest-exact")[0, 0].cpu().numpy()
