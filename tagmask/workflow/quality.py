"""Quality without truth: the masks of a run against other views of their photos, in quality.csv and metrics.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from tagmask.config import LabelConfig
from tagmask.data import Item, read_image, read_mask, true_mask
from tagmask.errors import DataError
from tagmask.evaluate.quality import LARGER, PhotoQuality, QualityStream, by_doubt
from tagmask.evaluate.scores import jsonable, percent
from tagmask.files import csv_text, read_csv, read_record, write_text
from tagmask.label import Inference, Look
from tagmask.label.infer import best_labels
from tagmask.label.look import Ahead, PhotoPass
from tagmask.label.overlay import fitted, resized
from tagmask.label.share import kind, share
from tagmask.report import Panel
from tagmask.report.page import SIDE
from tagmask.training import RunFolder
from tagmask.workflow.opened import Run, heard
from tagmask.workflow.scorer import QUALITY
from tagmask.workflow.stages import Stages

FILE = "quality.csv"
"""In a run folder: a row for each photo, the most doubtful first."""
SCALE = 1.5
"""Size of the larger view, of the size at which the segmenter sees the photo."""
SHARE = 0.01
"""Share of a photo's pixels from which on a class counts as found by the segmenter."""
SHOWN = 8
"""Photos that are named as the most doubtful ones."""


class Quality:
    """Takes each photo of a pass, and says how good its mask is without a truth.

    A photo's mask is its file in the run's masks/, if it has one, else what the segmenter makes of it without tags. It
    is compared with other views of the photo: the segmenter's of a larger image ('larger') and of the mirror image
    ('mirror'); and, where that costs nothing more, with labels of another source ('other'): the segmenter's where it
    did not make the mask, else the labels that it learned from, or the refined CAMs. Views of a mask that used tags are
    limited to these, too. A method without a segmenter has one view, CAMs of a larger image.

    run: whose masks/ are meant. last: the run whose networks look at the photos, see ``Stages.last``; it is trained.
    """

    def __init__(self, run: Run, last: Run) -> None:
        self.run, self.last = run, last
        self.streams: dict[str, QualityStream] = {}
        inference, label = last.inference, last.inference.config
        self.segments = inference.method.has_segmenter
        scale = min(label.scales, key=lambda scale: abs(scale - 1))
        self.mirror = self._inference(scales=[scale], flip=False)
        self.larger = self._inference(
            scales=[SCALE * scale], flip=False, cam_scales=[SCALE * s for s in label.cam_scales]
        )
        self.trains = {item.id for item in run.collection.listed("train")}

    @cached_property
    def by_segmenter(self) -> bool:
        """Whether the segmenter made the masks in masks/. To be asked once there are some."""
        note = self.run.folder.masks / "classes.json"
        return note.is_file() and read_record(note).get("source") == "segmenter"

    def _inference(self, **changed: Any) -> Inference:
        label: LabelConfig = self.last.inference.config.model_copy(update={**changed, "crf": "none"})
        return Inference(self.last.method, self.last.config.model_copy(update={"label": label}))

    def add(self, split: str, item: Item, look: Look | DataError) -> None:
        """Take a photo of a split's pass. One that cannot be read, or that nothing here can segment, is left out."""
        if isinstance(look, DataError) or not self.segments and look.tags is None:
            return
        stream = self.streams.setdefault(split, QualityStream(self.run.collection.classes))
        collection = self.run.collection
        path = self.run.folder.masks / f"{item.id}.png"
        if path.is_file():
            mask = read_mask(path, len(collection.classes))
        else:
            mask = (look.prediction if self.segments else look.mask)[0]
        with_tags = look.tags is not None and (path.is_file() or not self.segments)
        truth = None if item.mask is None else true_mask(item, collection)
        found = classes_in(look.logits.argmax(0), len(collection.classes)) if self.segments else None
        stream.update(
            item.id,
            split,
            mask.cpu(),
            self._views(item, look, with_tags),
            item.tags,
            found,
            self._sure(look, with_tags) if self.segments else None,
            truth,
            held_out=item.id not in self.trains,
        )

    def _views(self, item: Item, look: Look, with_tags: bool) -> dict[str, Tensor]:
        """Label maps uint8 (H,W) by name."""
        tags = look.tags if with_tags else None
        if not self.segments:
            return {LARGER: Look(self.larger, look.photo, tags).refined_labels.cpu()}
        mirrored = _scores(Look(self.mirror, look.photo.flip(-1), tags)).flip(-1)
        views = {
            LARGER: best_labels(_scores(Look(self.larger, look.photo, tags)), look.photo),
            "mirror": best_labels(mirrored, look.photo),
        }
        if with_tags and not self.by_segmenter:
            views["other"] = best_labels(look.limited, look.photo)
        elif with_tags and (taught := self._learned_from(item)) is not None:
            views["other"] = taught
        elif with_tags and "refined_labels" in look.__dict__:
            views["other"] = look.refined_labels
        return {name: labels.cpu() for name, labels in views.items()}

    def _learned_from(self, item: Item) -> Tensor | None:
        """The photo's label file uint8 (H,W) that the last segmenter of a staged run learned from, if there is one."""
        folder = self.last.config.data.train_masks
        if folder is None or not (path := Path(folder) / f"{item.id}.png").is_file():
            return None
        return read_mask(path, len(self.run.collection.classes))

    def _sure(self, look: Look, with_tags: bool) -> float:
        """Mean over pixels of the segmenter's largest probability, limited to the photo's tags where these count."""
        logits = look.logits
        if with_tags and look.tags is not None:
            logits = logits[[0, *(1 + look.tags.nonzero().flatten()).tolist()]]
        return float(logits.softmax(0).amax(0).mean())

    def part(self) -> Quality:
        """What takes some of the photos in the same way, and has only these."""
        part = copy(self)
        part.streams = {}
        return part

    def state(self) -> dict[str, Any]:
        """All that was counted by split, for ``take``; of dictionaries, lists and arrays."""
        return {split: stream.state() for split, stream in self.streams.items()}

    def take(self, state: Mapping[str, Any]) -> None:
        """Add what a part counted."""
        for split, counted in state.items():
            self.streams.setdefault(split, QualityStream(self.run.collection.classes)).merge(counted)

    def look_at(self, splits: Sequence[str], console: Console | None = None) -> None:
        """Go over the photos of splits in passes of their own."""
        for split in splits:
            about = {**self.run.said(), "last": self.last.said(), "split": split}
            share("quality", about, quality_pass(self, split, console))

    def finish(self, folder: RunFolder | None = None) -> dict[str, dict[str, Any]]:
        """Write quality.csv into the run's folder, or the one given, and the results into its metrics.json.

        Where no folder is given they enter the metrics of ``last``, too, whose report shows them. Rows of splits that
        no pass went over are kept. Returns the results by split.
        """
        places = [self.run.folder, self.last.folder] if folder is None else [folder]
        found = {split: stream for split, stream in self.streams.items() if stream.photos}
        results = {split: jsonable({"name": QUALITY, "split": split, **s.result()}) for split, s in found.items()}
        for place in places:
            for split, result in results.items():
                place.enter(QUALITY, split, result)
        photos = [photo for stream in found.values() for photo in stream.photos]
        if photos:
            write_rows(places[0].path / FILE, photos, self.run.collection.classes)
        return results


