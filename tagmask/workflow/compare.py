"""``tagmask compare``: photos with what each run makes of them side by side, scored photo by photo."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from tagmask.data import Collection, Item, read_mask, true_mask
from tagmask.data.photos import only
from tagmask.data.pixels import check_size
from tagmask.errors import ConfigError, DataError, nearest
from tagmask.evaluate import ConfusionMatrix
from tagmask.evaluate.confusion import mean_over_classes
from tagmask.evaluate.scores import percent
from tagmask.label import Look, go_over
from tagmask.label.infer import values_in
from tagmask.label.overlay import fitted, heat, overlay, resized
from tagmask.label.writer import Make
from tagmask.report.grid import Picture, check_suffix, write_grid
from tagmask.types import IGNORE
from tagmask.workflow.label import mask_maker, source_of
from tagmask.workflow.opened import Run, opened
from tagmask.workflow.report import worth_showing
from tagmask.workflow.scorer import cams_at, cut

WHAT = {
    "cam": "class activation maps of the photo's tags, at each pixel the largest; scored where above label.threshold",
    "refined": "these maps after refinement, as labels",
    "masks": "the masks of 'tagmask label', which uses the photo's tags",
    "segmenter": "what the segmenter finds without tags",
}
"""What can be shown of a run, by the names of ``evaluate``."""
SCORES = {"iou": "IoU", "precision": "precision", "recall": "recall"}
"""What stands under a picture."""
PHOTOS = 6
"""Photos that are shown when none are named."""
CANDIDATES = 48
"""Photos that these are chosen from, evenly spaced in their split."""
SIDE = 320
"""Longer side of a picture, pixels."""


@dataclass(frozen=True)
class View:
    """A picture of each photo: of a run, one of WHAT under a setting ('' for none).

    network: the run, opened with its settings, whose network makes it. make: masks, as 'tagmask label' does; masks:
    folder of those that are there already.
    """

    name: str
    what: str
    setting: str
    network: Run
    make: Make
    masks: Path | None = None


@dataclass
class Shown:
    """A photo's rows of pictures, the entry of its scores, the labels that its pictures hold, and the share of pixels
    on which the pictures of one kind do not agree."""

    rows: list[list[Picture | None]]
    entry: dict[str, Any]
    labels: set[int]
    apart: float


def compare(
    runs: Sequence[Run | str | Path],
    out: str | Path,
    what: Sequence[str] = ("masks",),
    vary: str | None = None,
    photos: Sequence[str | Path] = (),
    split: str | None = None,
    class_name: str | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Draw photos, their truth and what each run makes of them into ``out``, a .png or .html file.

    runs: over the same photos and classes; tags and truth are the first one's. what: names of WHAT. vary: a setting of
    use with its values, as 'label.cam_scales=[0.5],[1],[2]': a picture for each. A photo's pictures stand in one row,
    unless several runs meet several kinds or values: then each run has its row. photos: ids, or files of names, one a
    line. By default PHOTOS of ``split`` (test, else val, else train), those on which the pictures disagree on most
    pixels, out of CANDIDATES that are evenly spaced. class_name: show and score this class alone.

    Under each picture of a photo with a true mask stand IoU, precision and recall of the photo alone, means over the
    foreground classes that have one. Masks are read from a run's masks/ where they are there and no setting is given.
    The networks of all runs are loaded; of the photos one is looked at after the other.

    Returns {file, chosen, photos [{id, tags, pictures [{run, what, setting, iou, precision, recall}]}]}, scores in
    [0,1], None where there are none. Raises DataError for runs of other photos or classes, for photos that there are
    not, or without the tags that are asked for, and ConfigError for wrong names and for what a run does not have.
    """
    out = Path(out)
    check_suffix(out)
    if not runs:
        raise ConfigError("No run is named: 'tagmask compare RUN...' takes the folder of one or more.")
    opened_runs = [run if isinstance(run, Run) else Run(run) for run in runs]
    _check_alike(opened_runs)
    first = opened_runs[0]
    collection = first.collection
    for name in what:
        if name not in WHAT:
            raise ConfigError(f"'{name}' cannot be compared (--what). There are: {', '.join(WHAT)}.")
    label = None
    if class_name is not None:
        if class_name not in collection.classes:
            raise ConfigError(f"'{class_name}' is no class (--class).{nearest(class_name, collection.classes)}")
        label = collection.classes.index(class_name) + 1
    views = _arranged(opened_runs, list(dict.fromkeys(what)), vary, overrides)
    flat = [view for row in views for view in row]
    tagged = any(view.what != "segmenter" for view in flat)
    if photos:
        items, chosen = _named(collection, photos), "The photos that were asked for."
    else:
        items, chosen = _candidates(first, split, tagged, label, len(flat) == 1)
    bare = [item.id for item in items if item.tags is None]
    if tagged and bare:
        raise DataError(f"{collection.root}: '{bare[0]}' has no tags; compare the segmenters alone (--what segmenter).")
    for run in opened_runs[1:]:
        _check_files(first, run, items)
    shown: list[Shown] = []

    def show(item: Item, look: Look | DataError) -> None:
        if isinstance(look, DataError):
            raise look
        shown.append(_drawn(collection, item, look, views, label))
        if not photos:
            shown.sort(key=lambda one: -one.apart)  # stable: of equal ones the first in the split
            del shown[PHOTOS:]

    go_over(flat[0].network.inference, items, [show], "compare", console)
    there = sorted(set().union(*(one.labels for one in shown)) - {0})
    legend = [(k, "unsure, or no truth" if k == IGNORE else collection.classes[k - 1]) for k in there]
    notes = [chosen, *_notes(views, class_name), *_taught(opened_runs, [one.entry["id"] for one in shown])]
    write_grid(out, [row for one in shown for row in one.rows], legend, notes)
    return {"file": str(out), "chosen": chosen, "photos": [one.entry for one in shown]}


