"""Staged runs: classifier → confident labels → affinity network → walked masks → segmenter, in one run folder.

Each stage has its own folder in the run's: ``seeds/``, ``affinity/`` (a run folder), ``masks/``, ``segmenter/`` (a run
folder). With stage 'rounds' these are the last round's, and ``round1/`` has the ``masks`` and ``segmenter`` of the
first. What a stage finds there it keeps, so a run that was killed is resumed where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from rich.console import Console

from tagmask.config import LabelConfig, RunConfig, load_config, merge, read_yaml
from tagmask.data import Item
from tagmask.encoders.saliency import open_saliency
from tagmask.encoders.weights import same_network
from tagmask.errors import ConfigError
from tagmask.files import read_record, write_json
from tagmask.label import Inference, Labelled, LabelWriter
from tagmask.label.look import MaskPass
from tagmask.label.share import kind
from tagmask.methods import Method, build_method, default_method
from tagmask.methods.common.walk_base import WalkMethod
from tagmask.refine import DenseCRF
from tagmask.registry import METHODS
from tagmask.stage_config import CLASSIFIER, NetworkStage
from tagmask.training import RunFolder
from tagmask.workflow.label import mask_writer
from tagmask.workflow.opened import Run, heard
from tagmask.workflow.stage_labels import ConfidentLabels, WalkedMasks, kept_classes, of_tagged
from tagmask.workflow.stamp import in_force, settled
from tagmask.workflow.train import check_schedule, resumed, train


def learns_from(config: RunConfig) -> dict[str, str]:
    """What the stages train, as folders in the run's, in their order, with the folders of the labels that they learn.

    With stage 'rounds' each round has a folder of its own; only the last segmenter lies where a single one does.
    """
    stages = config.stages
    if stages is None:
        return {}
    found = {"affinity": "seeds"} if stages.affinity is not None else {}
    if stages.segmenter is not None and stages.rounds is None:
        found["segmenter"] = "masks"
    elif stages.rounds is not None:
        last = stages.rounds.count
        for number in range(1, last + 1):
            found["segmenter" if number == last else f"round{number}/segmenter"] = f"round{number}/masks"
    return found


class Stages:
    """The stages of a run besides its classifier. Raises ConfigError and WeightsError for what would fail later."""

    def __init__(self, run: Run) -> None:
        self.run = run
        if run.config.guides.saliency is not None:
            open_saliency(run.config.guides.saliency, run.config.encoder.weights_dir)
        self._open()

    def _open(self) -> None:
        self.after_training = self.run.trained
        self.labels = learns_from(self.run.config)
        self.configs = stage_configs(self.run.config, self.run.folder)
        self.parts = {name: self.run.part(name, config) for name, config in self.configs.items()}
        for name, part in self.parts.items():
            learned = part.folder.config().data.train_masks if part.begun else None
            if learned is None:
                continue
            place = Path(*learned.parts[-2:]) if learned.parent.name.startswith("round") else Path(learned.name)
            if place != Path(self.labels[name]):
                raise ConfigError(
                    f"{part.folder.path}: learned from {place}; stages.rounds now asks for {self.labels[name]}. "
                    "Leave stages.rounds as it was, or use another folder (--out)."
                )

    @property
    def segmenters(self) -> list[str]:
        """Names of the segmenters, one a round."""
        return [name for name in self.configs if name != "affinity"]

    @property
    def first_masks(self) -> str:
        """Folder, in the run's, of the masks of stage 'masks'."""
        return self.labels[self.segmenters[0]] if self.segmenters else "masks"

    def part(self, name: str) -> Run:
        """The run of what a stage trains, by its name in ``learns_from``."""
        if self.run.trained != self.after_training:  # there is a classifier now, whose encoder it may start from
            self._open()
        return self.parts[name]

    @property
    def last(self) -> Run:
        """The run whose segmenter counts: that of stage 'segmenter', or else the run itself."""
        return self.part("segmenter") if "segmenter" in self.configs else self.run

    def networks(self) -> Iterator[tuple[str, Method]]:
        """The run's and its stages' networks that are not trained yet, with their weights, one after the other.

        To be gone through before the first training: what cannot be had, or does not fit, is said then and not hours
        later.
        """
        if not self.run.trained:
            yield "classifier", self.run.untrained
        for name, part in self.parts.items():
            if not part.trained:
                yield name, build_method(part.config, len(self.run.collection.classes))

    def seeds(self, console: Console | None = None) -> dict[str, Any]:
        """Stage 'cams': confident labels of the training photos, in seeds/."""
        return written(self._shared("seeds", self.seeds_pass(), console), console)

    def seeds_pass(self) -> MaskPass:
        """The pass of ``seeds``."""
        run, stages = self.run, self.run.config.stages
        assert stages is not None and stages.cams is not None
        note = self._note("cams", {"cams", "guided"}, stages.cams.model_dump(mode="json"))
        labels = of_tagged(ConfidentLabels(stages.cams), run.collection.classes)
        folder, soft = run.folder.path / "seeds", stages.cams.soft
        writer = LabelWriter(folder, self._items(), run.collection.classes, note, labels, soft=soft)
        return MaskPass(run.inference, writer, "seeds", "cams")

    def masks(self, console: Console | None = None) -> dict[str, Any]:
        """Stage 'masks' in a pass of its own."""
        return written(self._shared("masks", self.masks_pass(), console), console)

    def masks_pass(self) -> MaskPass:
        """The pass of ``masks``."""
        writer, inference = self.mask_writer(), self.run.inference
        segments = self.run.config.stages.masks.source == "segmenter"  # type: ignore[union-attr]
        segments = segments and inference.source == "segmenter"
        return MaskPass(inference, writer, "masks", "logits" if segments else "cams")

    def mask_writer(self) -> LabelWriter:
        """Stage 'masks': writes the walked or refined masks of the training photos."""
        run, stages = self.run, self.run.config.stages
        assert stages is not None and stages.masks is not None
        folder = run.folder.path / self.first_masks
        if stages.masks.source == "segmenter":
            return mask_writer(run, self._items(), folder)
        settings = stages.masks.model_dump(mode="json", exclude={"threshold", "source"})
        outputs = {"cams", "guided"}
        walker = None
        if "affinity" in self.configs:
            affinity = self.part("affinity")
            walker = affinity.method
            digest = affinity.model_note["digest"]
            walk = walk_settings(affinity.config, stages.masks.walk)
            settings |= {"affinity": affinity.config.method.name, "model": digest, "walk": walk}
        else:
            outputs |= {"background", "refined"}
        maker = mask_maker(run.config, run.inference, walker, self.configs.get("affinity"))
        note = self._note("masks", outputs, settings, maker.inference.config)
        labels = of_tagged(maker, run.collection.classes)
        return LabelWriter(folder, self._items(), run.collection.classes, note, labels, soft=stages.masks.soft)

    def round(self, number: int, console: Console | None = None) -> dict[str, Any]:
        """Round ``number`` of stage 'rounds', from 1 on: masks by the segmenter before (from the second on), and a
        segmenter that learns from them."""
        name = self.segmenters[number - 1]
        if number > 1:
            self._shared("round", self.round_pass(number), console, number=number)
        return self.train(name, console)

    def round_pass(self, number: int) -> MaskPass:
        """The pass of round ``number``, from 2 on: masks by the segmenter before."""
        folder = self.run.folder.path / self.labels[self.segmenters[number - 1]]
        return self._masks_by(self.segmenters[number - 2], self._items(), folder)

    def final_masks(self, console: Console | None = None) -> Labelled:
        """Masks of all tagged photos by the last segmenter of stage 'rounds', in masks/."""
        return self._shared("final masks", self.final_pass(), console)

    def final_pass(self) -> MaskPass:
        """The pass of ``final_masks``."""
        listed = [item for split in ("train", "val") for item in self.run.collection.listed(split)]
        tagged = [item for item in listed if item.tags is not None]
        return self._masks_by(self.segmenters[-1], tagged, self.run.folder.masks)

    def _masks_by(self, name: str, items: list[Item], folder: Path) -> MaskPass:
        """Masks of tagged photos by a segmenter.

        A tagged class that it finds nowhere keeps its pixels in the masks that it learned from.
        """
        part = self.part(name)
        note = folder / "classes.json"
        stale = note.is_file() and read_record(note).get("model") != part.model_note["digest"]
        writer = mask_writer(part, items, folder, overwrite=stale and folder == self.run.folder.masks)
        writer.make = kept_classes(writer.make, self.run.folder.path / self.labels[name])
        return MaskPass(part.inference, writer, folder.name, "logits")

    def _shared(self, name: str, work: MaskPass, console: Console | None, **about: Any) -> Labelled:
        work.console = console
        work.make(name, {**self.run.said(), **about})
        return work.writer.finish()

    def train(self, name: str, console: Console | None = None) -> dict[str, Any]:
        """Train a network of ``learns_from`` on its labels."""
        run, part = self.run, self.part(name)
        config = part.config
        labels = read_record(run.folder.path / self.labels[name] / "classes.json")
        made_from = {
            "labels": hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()[:12],
            "photos": run.collection.split_hash("train"),
        }
        note = part.folder.path / "stage.json"
        before = read_record(note) if note.is_file() else made_from
        if other := " and ".join(what for what in before if before[what] != made_from[what]):
            raise ConfigError(
                f"{part.folder.path}: was trained on other {other} than there are now; delete it to train again."
            )
        if part.begun:
            wanted = config.model_dump(mode="json")
            # Where labels and classifier lie is written as the user wrote the run folder, which may differ.
            saved = part.folder.config()
            wanted["data"]["train_masks"] = str(saved.data.train_masks)
            if (
                config.encoder.weights == str(run.folder.model)
                and Path(saved.encoder.weights).name == run.folder.model.name
            ):
                wanted["encoder"]["weights"] = saved.encoder.weights
            resumed(part.folder, [wanted], {}, [])
        part.save_data()
        write_json(note, made_from)
        if console is not None and not part.trained:
            console.print(f"{name}: {config.method.name} on {config.encoder.name}, {config.train.steps} steps")
        train(part, resume=True, console=console)
        return {"run": str(part.folder.path), "model": str(part.folder.model)}

    def _items(self) -> list[Item]:
        return self.run.collection.split("train")

    def _note(
        self, stage: str, outputs: set[str], settings: dict[str, Any], label: LabelConfig | None = None
    ) -> dict[str, Any]:
        """Everything that decides a stage's labels, kept beside them as classes.json."""
        config = settled(self.run)
        config = config if label is None else config.model_copy(update={"label": label})
        return {
            "tags": True,
            "source": "cam",
            "settings": in_force(config, outputs),
            "model": self.run.model_note["digest"],
            "stage": {"name": stage, **settings},
        }


