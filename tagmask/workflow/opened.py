"""A run that is opened once: its folder, configuration, data and method, each made when it is first asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from tagmask.config import RunConfig, load_config, validate
from tagmask.data import Collection, Item, clean, fingerprint, look_at, open_data
from tagmask.data.collection import hash_items
from tagmask.data.review import JOURNAL, SNAPSHOT
from tagmask.errors import ConfigError, DataError
from tagmask.files import read_record, write_json
from tagmask.label import Inference
from tagmask.label.share import Blocks, kind, led, share
from tagmask.lock import alone
from tagmask.methods import Method, build_method
from tagmask.strict import differing
from tagmask.training import RunFolder, load_model, make_fabric
from tagmask.training.folder import FORMAT, check_format

T = TypeVar("T")


class Run:
    """A run folder and what belongs to it. Each part is made when it is first asked for, and kept.

    config: the resolved configuration; default: that of the folder. Every verb takes a Run or the path of its folder.
    """

    def __init__(self, path: str | Path, config: RunConfig | None = None) -> None:
        self.folder = RunFolder(path)
        if config is not None:
            self.config = config

    @cached_property
    def config(self) -> RunConfig:
        """The resolved configuration, from config.yaml."""
        return self.folder.config()

    @cached_property
    def collection(self) -> Collection:
        """The data with the classes and splits that the run was trained on, whatever was added to its folder since.

        Raises DataError when the folder holds no run, the classes have changed or photos of a split are gone.
        """
        config = self.config
        if not self.folder.data_file.is_file():
            if self.folder.model == self.folder.path:
                raise DataError(
                    f"{self.folder.path}: a model without its run, so without photos. Give the run's folder."
                )
            raise DataError(
                f"{self.folder.data_file}: missing; it says which photos the run was trained on. Train again."
            )
        frozen = read_record(self.folder.data_file)
        check_format(self.folder.data_file, frozen)
        data = config.data.model_copy(update={"reviewed": self.learned_review})
        collection = open_collection(config.model_copy(update={"data": data}))
        if collection.classes != frozen["classes"]:
            raise DataError(
                f"{collection.root}: the classes are now {', '.join(collection.classes)}; the run was trained on "
                f"{', '.join(frozen['classes'])}. Restore the tags, or set data.classes."
            )
        collection = clean(collection, self.fingerprint)
        there = {item.id for item in collection.items}
        gone = [name for ids in frozen["splits"].values() for name in ids if name not in there]
        if gone:
            raise DataError(f"{collection.root}: {len(gone)} photos of the run are gone ('{gone[0]}' is the first).")
        return replace(collection, splits=frozen["splits"])

    @property
    def learned_review(self) -> Path | None:
        """Folder of the review that the run learned from: that in its own folder, or in that of the run whose stage it
        is, wherever it was when the run began. None where there was none."""
        given, place = self.config.data.reviewed, self.folder.path.resolve()
        if given is None:
            return None
        places = (folder / SNAPSHOT for folder in [place, *place.parents][:3])
        return next((own for own in places if (own / JOURNAL).is_file()), given)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What ``check`` found in the data, from fingerprint.json."""
        return read_record(self.folder.fingerprint_file)

    @cached_property
    def untrained(self) -> Method:
        """The method as training starts from it, with its pretrained weights. Raises ConfigError and WeightsError."""
        torch.manual_seed(self.config.seed)
        return build_method(self.config, len(self.collection.classes))

    @cached_property
    def method(self) -> Method:
        """The trained method, from model/, on the first device that training would use."""
        return load_model(self.folder.model, default_device(self.config), self.config)[0]

    @cached_property
    def inference(self) -> Inference:
        """The trained method with the settings of ``label``."""
        return Inference(self.method, self.config)

    @cached_property
    def model_note(self) -> dict[str, Any]:
        """model/classes.json: class names, digest of the weights, where they come from."""
        return read_record(self.folder.model / "classes.json")

    def begin(self, resume: bool = False, save: bool = True) -> None:
        """Open the data, look at every file once, leave unreadable ones out, and freeze classes and splits.

        save: in the folder, as fingerprint.json and data.json. resume: a run that has begun keeps what is saved, and
        photos that came later take no part. Raises DataError when the folder lies among the photos: its masks would be
        taken for photos the next time.
        """
        if "collection" in self.__dict__:
            return
        if resume and self.begun:
            self._check_data()
            return
        collection = open_collection(self.config)
        if save and self.folder.path.resolve().is_relative_to(collection.root.resolve()):
            raise DataError(
                f"{self.folder.path}: lies in the data's folder {collection.root}; write the run elsewhere (--out)."
            )
        self.fingerprint = shared_fingerprint(collection, self.config)
        self.collection = clean(collection, self.fingerprint)
        if save:
            self.save_data()

    def save_data(self) -> None:
        """Freeze classes and splits in the folder, beside the fingerprint."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        write_json(self.folder.fingerprint_file, self.fingerprint)
        collection = self.collection
        frozen = {
            "format": FORMAT,
            "classes": collection.classes,
            "splits": collection.splits,
            "digest": split_digest(collection),
        }
        write_json(self.folder.data_file, frozen)

    def _check_data(self) -> None:
        """Raise DataError when the tags or photos of the splits are not those that the run began with."""
        collection = self.collection
        if read_record(self.folder.data_file)["digest"] != split_digest(collection):
            raise DataError(
                f"{collection.root}: tags or photos of {self.folder.path} have changed since it began (their digest is "
                f"in {self.folder.data_file.name}). Restore them, or train into another folder (--out)."
            )

    @property
    def begun(self) -> bool:
        """Whether a training began in the folder."""
        return self.folder.config_file.is_file()

    @property
    def trained(self) -> bool:
        """Whether a training ended."""
        return self.folder.trained

    @property
    def last(self) -> Run:
        """The run whose segmenter counts: that of stage 'segmenter' once it is trained, else this one."""
        last = self.folder.last.path
        return self if last == self.folder.path else Run(last)

    @contextmanager
    def alone(self, out: str | Path | None = None) -> Iterator[Run]:
        """For a verb that writes into the folder, or into ``out`` instead: nobody else does while the block runs."""
        self.config  # noqa: B018 (says that this is no run before anything is written there)
        with alone(self.folder.path if out is None else Path(out)):
            yield self

    def led(self, verb: str, lead: Callable[[bool], T], out: str | Path | None = None, **what: Any) -> T:
        """``alone`` for a verb whose passes processes share: the result of ``lead`` (see ``tagmask.label.share.led``).

        what: arguments that decide what is done, as JSON, besides the run and its settings.
        """
        work = {"verb": verb, **what, **self.said()}
        return led(self.folder.path if out is None else Path(out), work, lead)

    def said(self) -> dict[str, Any]:
        """The run as JSON, of which another process makes it (``heard``)."""
        return {"run": str(self.folder.path.resolve()), "config": self.config.model_dump(mode="json")}

    def part(self, name: str, config: RunConfig) -> Run:
        """The run of one of this run's stages, in a folder of its own, on the same data."""
        other = Run(self.folder.path / name, config)
        other.collection, other.fingerprint = self.collection, self.fingerprint
        return other

    def using(self, overrides: Sequence[str]) -> Run:
        """This run with other settings of use; what they leave as it is stays opened.

        Raises ConfigError for an override of what training has decided.
        """
        config = load_config(self.config.model_dump(mode="json"), overrides=overrides)
        decided = differing(self.config, config, lambda role: not role.used)
        if decided:
            raise ConfigError(
                f"{decided[0]} was decided when {self.folder.path} was trained; it cannot be overridden now."
            )
        other = Run(self.folder.path, config)
        if config.data == self.config.data:
            self._share(other, "collection", "fingerprint")
        if config.method == self.config.method and config.train == self.config.train:
            self._share(other, "method", "model_note")
        return other

    def _share(self, other: Run, *names: str) -> None:
        """Hand on the parts that are made already."""
        other.__dict__ |= {name: self.__dict__[name] for name in names if name in self.__dict__}