@dataclass
class _Seen:
    """Takes the photos of a block."""

    split: str
    quality: Quality

    def wants(self, item: Item) -> bool:
        return True

    def add(self, item: Item, look: Look | DataError) -> None:
        self.quality.add(self.split, item, look)

    def state(self) -> dict[str, Any]:
        return self.quality.state()


def quality_pass(quality: Quality, split: str, console: Console | None = None) -> PhotoPass:
    """A pass of its own over the photos of a split."""

    def begin(items: Sequence[Item]) -> _Seen:
        return _Seen(split, quality.part())

    items = quality.run.collection.split(split)
    ahead: Ahead = "logits" if quality.segments else "cams"
    return PhotoPass(quality.last.inference, items, begin, quality.take, "quality", ahead, console=console)


@kind("quality")
def _helps(about: Mapping[str, Any]) -> PhotoPass:
    return quality_pass(Quality(heard(about), heard(about["last"])), about["split"])


def _scores(look: Look) -> Tensor:
    """(C+1,h,w) probabilities of the segmenter, limited to the photo's tags where it has some."""
    return look.prediction[1] if look.tags is None else look.limited


def classes_in(labels: Tensor, classes: int, share: float = SHARE) -> list[int]:
    """Foreground classes, 0..C-1, that cover at least a share of a label map (H,W)."""
    counts = labels.flatten().bincount(minlength=256)[1 : classes + 1]
    return (counts >= share * labels.numel()).nonzero().flatten().tolist()


VIEWS = (LARGER, "mirror", "other")
HEADER = ["photo", "split", "doubt", *VIEWS, "sure", "match", "missing", "unexpected", "iou"]
DOUBT = re.compile(r"([01]\.\d+)?")


