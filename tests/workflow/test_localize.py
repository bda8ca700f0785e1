"""Localisation of a run on a set in the layout of CUB-200-2011."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.config import load_config
from tagmask.data import Item
from tagmask.errors import ConfigError, DataError
from tagmask.evaluate import Localization
from tagmask.evaluate.stamp import BY_SPLIT, FIXED
from tagmask.label import Look
from tagmask.training import RunFolder
from tagmask.workflow import Run, evaluate, train
from tagmask.workflow.localize import COLUMNS, add, key_stamp

COLOURS = {"001.Red_bird": (220, 30, 30), "002.Blue_bird": (30, 30, 220)}


def write_birds(root: Path, images: int = 8, size: tuple[int, int] = (72, 56)) -> Path:
    """Coloured rectangles as birds, in CUB's layout: every other photo is for test."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[str]] = {name: [] for name in ("images", "image_class_labels", "train_test_split", "boxes")}
    for i in range(1, images + 1):
        number, (name, colour) = i % 2 + 1, list(COLOURS.items())[i % 2]
        pixels = rng.integers(90, 130, (size[1], size[0], 3), dtype=np.uint8)
        x, y, w, h = (int(v) for v in (*rng.integers(4, 20, 2), *rng.integers(20, 32, 2)))
        pixels[y : y + h, x : x + w] = colour
        path = root / "images" / name / f"bird_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        rows["images"].append(f"{i} {name}/bird_{i}.png")
        rows["image_class_labels"].append(f"{i} {number}")
        rows["train_test_split"].append(f"{i} {i % 4 // 2}")
        rows["boxes"].append(f"{i} {x}.0 {y}.0 {w}.0 {h}.0")
    rows["bounding_boxes"] = rows.pop("boxes")
    rows["classes"] = [f"{k + 1} {name}" for k, name in enumerate(COLOURS)]
    for file, lines in rows.items():
        (root / f"{file}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_birds(tmp_path_factory.mktemp("data") / "birds")
    out = tmp_path_factory.mktemp("runs") / "birds"
    values = {
        "data": {"root": str(root), "val_share": 0},
        "encoder": {"name": "resnet18", "weights": "none"},
        "views": {"crop": 64},
        "method": {"name": "baseline", "warmup": 1, "head_options": {"hidden": 16}},
        "train": {
            "steps": 2, "batch_size": 2, "workers": 0, "warmup": 0, "accelerator": "cpu", "channels_last": False,
        },
        "label": {"cam_scales": [1.0], "threshold": 0.3},
        "evaluate": {"bins": 10},
    }  # fmt: skip
    train(load_config(values), out)
    return out


def test_evaluate_writes_and_prints_localisation(run: Path) -> None:
    words = ["evaluate", str(run), "--what", "localization"]
    (result,) = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert result["images"] == 4 and result["stamp"]["split"] == "test" and len(result["curve"]["box_acc"]) == 10
    assert result["max_box_acc"] >= result["gt_known"] >= result["top1"]
    assert result["top5"] == result["gt_known"], "of two classes the true one is among the best five"
    assert RunFolder(run).metrics()["localization"]["test"] == result
    shown = CliRunner().invoke(app, words, env={"COLUMNS": "200"}).output
    threshold = f"threshold {result['best_threshold']:g} (this split)"
    assert "GT-known on test, tags given" in shown and f"MaxBoxAcc on test, tags given, {threshold}" in shown
    assert "top-1 on test, no tags" in shown


def test_each_share_has_its_own_stamp(run: Path) -> None:
    (result,) = evaluate(run, "test", ["localization"])
    stamps = {key: key_stamp(result, key) for key in (*COLUMNS, "top1_class")}
    assert {key: stamp["tags"] for key, stamp in stamps.items()} == {
        "top1": False, "top5": False, "gt_known": True, "max_box_acc": True, "top1_class": False,
    }  # fmt: skip
    found = {key: (stamp["threshold"], stamp["threshold_from"]) for key, stamp in stamps.items()}
    assert found["max_box_acc"] == (result["best_threshold"], BY_SPLIT)
    assert found["gt_known"] == (0.3, FIXED) and found["top1_class"] == (None, None)
    assert stamps["top1"]["run"]["settings"]["views.crop"] == 64 and stamps["top1"]["truth"] == "cub:boxes"
    assert stamps["top1"]["settings"]["label.max_side"] == 2048


def test_boxes_are_brought_to_the_grid_of_the_cams() -> None:
    """CAMs of a photo that is worked on at half its size: the box of the region is the true box."""
    cams = torch.zeros(2, 20, 30)
    cams[1, 5:15, 10:20] = 1
    inference: Any = SimpleNamespace(
        method=SimpleNamespace(classes=2),
        class_scores=lambda photo: torch.tensor([0.1, 0.9]),
        cams=lambda photo, tags: cams * tags[:, None, None],
    )
    item = Item("a", Path("a.png"), (1,), None, ((20.0, 10.0, 40.0, 30.0),))
    counts = Localization(iou=0.99, threshold=0.5)
    add(counts, item, Look(inference, torch.zeros(3, 40, 60, dtype=torch.uint8), torch.tensor([0.0, 1.0])))
    assert counts.result()["top1"] == 1


def test_what_cannot_be_localised_is_said(run: Path) -> None:
    with pytest.raises(ConfigError, match="'localisation'.*localization"):
        evaluate(run, "test", ["localisation"])
    opened = Run(run)
    collection = opened.collection
    opened.collection = replace(collection, items=[replace(item, boxes=()) for item in collection.items])
    with pytest.raises(DataError, match=re.escape(str(collection.root))):
        evaluate(opened, "train", ["localization"])
