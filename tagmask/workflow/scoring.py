"""The passes of ``tagmask run`` over its photos: scores, pictures of the report and the estimate of quality at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from rich.console import Console

from tagmask.data import Item
from tagmask.errors import TagmaskError
from tagmask.label import LabelWriter, Look, go_over
from tagmask.workflow.evaluate import Beside, default_scores, evaluate, has_truth
from tagmask.workflow.opened import Run
from tagmask.workflow.quality import Quality
from tagmask.workflow.report import Gallery
from tagmask.workflow.stages import Stages


class Scoring:
    """Scores a run's classifier split by split, and draws what its report may show in the same passes."""

    def __init__(self, run: Run, stages: Stages, console: Console | None) -> None:
        self.run, self.stages, self.console = run, stages, console
        listed = {split: run.collection.listed(split) for split in ("val", "train", "test")}
        self.scored = [s for s, items in listed.items() if any(i.tags is not None or i.mask is not None for i in items)]
        self.masked = [s for s in self.scored if any(i.mask is not None for i in listed[s])]
        self.open = list(self.scored)
        self.gallery = Gallery(run, self.masked[-1] if self.masked else "train")
        self.scores: list[dict[str, Any]] = []

    @cached_property
    def quality(self) -> Quality:
        """Takes the photos of the same passes, unless another run's segmenter has to look at them."""
        return Quality(self.run, self.stages.last)

    def score_with(self, writer: LabelWriter) -> None:
        """Score val and train while the writer takes their photos. Where scoring fails, the masks are written still."""
        try:
            self.score(["val", "train"], writer)
        except TagmaskError:
            left = [item for item in writer.todo if not writer.paths[item.id].is_file()]
            go_over(self.run.inference, left, [writer.add], "masks", self.console)
            writer.finish()
            raise

    def score(self, splits: Sequence[str], writer: LabelWriter | None = None) -> None:
        """Score the splits that are not scored yet. val comes first: it gives the CAM threshold of the others."""

        def draw(item: Item, look: Look, score: float | None, lacks: bool) -> None:
            self.gallery.add(item, look, score if split == self.gallery.split else None, lacks)

        quality = self.quality if self.stages.last is self.run else None
        for split in (name for name in splits if name in self.open):
            self.open.remove(split)
            what = None if self.stages.last is self.run or split not in self.masked else self._of_classifier(split)
            if what != []:
                beside = Beside(writer, quality, draw)
                self.scores += evaluate(self.run, split, what, console=self.console, beside=beside)

    def _of_classifier(self, split: str) -> list[str]:
        """Scores of a staged run's classifier, without its own segmenter's: that of the last stage counts."""
        names = default_scores(self.run.method, split, self.run.folder)
        return [n for n in names if not n.startswith("segmenter") and has_truth(n, self.run.collection, split)]