def write_rows(path: Path, photos: Sequence[PhotoQuality], classes: Sequence[str]) -> None:
    """One row a photo, the most doubtful first. Rows of other splits that are there are kept. Raises DataError."""

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    def row(photo: PhotoQuality) -> list[str]:
        views = [text(photo.agreement.get(name)) for name in VIEWS]
        names = [";".join(classes[tag] for tag in tags) for tags in (photo.missing, photo.unexpected)]
        return [
            photo.id,
            photo.split,
            text(photo.doubt),
            *views,
            text(photo.sure),
            text(photo.match),
            *names,
            text(photo.iou),
        ]

    splits = {photo.split for photo in photos}
    rows = [*map(row, by_doubt(photos)), *(old for old in read_rows(path) if old[1] not in splits)]
    rows.sort(key=lambda cells: (cells[2] == "", -float(cells[2] or 0)))
    write_text(path, csv_text([HEADER, *rows]))


def read_rows(path: Path) -> list[list[str]]:
    """The rows of a quality.csv without its header; none where there is no file.

    Raises DataError for a file that was changed into something else.
    """
    rows = read_csv(path)[1:] if path.is_file() else []
    for line, row in enumerate(rows, 2):
        if len(row) != len(HEADER) or not DOUBT.fullmatch(row[2]):
            raise DataError(f"{path}, row {line}: no photo with its doubt in [0, 1]. Delete the file to get it anew.")
    return rows


def doubtful(run: Run) -> list[Panel]:
    """The most doubtful photos that have a file in masks/, by the run's quality.csv, with their masks.

    Raises DataError for files that cannot be read.
    """
    folder, collection = run.folder, run.collection
    rows = [row for row in read_rows(folder.path / FILE) if (folder.masks / f"{row[0]}.png").is_file()]
    panels = []
    for id, *_ in rows[:SHOWN]:
        item, labels = collection.item(id), read_mask(folder.masks / f"{id}.png", len(collection.classes))
        size = fitted(labels.shape, SIDE)
        photo = resized(read_image(item.image).permute(1, 2, 0).numpy(), size)
        names = [collection.classes[tag] for tag in item.tags or ()]
        lacking = [name for tag, name in zip(item.tags or (), names) if not (labels == tag + 1).any()]
        prediction = resized(labels.numpy(), size, labels=True)
        panels.append(Panel(id, photo, names, collection.classes, prediction=prediction, missing=lacking))
    return panels


def quality(run: Run, folder: RunFolder, split: str, console: Console | None = None) -> dict[str, Any]:
    """``tagmask evaluate --what quality``: a split's photos in a pass of their own. Returns the split's result.

    The last segmenter of a staged run looks at them, once it is trained. Raises DataError where a split has no photo
    with a mask or a segmenter to make one.
    """
    last = Stages(run).last
    found = Quality(run, last if last.trained else run)
    found.look_at([split], console)
    if split not in found.streams or not found.streams[split].photos:
        raise DataError(f"{run.folder.path}: no photo of '{split}' has a mask; 'tagmask label' makes them from tags.")
    return found.finish(folder)[split]


def quality_line(result: Mapping[str, Any]) -> str:
    """The estimate of a split's masks in one line."""
    parts = [f"{percent(result['estimate'])} % for {result['images']} masks"]
    if result["found"] is not None:
        parts.append(f"{percent(result['found'])} % of the tagged classes in the masks")
    if result["recall"] is not None:
        parts.append(
            f"tags found without being given: precision {percent(result['precision'])} %, recall "
            f"{percent(result['recall'])} %"
        )
    ranks = [(result["correlation"][key], over) for key, over in (("photos", "photos"), ("shown", "those with a tag"))]
    if known := ", ".join(f"{rank:.2f} over {over}" for rank, over in ranks if rank is not None):
        parts.append(f"rank correlation with the true IoU {known}")
    return f"estimate without truth, {result['split']}: {'; '.join(parts)}"


def print_quality(result: Mapping[str, Any], console: Console) -> None:
    """The line, a table by class, and the most doubtful photos."""
    table = Table("class", box=None, pad_edge=False, header_style="bold")
    columns = ["agreement", "found", "precision", "recall"] + ["iou"] * (result["correlation"]["classes"] is not None)
    for column in columns:
        table.add_column("true IoU" if column == "iou" else column, justify="right")
    for name, values in result["per_class"].items():
        table.add_row(name, *(percent(values[column]) for column in columns))
    console.print(table)
    if result["correlation"]["classes"] is not None:
        console.print(f"rank correlation over classes: {result['correlation']['classes']:.2f}", highlight=False)
    for text in (quality_line(result), f"most doubtful: {', '.join(result['doubtful'][:SHOWN])}"):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_estimates(results: Mapping[str, Mapping[str, Any]] | None, console: Console) -> None:
    """One line a split, and the most doubtful photos of all masks that were made from tags."""
    for split, result in (results or {}).items():
        text = quality_line(result)
        if split == "train":
            text += f"; most doubtful: {', '.join(result['doubtful'][:SHOWN])}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
