"""``tagmask evaluate``: a run against true masks, every score with the stamp that says how it was made."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from tagmask.data import Collection, Item
from tagmask.errors import ConfigError, DataError
from tagmask.evaluate import average_precision, chance_precision, difference
from tagmask.evaluate.scores import percent
from tagmask.evaluate.stamp import BY_VAL, FIXED
from tagmask.files import read_record
from tagmask.label import LabelWriter, Look
from tagmask.label.look import Ahead, PhotoPass
from tagmask.label.share import kind, share
from tagmask.methods import Method
from tagmask.training import RunFolder
from tagmask.workflow.card import write_card
from tagmask.workflow.label import own_masks
from tagmask.workflow.localize import localize
from tagmask.workflow.opened import Run, heard, opened
from tagmask.workflow.quality import Quality, quality
from tagmask.workflow.scorer import AT_VAL, FILES, LOCALIZATION, QUALITY, SCORES, SPREAD, Scorer, photos_of
from tagmask.workflow.spread import spread
from tagmask.workflow.stages import Stages
from tagmask.workflow.stamp import IN_EVERY_SCORE, in_force, make_stamp, truth_of

SPECIAL = {LOCALIZATION: localize, SPREAD: spread, QUALITY: quality}
"""Scores that go over the photos by themselves, and whose entries are not like the others'."""
OF_CAMS = {"cam", AT_VAL, "refined", "cam+crf"}
"""Scores of CAMs."""
OUTPUTS = {
    "cam": {"cams", "curve"},
    AT_VAL: {"cams", "curve"},
    "refined": {"cams", "refined"},
    "cam+crf": {"cams", "crf"},
    "seeds": set(),
    "masks": set(),
    "segmenter+tags": {"segmentation", "crf", "guided"},
    "segmenter": {"segmentation", "crf"},
}
"""What each score is of, by the names of ``LabelConfig``. That of label files is in their note."""


def evaluate(
    run: Run | str | Path,
    split: str | None = None,
    what: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    record: str | Path | None = None,
    beside: Beside | None = None,
) -> list[dict[str, Any]]:
    """Score a run on a split and enter the scores into its metrics.json, or that of the folder ``record``.

    split: 'test' where there is one, else 'val'. what: names of SCORES; by default the CAMs and masks, which use
    tags, on 'train', and the segmenter without tags elsewhere (on 'val' both). Splits other than 'val' are scored at
    the CAM threshold that was found best on 'val', too, once 'val' has been scored in the same way. 'localization'
    compares boxes of CAMs with true boxes, see ``localize``, 'spread' CAMs of single scales, see ``spread``, and
    'quality' masks with other views of their photos, see ``quality``; their entries have no mIoU. beside: what else
    takes the photos of the pass.

    Of a run by its path whose stage 'segmenter' is trained, that segmenter is scored where ``what`` names the segmenter
    alone or nothing, but on 'train'. Where nothing has a true mask, only the classifier's mean average precision is
    entered, and the list is empty. Raises DataError when there is nothing to compare with.
    """
    if not isinstance(run, Run):
        run = Run(run)
        if what and {*what} <= {"segmenter", "segmenter+tags"} or not what and split != "train":
            run = run.last
    run = opened(run, overrides)
    asked = {"split": split, "what": None if what is None else list(what)}
    return run.led("evaluate", lambda over: _evaluate(run, split, what, console, record, beside), record, **asked)