@kind("seeds")
def _help_seeds(about: Mapping[str, Any]) -> MaskPass:
    return Stages(heard(about)).seeds_pass()


@kind("masks")
def _help_masks(about: Mapping[str, Any]) -> MaskPass:
    return Stages(heard(about)).masks_pass()


@kind("round")
def _help_round(about: Mapping[str, Any]) -> MaskPass:
    return Stages(heard(about)).round_pass(about["number"])


@kind("final masks")
def _help_final(about: Mapping[str, Any]) -> MaskPass:
    return Stages(heard(about)).final_pass()


def stage_configs(config: RunConfig, folder: RunFolder) -> dict[str, RunConfig]:
    """Configurations of the stages that train, by name. Raises ConfigError for what would fail only hours later."""
    stages = config.stages
    if stages is None:
        return {}
    kind = METHODS.get(config.method.name)
    if not kind.has_cams:
        raise ConfigError(f"stages: method '{config.method.name}' has no CAMs for the stages to start from.")
    if kind.reads_masks:
        raise ConfigError(f"stages: method '{config.method.name}' learns from masks; stages start from tags.")
    if config.train.devices != 1 or config.train.nodes != 1:
        raise ConfigError(
            "stages train in one process: set train.devices=1. To train the classifier on several, 'tagmask train' it "
            "first, and go on with 'tagmask run --resume train.devices=1 stages=...'."
        )
    if stages.masks is not None and stages.masks.source == "segmenter" and not kind.has_segmenter:
        raise ConfigError(f"stages.masks.source=segmenter: method '{config.method.name}' has none; use cams.")
    for stage in (stages.cams, stages.masks):
        if stage is not None and stage.crf != "none":
            DenseCRF.preset(stage.crf)
    configs = {name: network_config(config, name, folder) for name in learns_from(config)}
    for name, own in configs.items():
        try:
            check_schedule(own)
        except ConfigError as error:
            key = f"stages.{Path(name).name}.train.steps={own.train.steps}"
            raise ConfigError(f"Stage '{name}' ({key}): {error}") from error
    if stages.masks is not None and stages.masks.walk:
        if "affinity" not in configs:
            raise ConfigError("stages.masks.walk: there is no stage 'affinity' to walk over.")
        walk_settings(configs["affinity"], stages.masks.walk)
    if stages.masks is not None and stages.masks.threshold is not None and "affinity" in configs:
        raise ConfigError(
            "stages.masks.threshold is of CAMs that are refined, but with stage 'affinity' they walk; leave one of "
            "the two out. A walk's own background is in stages.masks.walk."
        )
    return configs


