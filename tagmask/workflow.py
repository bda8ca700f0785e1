"""The verbs as functions: train, label, predict, evaluate, report, run. The CLI and the Python API call these."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from tagmask.config import RunConfig, load_config
from tagmask.data import Collection, Item, clean, fingerprint, open_data, read_image, read_mask
from tagmask.data.files import find_images
from tagmask.errors import ConfigError, DataError
from tagmask.evaluate import Protocol, average_precision
from tagmask.label import Inference, Labelled, tag_vector, write_masks
from tagmask.methods import Method, build_method
from tagmask.registry import METHODS
from tagmask.report import Panel, write_report
from tagmask.report import overlay as draw_overlay
from tagmask.scoring import SCORES, Scorer
from tagmask.training import RunFolder, Trained, load_model, make_fabric, read_json, train_method, write_json
from tagmask.training.checkpoint import checkpoints


def default_device(config: RunConfig) -> torch.device:
    """The first device that training would use."""
    return make_fabric(config.train.model_copy(update={"devices": 1, "strategy": "auto"})).device


def prepare(config: RunConfig, folder: RunFolder | None = None) -> tuple[Collection, dict[str, Any]]:
    """Open the data, look at every file once, leave unreadable ones out. Saves fingerprint.json into ``folder``."""
    collection = open_data(config.data, config.seed)
    found = fingerprint(collection)
    if folder is not None:
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json(folder.fingerprint_file, found)
    return clean(collection, found), found


def reopen(folder: RunFolder, config: RunConfig) -> Collection:
    """The run's data as it was trained on: files that its fingerprint lists as unreadable stay left out."""
    collection = open_data(config.data, config.seed)
    if folder.fingerprint_file.is_file():
        collection = clean(collection, read_json(folder.fingerprint_file))
    return collection


def train(
    config: RunConfig,
    out: str | Path,
    resume: bool = False,
    prepared: tuple[Collection, dict[str, Any]] | None = None,
    console: Console | None = None,
) -> Trained:
    """Train ``config``'s method on the 'train' split into the run folder ``out``. Raises TagmaskError."""
    folder = RunFolder(out)
    if not resume and (checkpoints(folder.checkpoints) or folder.model.is_dir()):
        raise ConfigError(f"{out}: holds a run already. Use --resume to go on with it, or choose another folder.")
    collection, _ = prepared or prepare(config, folder)
    items = training_items(config, collection)
    torch.manual_seed(config.seed)
    method = build_method(config, len(collection.classes))
    folder.create(config)
    held_out = [i for i in collection.splits.get("val", []) if collection.item(i).mask is not None]
    watched = [collection.item(i) for i in held_out] if method.has_segmenter or method.has_cams else []

    def evaluate_now(current: Method, step: int) -> dict[str, float]:
        what = "segmenter" if current.has_segmenter else "cam"
        scorer = Scorer(current, config, collection, [what])
        for item in watched:
            scorer.add(item)
        return {f"val/{what}": scorer.streams[what].confusion.miou()}

    return train_method(
        method,
        config,
        items,
        collection.classes,
        folder,
        resume=resume,
        evaluate=evaluate_now if watched else None,
        colour_map=collection.colour_map,
        console=console,
    )


def training_items(config: RunConfig, collection: Collection) -> list[Item]:
    """Items of the 'train' split, with the masks of ``data.train_masks`` where that is set.

    Raises DataError when nothing is left, or when those masks were made for other classes.
    """
    items = collection.split("train")
    if not METHODS.get(config.method.name).reads_masks:
        if not items:
            raise DataError(f"{collection.root}: the split 'train' has no tagged image.")
        return items
    folder = config.data.train_masks
    if folder is not None:
        named = folder / "classes.json"
        if named.is_file() and read_json(named)["classes"][1:] != collection.classes:
            raise DataError(f"{named}: these masks are of other classes than the data set's.")
        items = [replace(item, mask=folder / f"{item.id}.png") for item in items]
        items = [item for item in items if item.mask is not None and item.mask.is_file()]
    items = [item for item in items if item.mask is not None]
    if not items:
        where = folder or collection.root
        raise DataError(f"{where}: no masks of training photos, and '{config.method.name}' learns from masks.")
    return items


