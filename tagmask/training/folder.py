"""A run folder: the one place that knows which file of a run lies where."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tagmask.config import RunConfig, dump_yaml, load_config
from tagmask.errors import DataError
from tagmask.evaluate.protocol import Protocol


class RunFolder:
    """Files of one run. Reading raises DataError that names the missing file and the command that writes it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.environment_file = self.path / "environment.json"
        self.fingerprint_file = self.path / "fingerprint.json"
        self.data_file = self.path / "data.json"
        self.log_file = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.masks = self.path / "masks"
        self.metrics_file = self.path / "metrics.json"
        self.report_file = self.path / "report.html"

    def create(self, config: RunConfig) -> None:
        """Make the folder and save the resolved configuration and the environment."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config_file, dump_yaml(config))
        write_json(self.environment_file, environment())

    def config(self) -> RunConfig:
        """The run's resolved configuration."""
        if not self.config_file.is_file():
            raise DataError(f"{self.path}: not a run folder (no config.yaml). 'tagmask train' makes one.")
        return load_config(self.config_file)

    def log(self) -> list[dict[str, Any]]:
        """The records of ``log.jsonl``, oldest first; a line cut short by a crash is left out."""
        if not self.log_file.is_file():
            return []
        records = []
        for line in self.log_file.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):
                records.append(json.loads(line))
        return records

    def metrics(self) -> dict[str, Any]:
        """The scores written so far: ``{"scores": [...], "classification": {...}}``."""
        return read_json(self.metrics_file) if self.metrics_file.is_file() else {"scores": []}

    def add_score(self, score: dict[str, Any]) -> None:
        """Enter a score; an older one of the same name and protocol is replaced."""
        metrics = self.metrics()
        kept = [s for s in metrics["scores"] if not _alike(s, score)]
        metrics["scores"] = [*kept, score]
        write_json(self.metrics_file, metrics)


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two scores were made alike, as far as both say."""
    protocols = (Protocol(**score["protocol"]) for score in (one, other))
    return one["name"] == other["name"] and not next(protocols).differs(next(protocols), ("version", "split_hash"))


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    names = ["tagmask", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow", "pydantic"]
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": gpus,
        "versions": versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: a crash leaves the old one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """``write_text`` of readable JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file. Raises DataError when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON ({error}).") from error
