"""Known answers on COCO: hand-made predictions against converted instances, every value worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.config import load_config
from tagmask.convert import coco_masks
from tagmask.data import write_mask
from tagmask.data.source_coco import COCO_CATEGORIES
from tagmask.files import write_json
from tagmask.workflow import evaluate, train
from tests.test_convert import box

SIZE = (8, 10)
CROWD = {"size": list(SIZE), "counts": [48, 4, 4, 4, 4, 4, 4, 4, 4]}
"""Columns 6 to 9, rows 0 to 3: runs go down the columns, of 8 pixels each."""
OBJECTS = {
    "train": [
        (1, 1, 0, [box(0, 0, 4, 4)]),  # a person, 16 pixels
        (1, 18, 0, [box(2, 2, 6, 6)]),  # a dog, 16 pixels, 4 of them the person's
        (1, 1, 1, CROWD),  # 16 pixels of nobody
        (2, 90, 0, [box(0, 0, 5, 8)]),  # a toothbrush, the last of the ids with gaps: label 80
        (2, 13, 0, [box(5, 0, 10, 8)]),  # a stop sign, the first after a gap: label 12
    ],
    "val": [(7, 1, 0, [box(0, 0, 5, 5)])],
}


def write_coco(root: Path) -> None:
    categories = [{"id": id, "name": name} for id, name in COCO_CATEGORIES.items()]
    for role, objects in OBJECTS.items():
        split = f"{role}2014"
        names = {image: f"COCO_{split}_{image:012d}.jpg" for image, *_ in objects}
        (root / split).mkdir(parents=True)
        for image, name in names.items():
            Image.new("RGB", SIZE[::-1], (image * 30, 90, 60)).save(root / split / name)
        images = [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in names.items()]
        found = [
            {"id": n, "image_id": image, "category_id": category, "iscrowd": crowd, "segmentation": shape}
            for n, (image, category, crowd, shape) in enumerate(objects)
        ]
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": found, "categories": categories}))
        coco_masks(path, workers=1)


def test_converted_instances_give_the_scores_worked_out_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    root, run = tmp_path / "coco", tmp_path / "run"
    write_coco(root)
    config = load_config({
        "data": {"root": str(root)},
        "encoder": {"name": "resnet18", "weights": "none"},
        "views": {"crop": 64},
        "method": {"name": "baseline", "warmup": 1, "head_options": {"hidden": 8}},
        "train": {"steps": 2, "batch_size": 2, "workers": 0, "warmup": 0, "accelerator": "cpu", "channels_last": False},
        "evaluate": {"bootstrap": 0, "only": ["dog", "stop sign"]},
    })  # fmt: skip
    train(config, run)
    first, second = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    first[:4, :4] = first[:4, 6:] = 1  # the person whole, and the crowd, which does not count
    first[4:6, 2:6] = 17  # 8 of the dog's 12 pixels
    second[:, :4], second[:, 4] = 80, 255  # 32 of 40, and 8 unsure
    second[:, 5:9], second[:, 9] = 12, 11  # 32 of 40; the other 8 as a fire hydrant, which is not there
    for image, labels in ((1, first), (2, second)):
        write_mask(run / "masks" / f"COCO_train2014_{image:012d}.png", labels)
    names = ["background", *COCO_CATEGORIES.values()]
    write_json(run / "masks" / "classes.json", {"classes": names, "settings": {}, "source": "cam"})
    (score,) = evaluate(run, "train", ["masks"])
    pixels = {name: row["pixels"] for name, row in score["per_class"].items() if row["pixels"]}
    assert pixels == {"background": 80 - 16 - 12 - 16, "person": 16, "dog": 12, "stop sign": 40, "toothbrush": 40}
    iou = {name: row["iou"] for name, row in score["per_class"].items() if row["iou"] is not None}
    background = 36 / (36 + 4)  # the four pixels of the dog that are missing
    expected = {"background": background, "person": 1, "dog": 8 / 12, "stop sign": 32 / 40, "toothbrush": 1}
    assert iou == pytest.approx(expected | {"fire hydrant": 0})
    assert score["miou"] == pytest.approx((background + 1 + 8 / 12 + 0.8 + 1 + 0) / 6)
    assert score["miou_strict"] == pytest.approx((background + 1 + 8 / 12 + 0.8 + 32 / 40 + 0) / 6)
    assert score["coverage"] == pytest.approx((144 - 8) / 144)
    assert score["accuracy"] == pytest.approx((36 + 16 + 8 + 32 + 32) / 136)
    assert score["c_miou"] == pytest.approx((8 / 12 + 0.8) / 2)
    precision, recall = [36 / 40, 1, 1, 1, 1, 0], [1, 1, 8 / 12, 0.8, 1]
    assert score["precision"] == pytest.approx(sum(precision) / 6)
    assert score["recall"] == pytest.approx(sum(recall) / 5), "a class that is nowhere true has none"
    assert score["stamp"]["truth"] == "coco:train2014" and score["stamp"]["images"] == 2