def _check_alike(runs: Sequence[Run]) -> None:
    """Raise DataError, which names both, where a run's classes or photos are not those of the first."""

    def lists(run: Run) -> dict[str, list[str]]:
        collection = run.collection
        return {"classes": collection.classes, "photos": sorted(item.id for item in collection.items)}

    first = lists(runs[0])
    for run in runs[1:]:
        for kind, theirs in lists(run).items():
            if theirs != first[kind]:
                apart = sorted({*theirs} ^ {*first[kind]})
                how = f"'{apart[0]}' is in one of them only" if apart else "their order differs"
                raise DataError(
                    f"{run.folder.path}: its {kind} are not those of {runs[0].folder.path} ({how}). Only runs over the "
                    f"same {kind} can be compared."
                )


def _arranged(runs: Sequence[Run], what: Sequence[str], vary: str | None, overrides: Sequence[str]) -> list[list[View]]:
    """The views, in the rows in which a photo's pictures stand. Raises ConfigError for what a run does not have."""
    settings = _values(vary) if vary is not None else [""]
    names = _short([run.folder.path.resolve() for run in runs])
    made: dict[tuple[Path, str], Run] = {}

    def network(run: Run, kind: str, setting: str) -> Run:
        """The run that makes the pictures, one object for all that have the same settings."""
        if kind == "masks":
            run = source_of(run, [*overrides, setting] if setting else overrides)
        elif kind == "segmenter":
            run = run.last
        path = run.folder.path
        if (path, "") not in made:
            made[path, ""] = opened(run, overrides)
            made[path, ""].method  # noqa: B018 (loaded, so that the same under other settings shares it)
        if (path, setting) not in made:
            made[path, setting] = made[path, ""].using([setting])
        return made[path, setting]

    def view(run: Run, name: str, kind: str, setting: str) -> View:
        of = network(run, kind, setting)
        if kind in ("cam", "refined") and not of.method.has_cams:
            raise ConfigError(f"{run.folder.path}: method '{run.config.method.name}' has no CAMs (--what {kind}).")
        if kind == "segmenter":
            of.inference.need_segmenter()
        there = run.folder.masks if kind == "masks" and not setting and not overrides else None
        return View(name, kind, setting, of, mask_maker(of, run), there)

    rows = [[view(run, name, kind, s) for kind in what for s in settings] for run, name in zip(runs, names)]
    return [[view for row in rows for view in row]] if len(rows[0]) == 1 else rows