def _evaluate(
    run: Run,
    split: str | None,
    what: Sequence[str] | None,
    console: Console | None,
    record: str | Path | None,
    beside: Beside | None,
) -> list[dict[str, Any]]:
    collection = run.collection
    split = split or ("test" if collection.splits.get("test") else "val")
    items = collection.split(split)
    for name in what or ():
        if name not in (*SCORES, *SPECIAL):
            raise ConfigError(f"'{name}' is not a score. There are: {', '.join((*SCORES, *SPECIAL))}.")
    if what:
        names = list(what)
    elif any(item.mask is not None for item in items):
        names = [n for n in default_scores(run.method, split, run.folder) if has_truth(n, collection, split)]
    elif any(item.tags is not None for item in items):
        names = []  # the classifier alone
    else:
        raise DataError(f"{collection.root}: split '{split}' has neither true masks nor tags; set data.masks.")
    for name in names:
        if name != QUALITY:  # needs no truth
            photos_of(name, collection, split)
    kept = RunFolder(record) if record is not None else run.folder
    kept.path.mkdir(parents=True, exist_ok=True)
    kept.metrics()  # if it is damaged, that is said before the work
    special = [SPECIAL[name](run, kept, split, console) for name in names if name in SPECIAL]
    names = [name for name in names if name not in SPECIAL]
    if special and not names:
        return special
    val_threshold = None if split == "val" else _val_threshold(run, kept)
    began = time.perf_counter()
    scorer = Scorer(run.inference, run.config.evaluate, collection, names, val_threshold, run.folder.path)
    about = {**run.said(), "split": split, "names": names, "val_threshold": val_threshold}
    also = {"writes": False, "last": None} if beside is None else beside.said()
    share("score", about | also, score_pass(run, split, scorer, beside or Beside(), console))
    minutes = (time.perf_counter() - began) / 60
    results = []
    for name, stream in scorer.streams.items():
        result = stream.result(
            name,
            collection.classes,
            _stamp(run, name, split, list(stream.per_image), scorer),
            curve=scorer.curve if name == "cam" else None,
            bootstrap=run.config.evaluate.bootstrap,
            without=run.config.evaluate.without,
            only=run.config.evaluate.only,
            seed=run.config.seed,
        )
        result["minutes"] = round(minutes, 2)
        kept.add_score(result)
        results.append(result)
    _add_classification(kept, split, collection.classes, scorer)
    if record is None:
        write_card(run)
    return [*results, *special]


@dataclass
class Beside:
    """What takes the photos of a pass of scores, too.

    writer: of their masks, before they are scored. quality: compares these. draw: in the process that leads alone,
    takes the photos that it did itself, each with its mIoU in the last of the scores (None where it has none) and
    whether its new mask lacks a tagged class.
    """

    writer: LabelWriter | None = None
    quality: Quality | None = None
    draw: Callable[[Item, Look, float | None, bool], None] | None = None

    def said(self) -> dict[str, Any]:
        """As JSON, for processes that help."""
        last = None if self.quality is None else self.quality.last.said()
        return {"writes": self.writer is not None, "last": last}


class _Scored:
    """Takes the photos of a block, for all that a pass of scores is for."""

    def __init__(self, split: str, items: Sequence[Item], scorer: Scorer, beside: Beside) -> None:
        self.split, self.draw, self.scorer = split, beside.draw, scorer.part()
        self.writer = None if beside.writer is None else beside.writer.part(items)
        self.quality = None if beside.quality is None else beside.quality.part()

    def wants(self, item: Item) -> bool:
        return True

    def add(self, item: Item, look: Look | DataError) -> None:
        if self.writer is not None:
            self.writer.add(item, look)
        self.scorer.add(item, look)
        if self.draw is not None and isinstance(look, Look):
            lacks = self.writer is not None and bool(self.writer.lacking.get(item.id))
            self.draw(item, look, self.scorer.miou_of(item), lacks)
        if self.quality is not None:
            self.quality.add(self.split, item, look)

    def state(self) -> list[Any]:
        return [None if part is None else part.state() for part in (self.scorer, self.writer, self.quality)]


def score_pass(run: Run, split: str, scorer: Scorer, beside: Beside, console: Console | None = None) -> PhotoPass:
    """The pass of ``evaluate``."""

    def take(state: Any) -> None:
        for whole, part in zip((scorer, beside.writer, beside.quality), state, strict=True):
            if whole is not None:
                whole.take(part)

    def begin(items: Sequence[Item]) -> _Scored:
        return _Scored(split, items, scorer, beside)

    writes = beside.writer is not None
    cams = writes and run.inference.source == "cam" or bool(OF_CAMS & {*scorer.names})
    logits = writes or {*scorer.names} - {*FILES}
    ahead: Ahead = "cams" if cams else "logits" if logits and run.method.has_segmenter else None
    return PhotoPass(run.inference, run.collection.split(split), begin, take, "score", ahead, console=console)


