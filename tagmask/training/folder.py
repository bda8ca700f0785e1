"""A run folder: the one place that knows which file of a run lies where."""

from __future__ import annotations

import json
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tagmask.config import RunConfig, dump_yaml, load_config, read_yaml
from tagmask.errors import DataError
from tagmask.evaluate.stamp import difference
from tagmask.files import read_record, sweep, write_json, write_text

FORMAT = 3
"""Number of the format of run folders and of their model/. It rises with every change that older code cannot read."""

MODEL_FILES = ("README.md", "classes.json", "config.yaml", "weights.safetensors")
"""Files of a trained model."""
LOGGED = ("lr", "images_per_second", "seconds", "data_share")
"""Numbers in the log's record of a step, besides its losses."""


class RunFolder:
    """Files of one run. Reading raises DataError that names the missing file and the command that writes it.

    A folder that holds a model itself, such as ``model/``, is a run of nothing but this.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.stages_file = self.path / "stages.yaml"
        self.environment_file = self.path / "environment.json"
        self.fingerprint_file = self.path / "fingerprint.json"
        self.data_file = self.path / "data.json"
        self.log_file = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path if (self.path / MODEL_FILES[-1]).is_file() else self.path / "model"
        self.masks = self.path / "masks"
        self.metrics_file = self.path / "metrics.json"
        self.report_file = self.path / "report.html"

    @property
    def trained(self) -> bool:
        """Whether a training ended: its model is there, whose card is the last file that it writes."""
        return all((self.model / name).is_file() for name in MODEL_FILES)

    @property
    def last(self) -> RunFolder:
        """The folder whose segmenter counts: that of stage 'segmenter' once it is trained, else this one."""
        part = RunFolder(self.path / "segmenter")
        return part if part.trained else self

    def create(self, config: RunConfig) -> None:
        """Make the folder, clear what a killed process left, and save the resolved configuration and the environment.

        Nobody else may write there meanwhile.
        """
        for place in (self.path, self.checkpoints, self.model):
            sweep(place, older=0)
        self.save(config)
        write_json(self.environment_file, environment())

    def save(self, config: RunConfig) -> None:
        """Save the configuration, its stages in a file of their own: unlike the rest they may change later."""
        write_text(self.config_file, dump_yaml(config.model_copy(update={"stages": None})))
        if config.stages is None:
            self.stages_file.unlink(missing_ok=True)
        else:
            write_text(self.stages_file, dump_yaml(config.stages))

    def config(self) -> RunConfig:
        """The run's resolved configuration, with its stages."""
        if not self.config_file.is_file():
            raise DataError(f"{self.path}: not a run folder (no config.yaml). 'tagmask train' makes one.")
        stages = {"stages": read_yaml(self.stages_file)} if self.stages_file.is_file() else {}
        return load_config(self.config_file, stages)

    def log(self) -> list[dict[str, Any]]:
        """The records of ``log.jsonl``, oldest first; a line that a crash cut short or damaged is left out."""
        if not self.log_file.is_file():
            return []
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return [record for line in lines if (record := _record(line)) is not None]

    def metrics(self) -> dict[str, Any]:
        """The scores written so far: ``{"scores": [...], "classification": {...}}``."""
        return read_record(self.metrics_file) if self.metrics_file.is_file() else {"scores": []}

    def scores(self) -> list[dict[str, Any]]:
        """The scores of the run, and of its last segmenter."""
        last = self.last
        return self.metrics()["scores"] + (last.metrics()["scores"] if last is not self else [])

    def enter(self, kind: str, split: str, found: dict[str, Any]) -> None:
        """Enter what there is one of for each split into metrics.json: 'classification', 'localization', 'spread'."""
        metrics = self.metrics()
        metrics[kind] = metrics.get(kind, {}) | {split: found}
        write_json(self.metrics_file, metrics)

    def add_score(self, score: dict[str, Any]) -> None:
        """Enter a score; it replaces one of the same name and way to score, of whichever photos and version."""
        metrics = self.metrics()

        def other(old: dict[str, Any]) -> bool:
            differs = difference(old["stamp"], score["stamp"], but=("version", "ids", "images"))
            return old["name"] != score["name"] or bool(differs)

        metrics["scores"] = [*filter(other, metrics["scores"]), score]
        write_json(self.metrics_file, metrics)


def _record(line: str) -> dict[str, Any] | None:
    """A line of the log, of a step, of scores or of a lost training; None for anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    kind = next((kind for kind in ("scores", "lost") if kind in record), "losses")
    if not isinstance(record.get(kind), dict):
        return None
    numbers = [*record[kind].values(), *(record.get(key) for key in LOGGED if kind == "losses")]
    return record if all(isinstance(number, int | float) for number in numbers) else None


def check_format(path: Path, found: dict[str, Any]) -> None:
    """Raise DataError for a file of a run that another format's tagmask wrote."""
    if found.get("format") != FORMAT:
        raise DataError(
            f"{path}: written in format {found.get('format')}, and this tagmask reads format {FORMAT}. Use the tagmask "
            "that wrote it, or train again."
        )


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    names = ["tagmask", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow", "pydantic"]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: version(name) for name in names},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:(.*)", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1].strip() if found else platform.processor()
