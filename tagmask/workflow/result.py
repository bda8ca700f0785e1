"""``tagmask.run(...)`` in Python: all of ``tagmask run``, and its folder as an object that a notebook shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

from tagmask.config import merge
from tagmask.data import read_image, read_mask
from tagmask.evaluate.scores import percent
from tagmask.label import Mask, Segmenter, load, read_missing
from tagmask.report.first_screen import figures, what_next
from tagmask.workflow.opened import Run
from tagmask.workflow.plan import Effort
from tagmask.workflow.run import run as run_all
from tagmask.workflow.suspects import suspected


class Masks(Mapping[str, Mask]):
    """The masks in a run's masks/ by their photo's id, each read when it is asked for."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __getitem__(self, id: str) -> Mask:
        """Raises KeyError for an id without a mask, DataError for files that cannot be read."""
        path = self.run.folder.masks / f"{id}.png"
        if not path.is_file():
            raise KeyError(id)
        collection = self.run.collection
        photo = read_image(collection.item(id).image).permute(1, 2, 0).numpy()
        labels = read_mask(path, len(collection.classes)).numpy()
        return Mask(labels, ["background", *collection.classes], photo)

    def __iter__(self) -> Iterator[str]:
        home = self.run.folder.masks
        return iter(sorted(path.relative_to(home).with_suffix("").as_posix() for path in home.rglob("*.png")))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Result:
    """A finished run by its folder."""

    def __init__(self, path: str | Path) -> None:
        self._run = Run(path)
        self.path = self._run.folder.path
        self.report = self._run.folder.report_file
        self.masks = Masks(self._run)

    @property
    def scores(self) -> list[dict[str, Any]]:
        """As in metrics.json, of the run and of its last segmenter; empty where there are no true masks."""
        return self._run.folder.scores()

    @cached_property
    def segmenter(self) -> Segmenter:
        """The trained segmenter, see ``tagmask.load``."""
        return load(self.path)

    def _repr_html_(self) -> str:
        """How good masks and segmenter are, and what to look at next."""
        quality, folder = self._run.folder.metrics().get("quality", {}), self._run.folder
        rows = [
            (figure["title"], f"{percent(figure['value'])} {figure['unit']}", figure["note"])
            for figure in figures(self.scores, quality)
        ]
        cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        lines = what_next(self.scores, quality, len(read_missing(folder.masks)), suspected(folder.path))
        following = " ".join(line["text"] for line in lines)
        return f"<table>{cells}</table><p>{escape(following)} More: {escape(str(self.report))}</p>"


def run(
    photos: str | Path,
    tags: str | Path | None = None,
    out: str | Path = "runs/latest",
    masks: str | Path | None = None,
    effort: Effort | None = None,
    resume: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """``tagmask run``: from photos and their tags to masks, a segmenter and a report in the folder ``out``.

    tags: a CSV or JSONL file; default: found. masks: a folder of true masks. resume: go on where the run stopped.
    quiet: print no progress. settings: sections, or dotted keys: ``train={"steps": 900}``, ``**{"train.lr": 1e-4}``.
    Raises the errors of ``tagmask.workflow.run``.
    """
    given: dict[str, Any] = {}
    for key, value in settings.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        given = merge(given, value)
    places = {"root": photos, "tags": tags, "masks": masks}
    data = {"data": {key: str(place) for key, place in places.items() if place is not None}}
    run_all([given], data, [], out, resume, console=Console(quiet=quiet), effort=effort)
    return Result(out)


def open_run(path: str | Path) -> Result:
    """A run that is there already. Raises DataError for a folder that is none."""
    result = Result(path)
    result._run.config  # noqa: B018 (says that this is no run)
    return result