def network_config(config: RunConfig, name: str, folder: RunFolder) -> RunConfig:
    """The whole configuration of what stage 'affinity' or 'segmenter' trains: the run's own, under what it sets.

    name: as in ``learns_from``. Another encoder than the run's starts from that encoder's defaults. Its labels are
    always those of the stage before, never the data's own masks. Raises ConfigError for a method that does not do the
    stage's work.
    """
    place, name = name, Path(name).name
    stage: NetworkStage = getattr(config.stages, name)
    base = config.model_dump(mode="json", exclude={"stages", "method"})
    base["label"]["source"] = LabelConfig.model_fields["source"].default
    del base["train"]["watch"]  # names maps of the run's own method
    del base["views"]["square"], base["label"]["square"]  # of the classifier's CAMs; stages work on the photos' shape
    sections = stage.model_dump(mode="json", exclude={"configs"})
    own: dict[str, Any] = reduce(merge, [*(read_yaml(c) for c in stage.configs), sections], {})
    encoder = own.get("encoder") or {}
    if not same_network(encoder.get("name", config.encoder.name), config.encoder.name):
        kept = {"weights_dir": base["encoder"]["weights_dir"]}
        base["encoder"] = kept | ({"weights": "none"} if config.encoder.weights == "none" else {})
    own["method"] = {"name": default_method(name)} | (own.get("method") or {})
    if encoder.get("weights") == CLASSIFIER and METHODS.get(config.method.name).reads_classes:
        raise ConfigError(
            f"stages.{name}.encoder.weights={CLASSIFIER}: method '{config.method.name}' leaves its encoder as it was "
            f"pretrained; set stages.{name}.encoder.weights=auto."
        )
    if encoder.get("weights") == CLASSIFIER:
        classifier = (config.encoder.name, config.encoder.layout)
        design = (encoder.get("name", classifier[0]), encoder.get("layout", classifier[1]))
        if not same_network(design[0], classifier[0]) or design[1] != classifier[1]:
            raise ConfigError(
                f"stages.{name}.encoder.weights={CLASSIFIER}, but its encoder is '{design[0]}' of layout '{design[1]}' "
                f"and the classifier's '{classifier[0]}' of layout '{classifier[1]}'; set "
                f"stages.{name}.encoder.weights=auto, or to a checkpoint of that encoder."
            )
        # Until there is a classifier, what it starts from: no stage is trained before, only built to be looked at.
        trained = Run(folder.path).trained
        encoder["weights"] = str(folder.model) if trained else config.encoder.weights
    _check_method(name, own["method"]["name"])
    data = base["data"] | {"train_masks": str(folder.path / learns_from(config)[place])}
    data["seed"] = config.seed if data["seed"] is None else data["seed"]
    return load_config(base, own, {"data": data, "stages": None})


