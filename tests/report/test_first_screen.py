"""What a report says first."""

from __future__ import annotations

from typing import Any

from tagmask.report.first_screen import first_screen

DATA = {
    "classes": ["cow", "dog"],
    "counts": {"labelled": 12},
    "splits": {"train": {"labelled": 10}},
}


def score(name: str, split: str, miou: float | None, cow: float = 0.4) -> dict[str, Any]:
    classes = {"background": {"iou": 0.1}, "cow": {"iou": cow}, "dog": {"iou": 0.8}, "cat": {"iou": None}}
    interval = {"low": 0.5, "high": 0.75}
    return {
        "name": name,
        "miou": miou,
        "interval": interval if split == "test" else None,
        "stamp": {"split": split, "images": 7},
        "per_class": classes,
    }


QUALITY = {
    "train": {"split": "train", "images": 10, "estimate": 0.81, "recall": None, "precision": None,
              "per_class": {"cow": {"agreement": 0.9}, "dog": {"agreement": 0.5}, "cat": {"agreement": None}}},
    "val": {"split": "val", "images": 2, "estimate": 0.7, "recall": 0.6, "precision": 0.75, "per_class": {}},
}  # fmt: skip


def said(
    scores: list[dict[str, Any]], quality: dict[str, Any], lacking: int = 0, suspects: int = 0, source: str = "tags"
) -> dict[str, Any]:
    return first_screen(scores, quality, DATA, ["baseline, 9 steps."], source, lacking, suspects, "runs/first")


def test_true_masks_give_the_figures() -> None:
    scores = [
        score("cam", "test", 0.3),
        score("masks", "train", 0.7),
        score("segmenter", "val", 0.5),
        score("segmenter", "test", 0.61),
    ]
    found = said(scores, QUALITY)
    assert [(f["title"], f["value"], f["unit"]) for f in found["good"]] == [
        ("New photos, without tags", 0.61, "% mIoU"),
        ("Delivered masks, from tags", 0.7, "% mIoU"),
    ]
    assert found["good"][0]["note"] == "against the true masks of 7 photos of test; 95 % interval 50.0 to 75.0."
    assert found["learned"] == ["2 classes, from the tags of 10 photos: cow, dog.", "baseline, 9 steps."]
    assert found["next"][0] == {"text": "The weakest classes on test: cow 40.0 %, dog 80.0 %.", "to": "classes"}


def test_a_run_from_true_masks_is_not_said_to_be_from_tags() -> None:
    assert said([], {}, source="true masks")["learned"][0] == "2 classes, from the true masks of 10 photos: cow, dog."


def test_masks_from_tags_of_the_true_masks_are_not_said_to_be_from_tags() -> None:
    masks = score("masks", "train", 0.7)
    masks["stamp"]["tags_from"] = "masks"
    assert said([masks], {})["good"][0]["title"] == "Delivered masks, from tags of the true masks"


def test_without_true_masks_it_says_what_is_estimated() -> None:
    new, delivered = said([], QUALITY)["good"]
    assert (new["value"], delivered["value"]) == (0.6, 0.81) and "no IoU" in delivered["note"]
    assert "2 photos of val, which trained nothing; 75.0 % of what is found is tagged" in new["note"]
    assert said([], QUALITY)["next"][0]["text"] == "Views of their photos agree least on dog, cow."


def test_nothing_known_is_nothing_said() -> None:
    found = said([score("segmenter", "test", None)], {})
    assert found["good"] == [] and said([], {})["next"] == []


def test_what_to_look_at_is_counted() -> None:
    found = [line["text"] for line in said([], {}, lacking=1, suspects=3)["next"]]
    assert found == [
        "1 mask lacks a class that the photo is tagged with (masks/missing.csv).",
        "3 photos may have wrong tags (suspects.csv).",
    ]
