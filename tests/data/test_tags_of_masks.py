"""Tags that are read from true masks: which values count, what classes are called, and what is left without tags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.config import DataConfig
from tagmask.data import Collection, clean, fingerprint, open_data, write_mask
from tagmask.errors import DataError

Rows = list[list[int]]


def scenes(root: Path, masks: dict[str, Rows | None], palette: bool = True, folder: str = "masks") -> Path:
    """Photos of 2×3 pixels in images/ and their masks, None for none."""
    (root / "images").mkdir(exist_ok=True)
    (root / folder).mkdir(exist_ok=True)
    for i, (name, rows) in enumerate(masks.items()):
        Image.fromarray(np.full((2, 3, 3), 10 * i, dtype=np.uint8)).save(root / "images" / f"{name}.png")
        if rows is not None and palette:
            write_mask(root / folder / f"{name}.png", np.array(rows))
        elif rows is not None:
            Image.fromarray(np.array(rows, dtype=np.uint8)).save(root / folder / f"{name}.png")
    return root


def opened(root: Path, **settings: object) -> Collection:
    given = {"val_share": 0, "masks": "masks", "tags_from": "masks", **settings}
    return open_data(DataConfig(root=root, **given))  # type: ignore[arg-type]


def tags_of(collection: Collection) -> dict[str, list[str] | None]:
    return {i.id: None if i.tags is None else [collection.classes[t] for t in i.tags] for i in collection.items}


MASKS: dict[str, Rows | None] = {
    "both": [[0, 1, 255], [2, 2, 0]],
    "one": [[0, 0, 2], [0, 0, 0]],
    "ground": [[0, 0, 0], [0, 0, 255]],
    "ignored": [[255, 255, 255], [255, 255, 255]],
    "bare": None,
}


@pytest.mark.parametrize("palette", [True, False])
def test_values_are_classes(tmp_path: Path, palette: bool) -> None:
    collection = opened(scenes(tmp_path, MASKS, palette))
    wanted = {"both": ["1", "2"], "one": ["2"], "ground": [], "ignored": None, "bare": None}
    assert tags_of(collection) == wanted and collection.source == "masks" and collection.tags_of_masks
    assert {item.id for item in collection.split("train")} == {"both", "one", "ground"}
    found = fingerprint(collection)
    assert found["tags_of_masks"] and found["counts"]["unlabelled"] == 2 and found["unlabelled"] == ["bare", "ignored"]


def test_names_of_classes(tmp_path: Path) -> None:
    scenes(tmp_path, MASKS)
    assert tags_of(opened(tmp_path, classes=["cat", "dog", "cow"]))["both"] == ["cat", "dog"]
    (tmp_path / "classes.txt").write_text("background\nhouse\ntree\n")
    assert tags_of(opened(tmp_path))["both"] == ["house", "tree"]


def test_one_class(tmp_path: Path) -> None:
    collection = opened(scenes(tmp_path, {"a": [[0, 1, 1], [0, 0, 0]], "b": [[0, 1, 255], [0, 0, 0]]}))
    assert tags_of(collection) == {"a": ["1"], "b": ["1"]} and collection.num_classes == 2
    assert not any("tags cannot" in what for what in fingerprint(collection)["warnings"]), "masks say where it is"


def test_masks_in_colours(tmp_path: Path) -> None:
    scenes(tmp_path, {"a": None, "b": None})
    Image.new("RGB", (3, 2), (0, 255, 0)).save(tmp_path / "masks" / "a.png")
    Image.new("RGB", (3, 2), (1, 1, 1)).save(tmp_path / "masks" / "b.png")
    with pytest.raises(DataError, match=r"data\.colour_map"):
        opened(tmp_path)
    (tmp_path / "colours.txt").write_text(
        "0 0 0 background\n255 0 0 roof\n0 255 0 lawn\n9 9 9 void\n1 1 1 background\n"
    )
    collection = opened(tmp_path, colour_map="colours.txt")
    assert collection.classes == ["roof", "lawn"] and tags_of(collection) == {"a": ["lawn"], "b": []}


def test_masks_that_show_no_class(tmp_path: Path) -> None:
    scenes(tmp_path, {"a": [[0, 0, 0], [0, 0, 0]], "b": [[0, 255, 0], [0, 0, 0]]})
    for settings in ({}, {"classes": ["cat"]}):
        with pytest.raises(DataError, match=r"masks: no mask shows a class.*0/255"):
            opened(tmp_path, **settings)
    scenes(tmp_path, {"a": [[0, 0, 0], [0, 128, 0]]})
    with pytest.raises(DataError, match=r"128.*data\.classes"):
        opened(tmp_path)


def test_values_that_are_no_class(tmp_path: Path) -> None:
    collection = opened(scenes(tmp_path, {"a": [[0, 1, 1], [0, 0, 0]], "b": [[0, 1, 7], [0, 0, 0]]}), classes=["cat"])
    assert tags_of(collection) == {"a": ["cat"], "b": None}
    assert [p.path for p in collection.problems if "value 7" in p.what] == [str(tmp_path / "masks" / "b.png")]


def test_masks_that_cannot_be_used(tmp_path: Path) -> None:
    scenes(tmp_path, {"a": [[0, 1, 1], [0, 0, 0]], "b": [[0, 1, 1], [0, 0, 0]], "c": [[1, 1]]})
    (tmp_path / "masks" / "b.png").write_bytes(b"broken")
    collection = opened(tmp_path)
    found = fingerprint(collection)
    assert {entry["id"] for entry in found["bad_masks"]} == {"b", "c"}
    assert tags_of(clean(collection, found)) == {"a": ["1"], "b": None, "c": None}


def test_tags_go_before_masks_unless_asked(tmp_path: Path) -> None:
    scenes(tmp_path, MASKS)
    (tmp_path / "tags.csv").write_text("image,tags\none,house\nground,tree\n")
    collection = opened(tmp_path, tags_from=None)
    assert tags_of(collection) == {"both": None, "one": ["house"], "ground": ["tree"], "ignored": None, "bare": None}
    assert collection.source == "table" and not collection.tags_of_masks
    assert fingerprint(collection)["warnings"], "masks and tags disagree"
    collection = opened(tmp_path, masks=None)
    assert collection.source == "masks" and tags_of(collection)["both"] == ["1", "2"]
    collection = opened(tmp_path, source="table")
    assert collection.source == "table" and tags_of(collection)["both"] == ["house", "tree"]


def test_masks_are_learned_from_only_where_they_are_asked_for(tmp_path: Path) -> None:
    scenes(tmp_path, MASKS)
    for masks in (None, "masks"):
        with pytest.raises(DataError, match=r"no tags.*masks.*data\.tags_from=masks"):
            opened(tmp_path, tags_from=None, masks=masks)
    with pytest.raises(DataError, match=r"data\.tags_from=masks"):
        opened(tmp_path, tags_from=None, source="masks")
    with pytest.raises(DataError, match=r"data\.masks"):
        opened(tmp_path / "images", masks=None)


def test_splits_of_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for place in ("images", "masks"):
            (tmp_path / place / split).mkdir(parents=True)
        Image.new("RGB", (3, 2)).save(tmp_path / "images" / split / f"{split[0]}.jpg")
        write_mask(tmp_path / "masks" / split / f"{split[0]}.png", np.array([[0, 1, 1], [0, 0, 0]]))
    collection = opened(tmp_path)
    assert collection.splits == {"train": ["t"], "val": ["v"]} and tags_of(collection) == {"t": ["1"], "v": ["1"]}


def test_voc_without_annotations(tmp_path: Path) -> None:
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / name).mkdir(parents=True)
    Image.new("RGB", (3, 2)).save(tmp_path / "JPEGImages" / "a.jpg")
    write_mask(tmp_path / "SegmentationClass" / "a.png", np.array([[0, 12, 255], [0, 15, 0]]))
    with pytest.raises(DataError, match=r"data\.tags_from"):
        opened(tmp_path, masks=None, tags_from=None)
    assert tags_of(opened(tmp_path, masks=None)) == {"a": ["dog", "person"]}
