"""One row of a table with one seed: trained, scored, and kept as result.json in its run folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tagmask.config import RunConfig
from tagmask.errors import ConfigError
from tagmask.files import read_record, write_json
from tagmask.registry import METHODS
from tagmask.reproduce.configure import run_path
from tagmask.reproduce.measure import measure
from tagmask.reproduce.table import TRAINING, Column, Row
from tagmask.stage_config import StagesConfig
from tagmask.training import RunFolder
from tagmask.workflow import Run, evaluate, label, resumed
from tagmask.workflow.run import training_steps
from tagmask.workflow.scorer import AT_VAL
from tagmask.workflow.stages import Stages, learns_from, stage_configs
from tagmask.workflow.steps import work

Wanted = tuple[tuple[str, ...], str, str]
"""Settings of a column, split and score."""


class Job:
    """One row with one seed: a run folder and, when finished, its result.json.

    config: of the training; scored: settings that a row which is a run of another one is scored with.
    """

    def __init__(
        self, row: Row, seed: int, home: Path, config: RunConfig, columns: Sequence[Column], scored: Sequence[str] = ()
    ) -> None:
        self.row = row
        self.seed = seed
        self.config = config
        self.scored = list(scored)
        self.home = home
        self.folder = run_path(home, row.name, seed)
        self.trained = self.folder if row.run_of is None else run_path(home, row.run_of, seed)
        source = row.run_of or row.masks_from
        self.source = None if source is None else run_path(home, source, seed) / "result.json"
        self.lock = home / ".locks" / f"{row.name}.seed{seed}"
        self.wanted = [w for column in columns for w in self._entries(column)]

    def done(self) -> bool:
        """Whether every score is there. Raises ConfigError when the folder holds another configuration's run."""
        run = Run(self.trained)
        if run.begun:
            resumed(run.folder, [], self._wanted_config(run), [])
            if (self.trained / "result.json").is_file():
                self._check_stages(run)
        if not (self.folder / "result.json").is_file():
            return False
        made = self.result()["scored"]
        if made != self.scored:
            raise ConfigError(f"{self.folder}: was scored with {made}, not with {self.scored}. Use another folder.")
        return not self.missing()

    def _wanted_config(self, run: Run) -> dict[str, Any]:
        """The configuration; another row's masks as the run names them, where only the way to the table differs."""
        wanted = self.config.model_dump(mode="json")
        now, saved = self.config.data.train_masks, run.config.data.train_masks
        if now and saved and now.is_relative_to(self.home.resolve()) and now.parts[-3:] == saved.parts[-3:]:
            wanted["data"]["train_masks"] = str(saved)
        return wanted

    def _check_stages(self, run: Run) -> None:
        """Raise ConfigError when a finished run went through other stages: it would not go through them again."""
        before, now = run.config.stages, self.config.stages
        other = [n for n in StagesConfig.model_fields if getattr(before, n, None) != getattr(now, n, None)]
        if other:
            what = ", ".join(f"stages.{name}" for name in other)
            raise ConfigError(
                f"{run.folder.path}: was finished with other settings: {what} differ. Use another folder."
            )

    def trains(self) -> bool:
        """Whether it has a training of its own, and is not through with it, its stages and labels."""
        return self.row.run_of is None and not (self.folder / "result.json").is_file()

    def networks(self) -> dict[Path, RunConfig]:
        """Configurations of all that the row trains, its stages' networks included, by run folder."""
        if self.row.run_of is not None:
            return {}
        stages = stage_configs(self.config, RunFolder(self.folder))
        return {self.folder: self.config} | {self.folder / name: config for name, config in stages.items()}

    def ready(self) -> bool:
        """Whether the row that it builds on, if any, is done."""
        return self.source is None or self.source.is_file()

    def result(self) -> dict[str, Any]:
        """Scores by split, name and settings, with what they cost."""
        return read_record(self.folder / "result.json")

    def run(self, console: Console | None) -> None:
        """Train (or resume), go through stages and label where asked, score what is not scored, write the result."""
        run = Run(self.trained)
        there = self.result() if (self.folder / "result.json").is_file() else None
        result = there or self._train(run, console)
        began = time.perf_counter()
        new = self._score(run, self.missing(), console)
        scores = [old for old in result["scores"] if _key(old) not in {_key(entry) for entry in new}] + new
        minutes = round(result["minutes"] + (time.perf_counter() - began) / 60, 2)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "result.json", result | {"scores": scores, "minutes": minutes, "scored": self.scored})
        for name in (".", *learns_from(self.config)):
            shutil.rmtree(RunFolder(self.trained / name).checkpoints, ignore_errors=True)

    def _train(self, run: Run, console: Console | None) -> dict[str, Any]:
        """A result without scores.

        Its minutes are of this call and of the training steps of calls that were cut off before; what else those did
        (labels, walks, scores while training) is not known any more. stage_minutes are of this call.
        """
        began = time.perf_counter()
        earlier = sum(_seconds(path) for path in self.networks())
        spent: dict[str, float] = {}
        if self.row.run_of is None:
            run.config = resumed(run.folder, [], self._wanted_config(run), []) if run.begun else self.config
            run.config = run.config.model_copy(update={"stages": self.config.stages})
            run.begin(resume=True)
            stages = Stages(run)
            for _ in stages.networks():  # weights that lack, or parts that do not fit, are said now
                pass
            _, spent = work(run, training_steps(run, stages, console), "the same command")
            if self.row.label:
                label(run, "train", console=console)
        steps = [r for r in run.folder.log() if "seconds" in r]
        return {
            "scores": [],
            "minutes": round((earlier + time.perf_counter() - began) / 60, 2),
            "train_minutes": round(_seconds(self.folder) / 60, 2),
            "stage_minutes": spent,
            "seconds_per_step": steps[-1]["seconds"] / steps[-1]["step"] if steps else None,
            "environment": read_record(run.folder.environment_file),
        }

    def _score(self, run: Run, wanted: Sequence[Wanted], console: Console | None) -> list[dict[str, Any]]:
        """Entries of what is wanted, each with the settings 'set' of its column."""
        found = []
        runs = {".": run, "segmenter": Run(self.trained / "segmenter")}
        groups = list(dict.fromkeys((settings, split) for settings, split, _ in wanted))
        # val first: the other splits are scored at its threshold, too.
        for settings, split in sorted(groups, key=lambda group: (group[0], group[1] != "val", group[1])):
            asked = [name for s, where, name in wanted if (s, where) == (settings, split)]
            use, staged = [*self.scored, *settings], self._stage("segmenter")
            names = [base_score(name) for name in asked if not of_cost(name)]
            entries = []
            for part, own in runs_of(list(dict.fromkeys(names)), staged):
                entries += evaluate(runs[part], split, own, use, console, record=self.folder / part)
            costs = [base_score(name) for name in asked if of_cost(name)]
            for part, own in runs_of(list(dict.fromkeys(costs)), staged):
                entries += [measure(runs[part].using(use), split, name) for name in own]
            found += [entry | {"set": list(settings)} for entry in entries]
        return found

    def _entries(self, column: Column) -> list[Wanted]:
        if not self._can(base_score(column.score)):
            return []
        settings = tuple(column.set)
        first = [(settings, "val", "cam")] if column.score == AT_VAL else []
        return [*first, (settings, column.split, column.entry)]

    def missing(self) -> list[Wanted]:
        if not (self.folder / "result.json").is_file():
            return list(dict.fromkeys(self.wanted))
        there = {_key(entry) for entry in self.result()["scores"]}
        return [w for w in dict.fromkeys(self.wanted) if w not in there]

    def _can(self, score: str) -> bool:
        method = METHODS.get(self.config.method.name)
        if score == TRAINING:
            return self.row.run_of is None
        if score in ("seeds", "masks"):
            return self._stage("cams" if score == "seeds" else "masks") or (score == "masks" and self.row.label)
        if score.startswith("segmenter"):
            return method.has_segmenter or self._stage("segmenter")
        return method.has_cams

    def _stage(self, name: str) -> bool:
        return self.config.stages is not None and getattr(self.config.stages, name) is not None


def _seconds(run: Path) -> float:
    """Seconds that a run's training steps took, over all calls that it was resumed in."""
    return next((record["seconds"] for record in reversed(RunFolder(run).log()) if "seconds" in record), 0.0)


def _key(entry: dict[str, Any]) -> Wanted:
    """What an entry is a score of."""
    return tuple(entry["set"]), entry["stamp"]["split"], entry["name"]


def runs_of(names: Sequence[str], staged: bool) -> list[tuple[str, list[str]]]:
    """Run folders within a run's own, with those of the scores ``names`` that their networks give.

    staged: whether there is a stage 'segmenter', which gives the segmenter's scores.
    """
    stage = [name for name in names if staged and name in ("segmenter", "segmenter+tags")]
    own = [name for name in names if name not in stage]
    return [(part, given) for part, given in ((".", own), ("segmenter", stage)) if given]


def base_score(name: str) -> str:
    """The name that ``evaluate`` takes for a score: 'cam (val threshold)' is a by-product of 'cam'."""
    return name.partition(" (")[0]


def of_cost(name: str) -> bool:
    """Whether an entry has what a score costs, and not what it is."""
    return name.endswith(" (cost)")