def opened(run: Run | str | Path, overrides: Sequence[str] = ()) -> Run:
    """A run by its path, or one that is open, with settings of use over its own."""
    run = run if isinstance(run, Run) else Run(run)
    return run.using(overrides) if overrides else run


def heard(about: Mapping[str, Any]) -> Run:
    """The run of which another process said this (``Run.said``); opened once for all passes over it."""
    return _heard(about["run"], json.dumps(about["config"]))


@lru_cache(maxsize=4)
def _heard(path: str, config: str) -> Run:
    return Run(path, validate(json.loads(config)))


def split_digest(collection: Collection) -> str:
    """12 hex digits of a hash of the splits' photos: ids, tags and sizes of files."""
    ids = {id for ids in collection.splits.values() for id in ids}
    return hash_items(collection.classes, map(collection.item, ids))[:12]


def open_collection(config: RunConfig) -> Collection:
    """The data that a configuration names, with its splits. Raises DataError."""
    return open_data(config.data, config.seed if config.data.seed is None else config.data.seed)


class CheckPass:
    """A look at every file of a collection, which processes share. looks: what it found, photo by photo."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.items: Sequence[Item] = collection.items
        self.looks: list[dict[str, Any]] = []

    def work(self, blocks: Blocks) -> int:
        """Look at the blocks that are free."""
        photos = 0
        for number, items in blocks.free():
            photos += len(items)
            blocks.finish(number, list(look_at(items, self.collection.colour_map)))
        return photos

    def merge(self, state: Any) -> None:
        """Take what was found in a block."""
        self.looks += state


def shared_fingerprint(collection: Collection, config: RunConfig) -> dict[str, Any]:
    """The ``fingerprint`` of a configuration's collection; processes share its photos."""
    found = CheckPass(collection)
    share("check", {"config": config.model_dump(mode="json")}, found)
    return fingerprint(collection, found.looks)


@kind("check")
def _helps(about: Mapping[str, Any]) -> CheckPass:
    return CheckPass(open_collection(validate(about["config"])))


def default_device(config: RunConfig) -> torch.device:
    """The first device that training would use; of GPUs the one of this process's number on its machine."""
    device = make_fabric(config.train.model_copy(update={"devices": 1, "nodes": 1, "strategy": "auto"})).device
    number = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
    if number is None or device.type != "cuda":
        return device
    return torch.device("cuda", int(number) % torch.cuda.device_count())
