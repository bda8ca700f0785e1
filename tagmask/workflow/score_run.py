"""``tagmask evaluate``: a run against true masks, every score with the protocol that it was made by."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from tagmask.config import LabelConfig, RunConfig
from tagmask.data import Collection, read_ahead
from tagmask.data.collection import hash_ids
from tagmask.errors import ConfigError, DataError
from tagmask.evaluate import THRESHOLD_SOURCES, Protocol, average_precision
from tagmask.methods import Method
from tagmask.refine import DenseCRF
from tagmask.training import RunFolder, read_json, supervision, write_json
from tagmask.workflow.localize import localize
from tagmask.workflow.runs import grid_of, open_run, reopen, run_stamp, working_grid
from tagmask.workflow.scoring import AT_VAL, FILES, LOCALIZATION, SCORES, SPREAD, Scorer, photos_of, truth_of
from tagmask.workflow.spread import spread
from tagmask.workflow.trained_on import completed, how_made, kept_masks, made_with, of_stage, unsure_by

SPECIAL = {LOCALIZATION: localize, SPREAD: spread}
"""Scores that go over the photos by themselves, and whose entries are not like the others'."""


def evaluate(
    run: str | Path,
    split: str | None = None,
    what: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    record: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Score a run on a split and enter the scores into its metrics.json, or that of the folder ``record``.

    split: 'test' where there is one, else 'val'. what: names of SCORES; by default the CAMs and masks, which use
    tags, on 'train', and the segmenter without tags elsewhere (on 'val' both). Splits other than 'val' are scored at
    the CAM threshold that was found best on 'val', too, once 'val' has been scored in the same way. 'localization'
    compares boxes of CAMs with true boxes, see ``localize``, and 'spread' CAMs of single scales, see ``spread``; their
    entries have no mIoU.
    Where nothing has a true mask, only the classifier's mean average precision is entered, and the list is empty.
    Raises DataError when there is nothing to compare with.
    """
    folder, config, method = open_run(run, overrides)
    collection = reopen(folder, config)
    split = split or ("test" if collection.splits.get("test") else "val")
    items = collection.split(split)
    for name in what or ():
        if name not in (*SCORES, *SPECIAL):
            raise ConfigError(f"'{name}' is not a score. There are: {', '.join((*SCORES, *SPECIAL))}.")
    if what:
        names = list(what)
    elif any(item.mask is not None for item in items):
        names = default_scores(method, split, folder)
    elif any(item.tags is not None for item in items):
        names = []  # the classifier alone
    else:
        raise DataError(f"{collection.root}: split '{split}' has neither true masks nor tags; set data.masks.")
    for name in names:
        photos_of(name, collection, split)
    kept = RunFolder(record) if record is not None else folder
    kept.path.mkdir(parents=True, exist_ok=True)
    special = [SPECIAL[n](kept, config, method, collection, split, console) for n in names if n in SPECIAL]
    names = [name for name in names if name not in SPECIAL]
    if special and not names:
        return special
    val_threshold = None if split == "val" else _val_threshold(kept, config, method.use)
    began = time.perf_counter()
    scorer = Scorer(method, config, collection, names, val_threshold, folder.path)
    console = console or Console(stderr=True)
    shown = track(read_ahead(items), "score", len(items), console=console, disable=not console.is_terminal)
    for item, photo in shown:
        scorer.add(item, photo)
    minutes = (time.perf_counter() - began) / 60
    results = []
    for name, stream in scorer.streams.items():
        result = stream.result(
            name,
            collection.classes,
            _protocol(name, split, collection, list(stream.per_image), config, method, scorer, folder),
            curve=scorer.curve if name == "cam" else None,
            bootstrap=config.evaluate.bootstrap,
            without=config.evaluate.without,
            only=config.evaluate.only,
            seed=config.seed,
        )
        result["minutes"] = round(minutes, 2)
        kept.add_score(result)
        results.append(result)
    _add_classification(kept, split, collection.classes, scorer)
    return [*results, *special]


def default_scores(method: Method, split: str, folder: RunFolder) -> list[str]:
    """What ``evaluate`` scores when not told: with tags on 'train' and 'val', without on any split but 'train'."""
    names: list[str] = []
    if split in ("train", "val") and method.has_cams:
        names += ["cam", "refined"]
    if split == "train":
        names += [name for name in FILES if (folder.path / name / "classes.json").is_file()]
    if split != "train" and method.has_segmenter:
        names.append("segmenter")
    return names or ["segmenter+tags" if method.has_segmenter else "cam"]


def _val_threshold(folder: RunFolder, config: RunConfig, use: str | None) -> float | None:
    """The peak of the CAM curve on 'val', if its CAMs were made in the same way."""
    label, grid = config.label, working_grid(config)
    for score in reversed(folder.metrics()["scores"]):
        protocol = score["protocol"]
        same = (protocol["scales"], protocol["flip"]) == (label.cam_scales, label.cam_flip)
        same = same and protocol.get("grid") in (None, grid)  # None: of an earlier version
        same = same and protocol.get("use") == use
        same = same and len((score.get("curve") or {}).get("thresholds", ())) == config.evaluate.bins
        if score["name"] == "cam" and protocol["split"] == "val" and same:
            return score["curve"]["peak"]["threshold"]
    return None


def _protocol(
    name: str,
    split: str,
    collection: Collection,
    scored: list[str],
    config: RunConfig,
    method: Method,
    scorer: Scorer,
    folder: RunFolder,
) -> Protocol:
    cfg, source = scorer.inference.config, scorer.inference.source
    stage: dict[str, Any] = {}
    trained = run_stamp(config, method)
    grid: str | None = working_grid(config)
    precision: str | None = config.train.precision
    if name in FILES:
        # Of how the files were made, not of what the configuration says today.
        made = read_json(folder.path / name / "classes.json")
        cfg, source = made_with(made), made["source"]
        trained["use"] = made.get("use")
        stage = made.get("stage", {})
        # Those of stages and of earlier versions do not say on which grid, and how exactly, they were computed.
        grid = grid_of(made["short_side"], cfg.max_side) if "short_side" in made else None
        precision = made.get("precision")
        cfg = cfg.model_copy(update={"crf": stage.get("crf", cfg.crf)})
        if stage:
            cfg.high = cfg.low = None
    from_cam = name in ("cam", AT_VAL, "refined", "cam+crf") or (name in FILES and source == "cam")
    threshold = scorer.val_threshold if name == AT_VAL else cfg.threshold
    found_by = THRESHOLD_SOURCES[cfg.threshold_from]
    if of_stage(stage):
        threshold, found_by = stage.get("walk", {}).get("threshold"), "fixed"
    tile = max((side for size in scorer.sizes if (side := scorer.inference.tile_side(size))), default=None)
    delivered = name in ("masks", "segmenter", "segmenter+tags")
    return Protocol(
        split=split,
        split_hash=hash_ids(scored),
        images=len(scored),
        truth=truth_of(collection, (collection.item(id) for id in scored)),
        tags_at_test=name != "segmenter",
        left_out=scorer.untagged if name != "segmenter" else 0,
        supervision=supervision(method, config),
        masks=_masks(config, method, folder),
        threshold=threshold if from_cam else None,
        threshold_source=("best on val" if name == AT_VAL else found_by)
        if from_cam and threshold is not None
        else "none",
        unsure=unsure_by(cfg, from_cam) if delivered else None,
        scales=cfg.cam_scales if from_cam else cfg.scales,
        flip=cfg.cam_flip if from_cam else cfg.flip,
        merge="sum" if from_cam else cfg.merge,
        refine=of_stage(stage) or _refinement(name, cfg, from_cam, tile),
        crf=None
        if (from_cam and not stage and name != "cam+crf") or cfg.crf == "none"
        else f"{cfg.crf} ({DenseCRF.preset(cfg.crf).extra_repr()})",
        tile=None if from_cam else tile,
        grid=grid,
        precision=precision,
        rim=config.evaluate.boundary,
        bins=config.evaluate.bins if name in ("cam", AT_VAL) else None,
        without=config.evaluate.without,
        only=config.evaluate.only,
        **trained,
    )


def _refinement(name: str, cfg: LabelConfig, from_cam: bool, tile: int | None) -> str:
    if name == "refined":
        return cfg.refine
    if name == "masks":
        if from_cam:
            return cfg.refine
        tiled = ", tiled photos not" if tile and cfg.refine_masks != "none" else ""
        return f"{cfg.refine_masks}{tiled}{completed(cfg)}"
    return "none"


def _masks(config: RunConfig, method: Method, folder: RunFolder) -> str | None:
    kept = kept_masks(folder) if method.reads_masks and config.data.train_masks else None
    return how_made(kept) if kept else None


def _add_classification(folder: RunFolder, split: str, classes: list[str], scorer: Scorer) -> None:
    """Mean average precision of the class scores against the tags, by split."""
    if not scorer.class_scores:
        return
    precision = average_precision(torch.stack(scorer.class_scores), torch.stack(scorer.tags))
    known = {c: float(p) for c, p in zip(classes, precision, strict=True) if p == p}
    metrics = folder.metrics()
    mean = sum(known.values()) / len(known) if known else None
    entry = {"split": split, "images": len(scorer.tags), "map": mean, "per_class": known}
    if scorer.inference.method.use is not None:
        entry["use"] = scorer.inference.method.use
    metrics["classification"] = metrics.get("classification", {}) | {split: entry}
    write_json(folder.metrics_file, metrics)