def label(
    run: str | Path,
    split: str = "train",
    out: str | Path | None = None,
    with_tags: bool = True,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> Labelled:
    """Masks of a split's photos (or of several, as in 'train+val'), written to ``out`` or the run's masks/.

    with_tags: only photos that have tags, and only those classes in their masks.
    """
    folder, config, method = open_run(run, overrides)
    collection = reopen(folder, config)
    items = [i for name in split.split("+") for i in collection.split(name) if not with_tags or i.tags is not None]
    inference = Inference(method, config.label, config.train.precision)
    return write_masks(
        inference,
        items,
        collection.classes,
        Path(out) if out else folder.masks,
        with_tags,
        overwrite=overwrite,
        soft=config.label.soft,
        console=console,
    )


def predict(
    run: str | Path,
    photos: Sequence[str | Path],
    out: str | Path,
    overlay: bool = False,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> Labelled:
    """Masks of photos (files, folders, globs) without tags, into ``out``. Raises DataError where there is no photo."""
    _, config, method = open_run(run, overrides)
    classes = read_json(RunFolder(run).model / "classes.json")["classes"]
    items = photo_items(photos)
    inference = Inference(method, config.label, config.train.precision)
    done = write_masks(
        inference, items, classes, Path(out), False, overwrite=overwrite, soft=config.label.soft, console=console
    )
    if overlay:
        failed = {name for name, _ in done.failed}
        for item in items:
            if str(item.image) not in failed:
                labels = read_mask(Path(out) / f"{item.id}.png", len(classes)).numpy()
                picture = draw_overlay(read_image(item.image).permute(1, 2, 0).numpy(), labels)
                Image.fromarray(picture).save(Path(out) / f"{item.id}_overlay.jpg", quality=90)
    return done


def photo_items(photos: Sequence[str | Path]) -> list[Item]:
    """Items of files, folders (searched to any depth) and globs. Raises DataError naming what matches nothing."""
    paths: list[Path] = []
    for entry in map(str, photos):
        place = Path(entry)
        found = find_images(place) if place.is_dir() else [place] if place.is_file() else sorted(map(Path, glob(entry)))
        if not found:
            raise DataError(f"{entry}: no such photo, and no photo in it.")
        paths += found
    ids: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        if ids.setdefault(path.stem, path) != path:
            raise DataError(f"{path} and {ids[path.stem]} would both write {path.stem}.png; predict them apart.")
    return [Item(id=name, image=path, tags=None) for name, path in ids.items()]


def open_run(run: str | Path, overrides: Sequence[str] = ()) -> tuple[RunFolder, RunConfig, Method]:
    """Run folder, its configuration with overrides, and the trained method on the best device at hand."""
    folder = RunFolder(run)
    config = load_config(folder.config().model_dump(mode="json"), overrides=overrides)
    method, _, _ = load_model(folder.model, default_device(config))
    return folder, config, method


def evaluate(
    run: str | Path,
    split: str | None = None,
    what: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    need_masks: bool = True,
) -> list[dict[str, Any]]:
    """Score a run on a split and enter the scores into its metrics.json.

    split: 'test' where there is one, else 'val'. what: names of SCORES; by default everything that uses tags on
    'train', and the segmenter without tags elsewhere. Scores on a split other than 'val' take the CAM threshold
    that an earlier evaluation found best on 'val', beside the fixed one. Without true masks there is only the mean
    average precision of the classifier; DataError is raised, unless ``need_masks`` is off.
    """
    folder, config, method = open_run(run, overrides)
    collection = reopen(folder, config)
    split = split or ("test" if "test" in collection.splits else "val")
    items = collection.split(split)
    names = list(what) if what else default_scores(method, split, folder)
    names = names if any(item.mask is not None for item in items) else []
    for name in what or ():
        if name not in SCORES:
            raise ConfigError(f"'{name}' is not a score. There are: {', '.join(SCORES)}.")
    scored = [item for item in items if item.mask is not None]
    if not scored and need_masks:
        raise DataError(f"{collection.root}: split '{split}' has no true masks to compare with; set data.masks.")
    val_threshold = None if split == "val" else _val_threshold(folder)
    began = time.perf_counter()
    scores = Scorer(method, config, collection, names, val_threshold, folder.masks)
    console = console or Console(stderr=True)
    for item in track(items, description="score", console=console, disable=not console.is_terminal):
        scores.add(item)
    minutes = (time.perf_counter() - began) / 60
    results = []
    for name, stream in scores.streams.items():
        result = stream.result(
            name,
            collection.classes,
            _protocol(name, split, collection, scored, config, method, val_threshold),
            curve=scores.curve if name == "cam" else None,
            bootstrap=config.evaluate.bootstrap,
            without=config.evaluate.without,
            seed=config.seed,
        )
        result["minutes"] = round(minutes, 2)
        folder.add_score(result)
        results.append(result)
    _add_classification(folder, split, collection.classes, scores)
    return results


def report(
    run: str | Path,
    split: str | None = None,
    photos: int = 16,
    overrides: Sequence[str] = (),
) -> Path:
    """Write the run's report.html. split: whose photos are shown; default: the last one scored, else 'train'.

    Of photos that a score knows, the best and the worst are shown; of others a seeded sample.
    """
    folder, config, method = open_run(run, overrides)
    collection = reopen(folder, config)
    scores = folder.metrics()["scores"]
    split = split or (scores[-1]["protocol"]["split"] if scores else "train")
    known = next((s["images"] for s in reversed(scores) if s["protocol"]["split"] == split and s["images"]), None)
    # A photo without objects scores 100 % by being left empty: it would crowd out the ones worth a look.
    items = [i for i in collection.split(split) if i.tags != ()] or collection.split(split)
    if known:
        known = {name: image["miou"] for name, image in known.items() if image["miou"] is not None}
        ranked = sorted((i for i in items if i.id in known), key=lambda i: -known[i.id])
        shown = ranked if len(ranked) <= photos else ranked[: photos // 2] + ranked[-(photos - photos // 2) :]
    else:
        generator = torch.Generator().manual_seed(config.seed)
        order = torch.randperm(len(items), generator=generator).tolist()
        shown = [items[i] for i in order[:photos]]
    inference = Inference(method, config.label, config.train.precision)
    panels = [_panel(i, inference, collection, folder, known[i.id] if known else None) for i in shown]
    return write_report(
        folder.path,
        panels,
        folder.metrics(),
        folder.log(),
        folder.config_file.read_text(encoding="utf-8"),
        read_json(folder.environment_file),
        read_json(folder.fingerprint_file) if folder.fingerprint_file.is_file() else None,
        title=f"{config.method.name} on {config.encoder.name}: {folder.path.name}",
    )


def _panel(item: Item, inference: Inference, collection: Collection, folder: RunFolder, score: float | None) -> Panel:
    photo = read_image(item.image)
    names = [collection.classes[t] for t in item.tags or ()]
    panel = Panel(item.id, photo.permute(1, 2, 0).numpy(), names, collection.classes, score=score)
    if inference.method.has_cams and item.tags:
        tags = tag_vector(item.tags, len(collection.classes))
        cams = inference.cams(photo, tags)
        panel.cam, panel.cam_names = cams[list(item.tags)].cpu().numpy(), names
        panel.refined = inference.refine(photo, cams, tags).max(dim=0).indices.to(torch.uint8).cpu().numpy()
    made = folder.masks / f"{item.id}.png"
    if made.is_file():
        panel.prediction = read_mask(made, len(collection.classes)).numpy()
    elif inference.method.has_segmenter:
        panel.prediction = inference.predict(photo)[0].cpu().numpy()
    if item.mask is not None:
        panel.truth = read_mask(item.mask, len(collection.classes), collection.colour_map).numpy()
    return panel


def list_methods(pattern: str = "*") -> list[str]:
    """Names of the methods that match a shell wildcard."""
    return METHODS.names(pattern)


def default_scores(method: Method, split: str, folder: RunFolder) -> list[str]:
    """What ``evaluate`` scores when not told: with tags on 'train' and 'val', without on any split but 'train'."""
    names: list[str] = []
    if split in ("train", "val") and method.has_cams:
        names += ["cam", "refined"]
    if split == "train" and folder.masks.is_dir():
        names.append("masks")
    if split != "train" and method.has_segmenter:
        names.append("segmenter")
    return names or ["segmenter+tags" if method.has_segmenter else "cam"]


def _val_threshold(folder: RunFolder) -> float | None:
    for score in folder.metrics()["scores"]:
        if score["name"] == "cam" and score["protocol"]["split"] == "val":
            return score["curve"]["peak"]["threshold"]
    return None


def _protocol(
    name: str,
    split: str,
    collection: Collection,
    scored: Sequence[Item],
    config: RunConfig,
    method: Method,
    val_threshold: float | None,
) -> Protocol:
    cfg = config.label
    from_cam = name in ("cam", "cam (val threshold)", "refined")
    if name == "masks":
        from_cam = cfg.source == "cam" or not method.has_segmenter
    threshold = val_threshold if name == "cam (val threshold)" else cfg.threshold
    truth = scored[0].mask.parent if scored[0].mask else Path()
    return Protocol(
        split=split,
        split_hash=collection.split_hash(split),
        images=len(scored),
        truth=f"{collection.source}:{truth.name}",
        tags_at_test=name != "segmenter",
        threshold=threshold if from_cam else None,
        threshold_source=("best on val" if name == "cam (val threshold)" else "fixed") if from_cam else "none",
        scales=cfg.cam_scales if from_cam else cfg.scales,
        flip=cfg.cam_flip if from_cam else cfg.flip,
        merge="sum" if from_cam else cfg.merge,
        refine=cfg.refine if name == "refined" or (name == "masks" and from_cam) else "none",
        tile=cfg.tile,
        seed=config.seed,
        weights=method.encoder.weights_origin,
        method=config.method.name,
        encoder=config.encoder.name,
    )


def _add_classification(folder: RunFolder, split: str, classes: list[str], scores: Scorer) -> None:
    if not scores.class_scores:
        return
    precision = average_precision(torch.stack(scores.class_scores), torch.stack(scores.tags))
    known = {c: float(p) for c, p in zip(classes, precision, strict=True) if p == p}
    metrics = folder.metrics()
    mean = sum(known.values()) / len(known) if known else None
    metrics["classification"] = {"split": split, "images": len(scores.tags), "map": mean, "per_class": known}
    write_json(folder.metrics_file, metrics)
