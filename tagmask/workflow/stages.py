"""Staged runs: classifier → confident labels → affinity network → walked masks → segmenter, in one run folder.

Each stage has its own folder in the run's: ``seeds/``, ``affinity/`` (a run folder), ``masks/``, ``segmenter/`` (a run
folder). What a stage finds there it keeps, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tagmask.config import LabelConfig, RunConfig, dump_yaml, load_config, merge, read_yaml
from tagmask.data import Collection
from tagmask.errors import ConfigError
from tagmask.label import Inference, Labelled, label_note
from tagmask.methods import Method, build_method
from tagmask.methods.common.walk_base import WalkMethod
from tagmask.refine import DenseCRF
from tagmask.registry import METHODS
from tagmask.stage_config import CLASSIFIER, METHOD, MasksStage, NetworkStage
from tagmask.training import RunFolder, load_model, read_json, write_json, write_text
from tagmask.workflow.clock import Clock
from tagmask.workflow.runs import default_device
from tagmask.workflow.stage_labels import ConfidentLabels, WalkedMasks, write_labels
from tagmask.workflow.train_run import check_schedule, is_trained, resumed, train

LEARNS_FROM = {"affinity": "seeds", "segmenter": "masks"}
"""Stages that train a network, and the folder of their labels."""
PNG_EXTRA = 1200
"""Bytes of a label PNG besides its pixels: palette, header, checksums."""


def network_config(config: RunConfig, name: str, folder: RunFolder) -> RunConfig:
    """The whole configuration of stage 'affinity' or 'segmenter': the run's own, under what the stage sets.

    Another encoder than the run's starts from that encoder's defaults. Its labels are always those of the stage
    before, never the data's own masks. Raises ConfigError for a method that does not do the stage's work.
    """
    stage: NetworkStage = getattr(config.stages, name)
    base = config.model_dump(mode="json", exclude={"stages", "method"})
    base["label"]["source"] = LabelConfig.model_fields["source"].default
    sections = stage.model_dump(mode="json", exclude={"configs"})
    own: dict[str, Any] = reduce(merge, [*(read_yaml(c) for c in stage.configs), sections], {})
    encoder = own.get("encoder") or {}
    if encoder.get("name", config.encoder.name) != config.encoder.name:
        kept = {"weights_dir": base["encoder"]["weights_dir"]}
        base["encoder"] = kept | ({"weights": "none"} if config.encoder.weights == "none" else {})
    own["method"] = {"name": METHOD[name]} | (own.get("method") or {})
    if encoder.get("weights") == CLASSIFIER:
        classifier = (config.encoder.name, config.encoder.layout)
        design = (encoder.get("name", classifier[0]), encoder.get("layout", classifier[1]))
        if design != classifier:
            raise ConfigError(
                f"stages.{name}.encoder.weights={CLASSIFIER}, but its encoder is '{design[0]}' of layout '{design[1]}' "
                f"and the classifier's '{classifier[0]}' of layout '{classifier[1]}'; set "
                f"stages.{name}.encoder.weights=auto, or to a checkpoint of that encoder."
            )
        # Until there is a classifier, what it starts from: no stage is trained before, only built to be looked at.
        encoder["weights"] = str(folder.model) if is_trained(folder) else config.encoder.weights
    kind = METHODS.get(own["method"]["name"])
    if name == "affinity" and not issubclass(kind, WalkMethod):
        raise ConfigError(
            f"stages.affinity.method.name is '{own['method']['name']}', which learns no affinities; "
            f"use {' or '.join(n for n in METHODS.names() if issubclass(METHODS.get(n), WalkMethod))}."
        )
    if name == "segmenter" and not (kind.reads_masks and kind.has_segmenter):
        raise ConfigError(f"stages.segmenter.method.name is '{own['method']['name']}'; only 'supervised' fits.")
    data = base["data"] | {"train_masks": str(folder.path / LEARNS_FROM[name])}
    data["seed"] = config.seed if data["seed"] is None else data["seed"]
    return load_config(base, own, {"data": data, "stages": None})


def check_stages(config: RunConfig, folder: RunFolder) -> dict[str, RunConfig]:
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
            "stages run in one process: set train.devices=1. To train the classifier on several, 'tagmask train' it "
            "first, and go on with 'tagmask run --resume train.devices=1 stages=...'."
        )
    for stage in (stages.cams, stages.masks):
        if stage is not None and stage.crf != "none":
            DenseCRF.preset(stage.crf)
    configs = {name: network_config(config, name, folder) for name in LEARNS_FROM if getattr(stages, name)}
    for name, own in configs.items():
        try:
            check_schedule(own)
        except ConfigError as error:
            raise ConfigError(f"Stage '{name}' (stages.{name}.train.steps={own.train.steps}): {error}") from error
    if stages.masks is not None and stages.masks.walk:
        if "affinity" not in configs:
            raise ConfigError("stages.masks.walk: there is no stage 'affinity' to walk over.")
        walk_settings(configs["affinity"], stages.masks)
    if stages.masks is not None and stages.masks.threshold is not None and "affinity" in configs:
        raise ConfigError(
            "stages.masks.threshold is of CAMs that are refined, but with stage 'affinity' they walk; leave one of "
            "the two out. A walk's own background is in stages.masks.walk."
        )
    return configs


def build_networks(config: RunConfig, folder: RunFolder, classes: int) -> None:
    """Build the networks of a run and its stages that are not trained yet, with their weights, and let them go again.

    To be called before the first training: what cannot be had, or does not fit, is said then and not hours later.
    """
    for name, own in {".": config, **check_stages(config, folder)}.items():
        if not is_trained(RunFolder(folder.path / name)):
            build_method(own, classes)


def walk_settings(config: RunConfig, stage: MasksStage) -> dict[str, Any]:
    """How the masks walk: the affinity method's fields for it, under ``stages.masks.walk``. Raises ConfigError."""
    fields = getattr(config.method, "walk_fields", ())
    for key in stage.walk:
        if key not in fields:
            raise ConfigError(
                f"stages.masks.walk.{key}: no setting of the walk of '{config.method.name}'; it has "
                f"{', '.join(fields)}. Others belong to stages.affinity.method."
            )
    changed = load_config({"method": config.method.model_dump(mode="json") | stage.walk}).method
    return {key: getattr(changed, key) for key in fields}