@kind("score")
def _helps(about: Mapping[str, Any]) -> PhotoPass:
    run = heard(about)
    scorer = Scorer(
        run.inference, run.config.evaluate, run.collection, about["names"], about["val_threshold"], run.folder.path
    )
    beside = Beside(quality=None if about["last"] is None else Quality(run, heard(about["last"])))
    if about["writes"]:
        staged = run.config.stages is not None
        beside.writer = Stages(run).mask_writer() if staged else own_masks(run)
    return score_pass(run, about["split"], scorer, beside)


def default_scores(method: Method, split: str, folder: RunFolder) -> list[str]:
    """What ``evaluate`` scores when not told: with tags on 'train' and 'val', without on any split but 'train'."""
    names: list[str] = []
    if split in ("train", "val") and method.has_cams:
        names += ["cam", "refined"]
    if split == "train":
        names += [name for name in FILES if (folder.path / name / "classes.json").is_file()]
    if split != "train" and method.has_segmenter:
        names.append("segmenter")
    return names or ["segmenter+tags" if method.has_segmenter else "cam"]


def has_truth(name: str, collection: Collection, split: str) -> bool:
    """Whether a split has photos that a score compares with a truth."""
    try:
        return bool(photos_of(name, collection, split))
    except DataError:
        return False


def _val_threshold(run: Run, folder: RunFolder) -> float | None:
    """The peak of the CAM curve on 'val', if its CAMs were made and compared in the same way."""
    now = in_force(run.config, OUTPUTS["cam"])
    for score in reversed(folder.metrics()["scores"]):
        stamp = score["stamp"]
        if (score["name"], stamp["split"], stamp["run"]["digest"]) != ("cam", "val", run.model_note["digest"]):
            continue
        there = {key: value for key, value in stamp["settings"].items() if key in now}
        if not difference(there, now):
            return score["curve"]["peak"]["threshold"]
    return None


def _stamp(run: Run, name: str, split: str, scored: list[str], scorer: Scorer) -> dict[str, Any]:
    collection, label = run.collection, run.inference.config
    items = [collection.item(id) for id in scored]
    made = in_force(run.config, OUTPUTS[name] | IN_EVERY_SCORE)
    threshold: float | None = label.threshold if "cams" in OUTPUTS[name] else None
    threshold_from: str = label.threshold_from
    if name == AT_VAL:
        threshold, threshold_from = scorer.val_threshold, BY_VAL
    elif name in FILES:
        # No network makes these: how they were made says their note, not the configuration.
        scoring = {key: value for key, value in made.items() if key.startswith("evaluate.")}
        note = _label_file_note(run.folder.path / name)
        stage = {f"stage.{key}": value for key, value in note.get("stage", {}).items() if key != "model"}
        made = note.get("settings", {}) | stage | scoring
        threshold, threshold_from = made.get("label.threshold"), made.get("label.threshold_from", FIXED)
    tags = name != "segmenter"
    left_out = scorer.untagged if tags else 0
    return make_stamp(run, split, items, truth_of(collection, items), made, tags, threshold, threshold_from, left_out)


def _label_file_note(folder: Path) -> dict[str, Any]:
    about = folder / "classes.json"
    return read_record(about) if about.is_file() else {}


def _add_classification(folder: RunFolder, split: str, classes: list[str], scorer: Scorer) -> None:
    """Mean average precision of the class scores against the tags, by split, and of shuffled tags beside it."""
    if not scorer.class_scores:
        return
    scores, tags = torch.stack(scorer.class_scores), torch.stack(scorer.tags)
    precision, by_chance = average_precision(scores, tags), chance_precision(scores, tags)
    known = {c: float(p) for c, p in zip(classes, precision, strict=True) if p == p}
    mean = sum(known.values()) / len(known) if known else None
    chance = {"mean": float(by_chance.mean()), "high": float(np.quantile(by_chance, 0.99))} if known else None
    entry = {"split": split, "images": len(tags), "map": mean, "chance": chance, "per_class": known}
    folder.enter("classification", split, entry)


def print_classification(found: dict[str, Any] | None, console: Console) -> None:
    """One line a split: mean average precision of the classifier against the tags."""
    for split, entry in (found or {}).items():
        if entry["map"] is not None:
            found_by = f"{percent(entry['map'])} % mAP against the tags of {entry['images']} photos"
            line = f"classifier on {split}: {found_by}; chance: {percent(entry['chance']['mean'])} %"
            console.print(line, highlight=False)
