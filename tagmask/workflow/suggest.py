"""``tagmask review --suggest``: the photos whose review is worth most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from tagmask.data.review import decisions_of
from tagmask.errors import DataError
from tagmask.files import csv_text, write_text
from tagmask.workflow.opened import Run, opened
from tagmask.workflow.quality import FILE as QUALITY
from tagmask.workflow.quality import read_rows
from tagmask.workflow.suspects import pooled_features

FILE = "suggested.csv"
"""In a run folder: photo, worth, doubt, novelty; the viewer sorts by it."""


class Suggestion(NamedTuple):
    """A photo's id, and its worth: doubt times novelty, each in [0,1]."""

    photo: str
    doubt: float
    novelty: float

    @property
    def worth(self) -> float:
        return self.doubt * self.novelty


def suggest(run: Run | str | Path, count: int, console: Console | None = None) -> list[Suggestion]:
    """The ``count`` training photos whose review is worth most, written to suggested.csv.

    Doubt is that of quality.csv. Novelty is how little a photo resembles the reviewed ones and those that are suggested
    before it, see ``choose``. Raises DataError where quality.csv has no training photo.
    """
    run = opened(run)
    doubts = {row[0]: float(row[2]) for row in read_rows(run.folder.path / QUALITY) if row[1] == "train" and row[2]}
    decided = decisions_of(run.folder.path, run.learned_review)
    items = [item for item in run.collection.split("train") if item.id in doubts or item.id in decided]
    if not doubts:
        raise DataError(
            f"{run.folder.path / QUALITY}: has no photo of train. 'tagmask evaluate {run.folder.path} --what quality "
            "--split train' makes it."
        )
    features, kept = pooled_features(run.last.method.encoder, items, "features", console)
    values = torch.tensor([doubts.get(item.id, 0.0) for item in kept], dtype=torch.float64)
    known = torch.tensor([item.id in decided for item in kept], dtype=torch.bool)
    chosen = choose(features, values, known, count)
    found = [Suggestion(kept[i].id, float(values[i]), novelty) for i, novelty in chosen]
    rows = [[s.photo, f"{s.worth:.4f}", f"{s.doubt:.4f}", f"{s.novelty:.4f}"] for s in found]
    write_text(run.folder.path / FILE, csv_text([["photo", "worth", "doubt", "novelty"], *rows]))
    return found


def choose(features: Tensor, doubts: Tensor, known: Tensor, count: int) -> list[tuple[int, float]]:
    """Places of the photos of most worth, and their novelty, the first one first.

    features: (N,D). doubts: (N,). known: bool (N,), those that are reviewed: not chosen. Novelty is half of 1 minus the
    largest cosine of a photo's features, less their mean over all photos, with those of a known or chosen photo; 1
    where there is none.
    """
    units = F.normalize(features.double() - features.double().mean(0), dim=1)
    nearest = torch.full((len(units),), -1.0, dtype=torch.float64)
    for i in known.nonzero().flatten().tolist():
        nearest = torch.maximum(nearest, units @ units[i])
    left = ~known
    found: list[tuple[int, float]] = []
    while left.any() and len(found) < count:
        novelty = ((1 - nearest) / 2).clamp(0, 1)
        i = int((doubts * novelty).masked_fill(~left, -1).argmax())
        found.append((i, float(novelty[i])))
        left[i] = False
        nearest = torch.maximum(nearest, units @ units[i])
    return found


def describe(found: Sequence[Suggestion]) -> str:
    """One line a photo."""
    return "\n".join(f"{s.photo}  (worth {s.worth:.2f}: doubt {s.doubt:.2f}, novelty {s.novelty:.2f})" for s in found)
