from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tagmask.config import DataConfig
from tagmask.data import clean, fingerprint, open_data, print_fingerprint
from tagmask.data.fingerprint import mask_warnings
from tagmask.errors import DataError


def test_counts(photos: Path) -> None:
    (photos / "val.txt").write_text("p01\np10\n")
    collection = open_data(DataConfig(root=photos))
    fp = fingerprint(collection)
    assert json.loads(json.dumps(fp)) == fp
    assert fp["counts"] == {
        "images": 12,
        "labelled": 10,
        "empty": 2,
        "unlabelled": 2,
        "masks": 12,
        "unreadable": 0,
        "bad_masks": 0,
        "problems": 0,
    }
    assert fp["unlabelled"] == ["p10", "p11"]
    assert fp["splits"]["val"] == {"images": 2, "labelled": 1, "masks": 2, "hash": collection.split_hash("val")}
    assert fp["sizes"]["height"] == {"min": 9, "median": 14.5, "max": 20}
    assert fp["sizes"]["width"] == {"min": 9, "median": 14.5, "max": 20}
    areas = [int(np.prod(Image.open(item.image).size)) for item in collection.items]
    assert fp["sizes"]["pixels"] == round(sum(areas) / len(areas))
    tagged = [set(i.tags or ()) for i in collection.items]
    for i in range(3):
        for j in range(3):
            assert fp["cooccurrence"][i][j] == sum(i in t and j in t for t in tagged)
    assert fp["tags"] == {"a": 3, "b": 2, "c": 6}
    expected = {str(v): sum((9 + i) * (20 - i) for i in range(12) if i % 4 == v) for v in range(4)}
    assert fp["masks"] == {"values": expected, "warnings": []}


def test_digest_follows_the_data(photos: Path, picture: Callable[..., Path]) -> None:
    def digest() -> str:
        return fingerprint(open_data(DataConfig(root=photos)))["digest"]

    first = digest()
    assert first == digest() and len(first) == 64
    table = (photos / "tags.csv").read_text()
    (photos / "tags.csv").write_text(table.replace("p01.png,b", "p01.png,c"))
    changed = digest()
    (photos / "tags.csv").write_text(table)
    picture(photos / "images" / "p01.png", (30, 30))
    assert len({first, changed, digest()}) == 3


def test_what_cannot_be_used_is_listed_and_left_out(photos: Path, mask: Callable[..., Path]) -> None:
    (photos / "images" / "p02.png").write_bytes(b"broken")
    mask(photos / "masks" / "p03.png", np.zeros((3, 3)))
    (photos / "masks" / "p04.png").write_bytes(b"broken")
    collection = open_data(DataConfig(root=photos, val_share=0))
    fp = fingerprint(collection)
    assert [(e["id"], Path(e["path"]).name) for e in fp["unreadable"]] == [("p02", "p02.png")]
    assert fp["unreadable"][0]["what"].startswith("cannot be read as an image (")
    assert not any(str(photos) in e["what"] for key in ("unreadable", "bad_masks") for e in fp[key]), "it is beside it"
    wrong = {e["id"]: e["what"] for e in fp["bad_masks"]}
    assert wrong["p03"] == "3x3 pixels, its image has 17x12" and not wrong["p04"].startswith("/"), (
        "the path is beside it"
    )
    cleaned = clean(collection, fp)
    left, counted = cleaned.split("train"), fp["splits"]["train"]
    assert counted["images"] == counted["labelled"] == len(left) == len(collection.split("train")) - 1
    assert counted["masks"] == sum(i.mask is not None for i in left) < len(left)
    assert counted["hash"] == collection.split_hash("train")
    assert "p02" not in [i.id for i in cleaned.split("train")] and len(cleaned.items) == 11
    assert cleaned.item("p03").mask is None and cleaned.item("p04").mask is None and cleaned.item("p05").mask
    assert sum("left out" in p.what for p in cleaned.problems) == 3
    assert len(collection.items) == 12 and not collection.problems
    console = Console(record=True, width=200)
    print_fingerprint(fp, console)
    text = console.export_text()
    assert (
        "Unreadable, left out: 1" in text
        and "Masks left out: 2" in text
        and "p02.png" in text
        and "Unlabelled: 2" in text
    )
    for path in (photos / "images").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="12 images"):
        clean(collection, fingerprint(collection))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({0: 5, 255: 5}, "binary 0/255"),
        ({255: 5}, "only 255"),
        ({1: 1, 2: 1, 4: 1}, "from 1 to 4: off by one"),
        ({0: 1, 4: 1}, r"4 is above the number of classes, 3\. Off by one"),
        ({0: 1, 9: 1}, "9 is above the number of classes, 3. Another"),
        ({1: 1, 2: 1, 255: 3}, "No mask pixel is 0"),
    ],
)
def test_suspicious_mask_values(values: dict[int, int], message: str) -> None:
    warnings = mask_warnings(values, 3)
    assert len(warnings) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(warnings[0])
    assert mask_warnings({0: 3, 1: 1, 255: 1}, 3) == [] and mask_warnings({}, 3) == []


def test_colour_masks_without_a_map_are_reported(photos: Path, picture: Callable[..., Path]) -> None:
    picture(photos / "masks" / "p00.png", (9, 20))
    fp = fingerprint(open_data(DataConfig(root=photos)))
    assert "data.colour_map" in fp["bad_masks"][0]["what"]


def test_tags_that_teach_nothing(photos: Path) -> None:
    rows = "".join(f"p{i:02d}.png,x;y\n" for i in range(6))
    (photos / "tags.csv").write_text("image,tags\n" + rows)
    (photos / "classes.txt").write_text("x\ny\nz\n")
    warnings = " ".join(fingerprint(open_data(DataConfig(root=photos)))["warnings"])
    assert "'z' is on no image" in warnings and "always together" in warnings and "every tagged image" in warnings