def _check_method(stage: str, name: str) -> None:
    """Raise ConfigError for a method that does not do the stage's work; it names those that do."""
    work = {"affinity": "learns no affinities", "segmenter": "trains no segmenter on masks"}

    def fits(other: str) -> bool:
        kind = METHODS.get(other)
        return issubclass(kind, WalkMethod) if stage == "affinity" else kind.reads_masks and kind.has_segmenter

    if not fits(name):
        fitting = " or ".join(other for other in METHODS.names() if fits(other))
        raise ConfigError(f"stages.{stage}.method.name is '{name}', which {work[stage]}; use {fitting}.")


def walk_settings(config: RunConfig, changed: dict[str, Any]) -> dict[str, Any]:
    """How the masks walk: the affinity method's settings for it, under ``stages.masks.walk``. Raises ConfigError."""
    own = config.method.walk()  # type: ignore[attr-defined]
    for key in changed:
        if key not in own:
            raise ConfigError(
                f"stages.masks.walk.{key}: no setting of the walk of '{config.method.name}'; it has "
                f"{', '.join(own)}. Others belong to stages.affinity.method."
            )
    return load_config({"method": config.method.model_dump(mode="json") | changed}).method.walk()  # type: ignore[attr-defined]


def mask_maker(
    config: RunConfig, inference: Inference, walker: Method | None, affinity: RunConfig | None
) -> WalkedMasks:
    """What makes the masks of stage 'masks'.

    inference: of the classifier. walker: the network of stage 'affinity' and affinity that stage's configuration; None
    where there is no such stage.
    """
    assert config.stages is not None and config.stages.masks is not None
    stage = config.stages.masks
    if walker is not None and affinity is not None:
        walker.config = walker.config.model_copy(update=walk_settings(affinity, stage.walk))
    if stage.threshold is not None:
        label = config.label.model_copy(update={"threshold": stage.threshold, "threshold_from": "fixed"})
        inference = Inference(inference.method, config.model_copy(update={"label": label}))
    return WalkedMasks(inference, stage, walker)  # type: ignore[arg-type]


def written(made: Labelled, console: Console | None) -> dict[str, Any]:
    """Print what a stage wrote and which photos it left out; gives its summary with the bytes."""
    size = sum(p.stat().st_size for p in made.folder.rglob("*") if p.is_file())
    if console is not None:
        text = f"{made.folder}: {made.written} written, {made.skipped} there already"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        for _, why in made.failed:
            console.print(f"left out: {why}", style="red", markup=False, highlight=False, soft_wrap=True)
    return made.summary() | {"bytes": size}