def _short(paths: Sequence[Path]) -> list[str]:
    """The ends of paths, as many folders as tell them apart."""
    for count in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return [str(path) for path in paths]


def _values(vary: str) -> list[str]:
    """'key=a,[b, c]' → ['key=a', 'key=[b, c]']. Raises ConfigError."""
    key, _, text = vary.partition("=")
    values = [value.strip() for value in re.findall(r"(?:\[[^\]]*\]|\"[^\"]*\"|[^,\[\"])+", text)]
    if not key or not values:
        raise ConfigError(f"--vary {vary}: a setting and its values are expected, as label.cam_scales=[0.5],[1],[2].")
    return [f"{key}={value}" for value in values]


def _named(collection: Collection, photos: Sequence[str | Path]) -> list[Item]:
    """The photos of these ids and of the files that list names. Raises DataError."""
    found: dict[str, Item] = {}
    for photo in photos:
        listed = os.path.isfile(photo)
        items = only(collection.items, Path(photo)) if listed else [collection.item(str(photo))]
        found |= {item.id: item for item in items}
    return list(found.values())


def _candidates(run: Run, split: str | None, tagged: bool, label: int | None, single: bool) -> tuple[list[Item], str]:
    """Photos of a split to choose from, and how they are chosen. single: there is one picture a photo.

    Raises DataError where no photo fits.
    """
    collection = run.collection
    split = split or next((name for name in ("test", "val") if collection.splits.get(name)), "train")
    items = worth_showing(run, split)
    if tagged:
        items = [item for item in items if item.tags is not None]
    if label is not None:
        items = [item for item in items if label - 1 in (item.tags or ())]
    items = [item for item in items if item.mask is not None] or items
    if not items:
        which = f" tagged '{collection.classes[label - 1]}'" if label is not None else " with tags" if tagged else ""
        raise DataError(f"{collection.root}: split '{split}' has no photo{which}; choose another (--split).")
    step = -(-len(items) // (PHOTOS if single else CANDIDATES))
    spaced = items[::step]
    if single or len(spaced) <= PHOTOS:
        return spaced[:PHOTOS], f"Photos of '{split}', evenly spaced."
    return spaced, f"The {PHOTOS} of {len(spaced)} photos of '{split}' on which the pictures disagree on most pixels."


def _check_files(first: Run, other: Run, items: Sequence[Item]) -> None:
    """Raise DataError where another run has other photos under the same names."""
    for item in items:
        path = other.collection.item(item.id).image
        if path != item.image and path.read_bytes() != item.image.read_bytes():
            raise DataError(
                f"{other.folder.path}: its photo '{item.id}' ({path}) is another one than that of {first.folder.path} "
                f"({item.image}). Only runs over the same photos can be compared."
            )


def _drawn(collection: Collection, item: Item, look: Look, views: Sequence[Sequence[View]], label: int | None) -> Shown:
    """A photo with its pictures and scores. label: of the only class that is shown."""
    size = fitted(look.photo.shape[-2:], SIDE)
    small = resized(look.photo.permute(1, 2, 0).numpy(), size)
    tags = None if item.tags is None else [collection.classes[tag] for tag in item.tags]
    left = [Picture(item.id, small, "no tags" if tags is None else ", ".join(tags) or "none of the classes")]
    truth = None
    if item.mask is not None:
        truth = _alone(true_mask(item, collection), label)
        check_size(item.mask, truth, item.image, look.photo)
        left.append(Picture("truth", overlay(small, resized(truth.numpy(), size, labels=True))))
    flat = [view for row in views for view in row]
    several = len({view.name for view in flat}) > 1
    labels: dict[View, Tensor] = {}
    pictures: dict[View, Picture] = {}
    scores: dict[View, dict[str, float | None]] = {}
    for network in dict.fromkeys(view.network for view in flat):  # one after the other: maps of many classes are large
        own = Look(network.inference, look.photo, look.tags)
        for view in (view for view in flat if view.network is network):
            labels[view] = _alone(_labels(view, own, item).cpu(), label)
            if view.what == "cam":
                cam = own.cams.amax(0) if label is None else own.cams[label - 1]
                pixels = heat(small, resized(cam.cpu().numpy(), size))
            else:
                pixels = overlay(small, resized(labels[view].numpy(), size, labels=True))
            scores[view] = _scores(labels[view], truth, collection.num_classes)
            pictures[view] = Picture(_title(view, several), pixels, _said(scores[view]) if truth is not None else "")
    rows = [[*(left if n == 0 else [None] * len(left)), *(pictures[v] for v in row)] for n, row in enumerate(views)]
    found = [{"run": v.name, "what": v.what, "setting": v.setting or None, **scores[v]} for v in flat]
    maps = [*([] if truth is None else [truth]), *(labels[view] for view in flat if view.what != "cam")]
    kinds = {view.what for view in flat}
    return Shown(
        rows,
        {"id": item.id, "tags": tags, "pictures": found},
        set().union(*map(values_in, maps)),
        sum(_apart([labels[view] for view in flat if view.what == kind]) for kind in kinds),
    )


def _labels(view: View, look: Look, item: Item) -> Tensor:
    """Label map uint8 (H,W) of a view."""
    if view.what == "cam":
        return cut(cams_at(look, look.photo.shape[-2:]), look.inference.config.threshold).byte()
    if view.what == "refined":
        return look.refined_labels
    if view.what == "segmenter":
        return look.prediction[0]
    file = view.masks / f"{item.id}.png" if view.masks is not None else None
    if file is None or not file.is_file():
        return view.make(item, look)[0]
    mask = read_mask(file, look.inference.method.classes)
    check_size(file, mask, item.image, look.photo)
    return mask


def _alone(labels: Tensor, label: int | None) -> Tensor:
    """A label map with one class alone; unsure pixels stay."""
    return labels if label is None else labels.masked_fill((labels != label) & (labels != IGNORE), 0)


def _scores(labels: Tensor, truth: Tensor | None, classes: int) -> dict[str, float | None]:
    """IoU, precision and recall of a photo, means over the foreground classes that have one; None where none has."""
    if truth is None:
        return dict.fromkeys(SCORES)
    found = ConfusionMatrix(classes).update(labels, truth)
    means = [mean_over_classes(values, without=[0]) for values in (found.iou(), found.precision(), found.recall())]
    return {name: None if math.isnan(mean) else mean for name, mean in zip(SCORES, means)}


def _apart(labels: Sequence[Tensor]) -> float:
    """Share of the pixels on which label maps (H,W) are not all the same."""
    maps = torch.stack(list(labels))
    return float((maps != maps[0]).any(0).float().mean())


def _title(view: View, several: bool) -> str:
    """What a view's picture is called. several: runs."""
    of = f"{view.name}: {view.what}" if several else view.what
    key, _, value = view.setting.partition("=")
    return f"{of}, {key.rpartition('.')[2]} {value}" if view.setting else of


def _said(scores: dict[str, float | None]) -> str:
    return "  ".join(f"{name} {percent(scores[key])}" for key, name in SCORES.items())


def _notes(views: Sequence[Sequence[View]], class_name: str | None) -> list[str]:
    """What the pictures are and what stands under them."""
    flat = [view for row in views for view in row]
    kinds = [f"{kind}: {WHAT[kind]}." for kind in dict.fromkeys(view.what for view in flat)]
    thresholds = {view.name: view.network.inference.config.threshold for view in flat if view.what == "cam"}
    if thresholds and not any("label.threshold" in view.setting for view in flat):
        each = ", ".join(f"{name} {value:g}" for name, value in thresholds.items())
        kinds.append(f"label.threshold: {each}.")
    of = f"of class '{class_name}'" if class_name is not None else "means over the foreground classes that have one"
    return [*kinds, f"Under a picture, where there is a true mask: IoU, precision and recall of this photo in %, {of}."]


def _taught(runs: Sequence[Run], ids: Sequence[str]) -> list[str]:
    """A warning where some of the photos trained one run and not another."""
    for id in ids:
        did = [run.folder.path.name for run in runs if id in run.collection.splits.get("train", ())]
        if 0 < len(did) < len(runs):
            return [f"Not a fair comparison: '{id}' trained {', '.join(did)}, but not the other runs."]
    return []