def mask_maker(config: RunConfig, classifier: Method, walker: Method | None, affinity: RunConfig | None) -> WalkedMasks:
    """What makes the masks of stage 'masks'. walker: the network of stage 'affinity' and affinity that stage's
    configuration; None where there is no such stage."""
    assert config.stages is not None and config.stages.masks is not None
    stage = config.stages.masks
    if walker is not None and affinity is not None:
        walker.config = walker.config.model_copy(update=walk_settings(affinity, stage))
    if stage.threshold is not None:
        config = config.model_copy(deep=True)
        config.label.threshold, config.label.threshold_from = stage.threshold, "fixed"
    return WalkedMasks(Inference(classifier, config), stage, walker)  # type: ignore[arg-type]


def run_stages(
    config: RunConfig,
    out: str | Path,
    prepared: tuple[Collection, dict[str, Any]],
    console: Console | None = None,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """All stages after the classifier, which is trained in ``out``. What is there already is kept.

    prepared: the run's data. clock: enters the minutes of each stage. Returns, by stage, what was written. Raises
    ConfigError where a stage's folder holds what other settings or another model made.
    """
    folder, stages = RunFolder(out), config.stages
    configs = check_stages(config, folder)
    if stages is None:
        return {}
    collection = prepared[0]
    items = collection.split("train")
    device = default_device(config)
    inference = Inference(load_model(folder.model, device)[0], config)
    timed = clock or Clock()
    done: dict[str, Any] = {}
    if stages.cams is not None:
        with timed("cams"):
            note = _note(inference.config, collection, folder, "cams", stages.cams.model_dump(mode="json"))
            make = ConfidentLabels(inference, stages.cams)
            place = folder.path / "seeds"
            made = write_labels(place, items, collection.classes, make, note, stages.cams.soft, console)
            done["cams"] = _shown(made, console)
    if stages.affinity is not None:
        with timed("affinity"):
            done["affinity"] = _train(configs["affinity"], folder, "affinity", prepared, console)
    if stages.masks is not None:
        with timed("masks"):
            settings = stages.masks.model_dump(mode="json", exclude={"threshold"})
            walker = None
            if stages.affinity is not None:
                network = RunFolder(folder.path / "affinity")
                walker, _, _ = load_model(network.model, device)
                digest = read_json(network.model / "classes.json")["digest"]
                walk = walk_settings(configs["affinity"], stages.masks)
                settings |= {"affinity": configs["affinity"].method.name, "model": digest, "walk": walk}
            make_masks = mask_maker(config, inference.method, walker, configs.get("affinity"))
            note = _note(make_masks.inference.config, collection, folder, "masks", settings)
            made = write_labels(folder.masks, items, collection.classes, make_masks, note, stages.masks.soft, console)
            done["masks"] = _shown(made, console)
    if stages.segmenter is not None:
        with timed("segmenter"):
            done["segmenter"] = _train(configs["segmenter"], folder, "segmenter", prepared, console)
    return done


def save_stages(folder: RunFolder, config: RunConfig) -> None:
    """Keep the stages beside the run's own configuration, as stages.yaml: unlike that they may still change."""
    path = folder.path / "stages.yaml"
    if config.stages is None:
        path.unlink(missing_ok=True)
    else:
        write_text(path, dump_yaml(config.stages))


def saved_stages(folder: RunFolder) -> list[dict[str, Any]]:
    """What ``save_stages`` kept, to be merged under what the user says now; nothing for a run without stages."""
    path = folder.path / "stages.yaml"
    return [{"stages": read_yaml(path)}] if path.is_file() else []


def _note(label: LabelConfig, collection: Collection, folder: RunFolder, stage: str, settings: dict) -> dict[str, Any]:
    """Everything that decides a stage's labels, beside them as classes.json."""
    return {
        "classes": ["background", *collection.classes],
        "ignore": 255,
        "tags_used": True,
        "source": "cam",
        "label": label_note(label, completed=False),
        "model": read_json(folder.model / "classes.json")["digest"],
        "stage": {"name": stage, **settings},
    }


def _train(
    config: RunConfig,
    folder: RunFolder,
    name: str,
    prepared: tuple[Collection, dict[str, Any]],
    console: Console | None,
) -> dict[str, Any]:
    own = RunFolder(folder.path / name)
    labels = read_json(folder.path / LEARNS_FROM[name] / "classes.json")
    collection, found = prepared
    made_from = {
        "labels": hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()[:12],
        "photos": collection.split_hash("train"),
    }
    note = own.path / "stage.json"
    before = read_json(note) if note.is_file() else made_from
    # Earlier versions did not write the photos down.
    if differing := " and ".join(what for what in before if before[what] != made_from[what]):
        raise ConfigError(f"{own.path}: was trained on other {differing} than there are now; delete it to train again.")
    if own.config_file.is_file():
        wanted = config.model_dump(mode="json")
        # Where labels and classifier lie is written as the user wrote the run folder, which may differ.
        saved = own.config()
        wanted["data"]["train_masks"] = str(saved.data.train_masks)
        if config.encoder.weights == str(folder.model) and Path(saved.encoder.weights).name == folder.model.name:
            wanted["encoder"]["weights"] = saved.encoder.weights
        resumed(own, [wanted], {}, [])
    own.path.mkdir(parents=True, exist_ok=True)
    write_json(note, made_from)
    write_json(own.fingerprint_file, found)
    write_json(own.data_file, {"classes": collection.classes, "splits": collection.splits})
    if console is not None and not is_trained(own):
        console.print(f"{name}: {config.method.name} on {config.encoder.name}, {config.train.steps} steps")
    train(config, own.path, resume=True, prepared=prepared, console=console)
    return {"run": str(own.path), "model": str(own.model)}


def _shown(made: Labelled, console: Console | None) -> dict[str, Any]:
    size = sum(p.stat().st_size for p in made.folder.rglob("*") if p.is_file())
    if console is not None:
        text = f"{made.folder}: {made.written} written, {made.skipped} there already, {human(size)}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        for _, why in made.failed:
            console.print(f"left out: {why}", style="red", markup=False, highlight=False, soft_wrap=True)
    return made.summary() | {"bytes": size}


def disk_plan(config: RunConfig, folder: RunFolder, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Disk that each stage takes at most, as {stage, makes, where, bytes, less}: bytes an image × training images.

    Label PNGs are counted uncompressed, soft maps before compression, networks by their parameters: model and
    checkpoints with the optimiser's state, with the one that is being written before the oldest goes. less: settings
    that lower it, None where there are none. found: the data's fingerprint, for the number of photos and their sizes.
    An image stands for the mean of the data set's.
    """
    stages = config.stages
    if stages is None:
        return []
    images = found["splits"].get("train", {}).get("labelled", found["counts"]["labelled"])
    sizes = found["sizes"]
    width, height = (sizes[side]["median"] if sizes else 0 for side in ("width", "height"))
    pixels, rows_of_one = (sizes["pixels"], sizes["height"]["max"]) if sizes else (0, 0)
    tags = sum(found["tags"].values()) / max(1, found["counts"]["labelled"])
    short = config.views.short_side or min(width, height)
    factor = min(1.0, short / max(1, min(width, height)), config.label.max_side / max(1, width, height))
    png = pixels + rows_of_one + PNG_EXTRA
    half = 2 * pixels * factor**2
    classes = len(found["classes"])
    configs = check_stages(config, folder)
    keep = "train.keep=1" if config.train.keep > 1 else None
    rows = [network_row("classifier", config, folder.path, classes) | {"less": keep}]
    for name in stages.named()[1:]:
        stage = getattr(stages, name)
        if name in configs:
            keep = f"stages.{name}.train.keep=1" if configs[name].train.keep > 1 else None
            rows.append(network_row(name, configs[name], folder.path / name, classes) | {"less": keep})
            continue
        where = folder.path / "seeds" if name == "cams" else folder.masks
        makes = f"{images} label maps of up to {human(png)}"
        each, less = png, f"stages.{name}.soft=false" if stage.soft else None
        if stage.soft:
            soft = half * (tags if name == "cams" else tags + 1)
            makes += f" and soft maps of up to {human(soft)}"
            each += soft
        rows.append({"stage": name, "makes": makes, "where": str(where), "bytes": round(each * images), "less": less})
    return rows


def network_row(name: str, config: RunConfig, where: Path, classes: int) -> dict[str, Any]:
    """Disk that a network takes at most in the run folder ``where``, as an entry of ``disk_plan``."""
    bare = config.model_copy(deep=True)
    bare.encoder.weights = "none"
    method = build_method(bare, classes)
    method.param_groups(config.train.lr, config.train.head_lr, config.train.freeze_norm)  # says what is trained
    sizes = {key: t.numel() * t.element_size() for key, t in method.state_dict().items()}
    weights = sum(sizes.values())
    model = sum(size for key, size in sizes.items() if key.partition(".")[0] not in method.training_only)
    trained = sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)
    train = config.train
    moments = 2 if train.optimizer == "adamw" else 1 if train.momentum else 0
    checkpoint = weights * (2 if train.ema else 1) + trained * moments
    written = -(-train.steps // train.checkpoint_every)
    count = min(train.keep + 1, written)
    makes = f"model of {human(model)}, up to {count} checkpoint{'s' if count > 1 else ''} of {human(checkpoint)}"
    return {"stage": name, "makes": makes, "where": str(where), "bytes": model + count * checkpoint}


def print_disk_plan(rows: list[dict[str, Any]], console: Console) -> None:
    """The stages with what they write and how much that is at most; says when the disk has less room."""
    table = Table("stage", "makes", "in", "at most", title="Stages", title_justify="left")
    for row in rows:
        table.add_row(row["stage"], row["makes"], row["where"], human(row["bytes"]))
    console.print(table)
    total = sum(row["bytes"] for row in rows)
    place = next(p for p in (Path(rows[0]["where"]), *Path(rows[0]["where"]).resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    console.print(f"{human(total)} on disk at most; {human(free)} are free.", highlight=False)
    if free < total:
        largest = max(rows, key=lambda row: row["bytes"])
        less = f"set {largest['less']}, or " if largest["less"] else ""
        text = f"That may not fit, and '{largest['stage']}' takes most: {less}write elsewhere (--out)."
        console.print(text, style="yellow", soft_wrap=True)


def human(size: float) -> str:
    """Bytes for people: '1.2 MB' (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
