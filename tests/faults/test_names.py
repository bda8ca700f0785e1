"""Names that come from data lead nowhere: no mask is written and no file read outside of the folders named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.config import DataConfig
from tagmask.data import Collection, Item, fingerprint, open_data
from tagmask.data.names import LONGEST, check_name, flaw
from tagmask.data.source_voc import object_names
from tagmask.errors import DataError
from tagmask.files import write_text

BAD = [
    "", " ", "../x", "a/../../x", "a\\..\\x", "..", "/x", "\\\\server\\x", "C:\\x", "c:/x", "a\0b", "a\nb", "a\x1b[2Jb",
    "x" * 300, "a/" + "x" * 300, "é" * 126, "caf\udce9",
]  # fmt: skip
GOOD = ["a", "a/b", "a.b", "..a", "a..b", "a b", "日本", "x" * LONGEST, "C: view", "a'b", '=cmd|" /c"!A1', "./a", "-o"]


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused(name: str, tmp_path: Path) -> None:
    assert flaw(name)
    with pytest.raises(DataError, match="^list.txt, line 3: "):
        check_name(name, "list.txt, line 3")
    with pytest.raises(DataError):
        Collection("table", tmp_path, ["a"], [Item(name, tmp_path / "x.jpg", None)])


@pytest.mark.parametrize("name", GOOD)
def test_good_names_pass(name: str) -> None:
    assert flaw(name) == "" and check_name(name, "") == name


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * LONGEST, "日" * (LONGEST // 3)):
        write_text(tmp_path / f"{name}.png", "x")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    root = tmp_path / "a" / "b" / "cub"
    for name in ("images/p.png", "images/q.png", "images/r.png", "../../x/p.png"):
        photo(root / name)
    for name, lines in {
        "images.txt": ["p.png", "q.png", "r.png"], "image_class_labels.txt": ["1", "2", "1"],
        "train_test_split.txt": ["1", "1", "0"], "bounding_boxes.txt": ["0 0 5 5", "1 1 9 7", "0.0 2.0 3.0 4.0"],
        "classes.txt": ["A", "B"],
    }.items():  # fmt: skip
        (root / name).write_text("".join(f"{i} {line}\n" for i, line in enumerate(lines, 1)))
    return root


def test_cub_as_it_should_be(cub: Path) -> None:
    collection = open_data(DataConfig(root=cub))
    assert [item.id for item in collection.items] == ["p", "q", "r"]
    assert not [warning for warning in fingerprint(collection)["warnings"] if "box" in warning]


@pytest.mark.parametrize("name", ["../../../x/p.png", "/etc/passwd", "a\\..\\x.png", "x" * 300 + ".png", "a\x1b.png"])
def test_cub_names_stay_in_their_folder(cub: Path, name: str) -> None:
    (cub / "images.txt").write_text(f"1 p.png\n2 {name}\n3 r.png\n")
    with pytest.raises(DataError, match=r"images\.txt, line 2"):
        open_data(DataConfig(root=cub))


@pytest.mark.parametrize(
    "box", ["0 0 nan 5", "-9 -9 5 inf", "-9 -9 20 20", "0 0 1e300 5", "-inf 0 5 5", "0 0 5", "1 1 -4 4"][:]
)
def test_cub_boxes_are_finite(cub: Path, box: str) -> None:
    (cub / "bounding_boxes.txt").write_text(f"1 0 0 5 5\n2 {box}\n3 1 1 2 2\n")
    with pytest.raises(DataError, match=r"bounding_boxes\.txt, line 2"):
        open_data(DataConfig(root=cub))


def test_boxes_that_reach_out_of_their_photo_are_counted(cub: Path) -> None:
    (cub / "bounding_boxes.txt").write_text("1 0 0 5 5\n2 5 5 50 50\n3 1 1 2 2\n")
    found = fingerprint(open_data(DataConfig(root=cub)))
    assert [warning for warning in found["warnings"] if "box" in warning and "'q'" in warning]


@pytest.mark.parametrize("listed", ["../../x/p.png", "/etc/passwd", "y" * 5000])
def test_lists_and_tables_find_only_photos_that_are_there(tmp_path: Path, listed: str) -> None:
    root = tmp_path / "data"
    photo(tmp_path / "x" / "p.png")
    for i in range(3):
        photo(root / f"p{i}.png", i)
    (root / "tags.csv").write_text(f"image,tags\np0.png,a\np1.png,a\np2.png,b\n{listed},a\n")
    (root / "val.txt").write_text(f"p1\n{listed}\n")
    collection = open_data(DataConfig(root=root))
    assert [item.id for item in collection.items] == ["p0", "p1", "p2"] and collection.splits["val"] == ["p1"]
    assert len(collection.problems) == 2


# Names on disk


def test_names_that_are_not_utf8_are_listed(tmp_path: Path) -> None:
    for i in range(3):
        photo(tmp_path / "cat" / f"p{i}.png", i)
        photo(tmp_path / "dog" / f"q{i}.png", i)
    latin = os.fsencode(tmp_path)
    os.rename(tmp_path / "cat" / "p0.png", latin + b"/cat/caf\xe9.png")
    os.mkdir(latin + b"/v\xf6gel")
    photo(tmp_path / "x.png").rename(os.fsdecode(latin + b"/v\xf6gel/x.png"))
    collection = open_data(DataConfig(root=tmp_path))
    found = fingerprint(collection)
    assert collection.classes == ["cat", "dog"] and len(collection.items) == 5
    assert sum("not UTF-8" in entry["what"] for entry in found["problems"]) == 2


def test_odd_bytes_of_a_name_can_be_written_about(tmp_path: Path) -> None:
    write_text(tmp_path / "report.html", "left out: caf\udce9.png")
    assert (tmp_path / "report.html").read_bytes().startswith(b"left out: caf\\udce9")


def test_long_names_are_read(tmp_path: Path) -> None:
    photo(tmp_path / "a" / ("y" * LONGEST + ".png"))
    photo(tmp_path / "a" / ("日" * 83 + ".jpg"))
    photo(tmp_path / "b" / "p.png")
    found = fingerprint(open_data(DataConfig(root=tmp_path)))
    assert found["counts"]["images"] == 3 and not found["problems"] and not found["unreadable"]


# Annotations of VOC


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    (tmp_path / "Annotations").mkdir()
    for i in range(4):
        photo(tmp_path / "JPEGImages" / f"p{i}.png", i)
        annotate(tmp_path, i, "<annotation><object><name>red</name></object></annotation>")
    return tmp_path


def annotate(root: Path, i: int, text: str | bytes) -> Path:
    path = root / "Annotations" / f"p{i}.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_annotations_that_are_all_broken_are_named(voc: Path) -> None:
    for i in range(4):
        annotate(voc, i, "<annotation><path>C:\\me & you</path><object><name>red</name></object></annotation>")
    with pytest.raises(DataError, match=r"p0\.xml: not a readable annotation.*&amp;"):
        open_data(DataConfig(root=voc))
    annotate(voc, 3, "<annotation></annotation>")  # readable, and of no help
    with pytest.raises(DataError, match=r"p0\.xml"):
        open_data(DataConfig(root=voc))


DEEP = "<a>" * 20_000 + "</a>" * 20_000
LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "' + "&a;" * 50 + '"><!ENTITY c "' + "&b;" * 5000 + '">]>'


@pytest.mark.parametrize(
    "text",
    [
        "<annotation>&</annotation>",
        "",
        b"\xff\xfe\x00",
        "<annotation><object/></annotation>",
        "<?xml version='1.0' encoding='nonsense'?><annotation/>",
        "<?xml version='1.0' encoding='gb-nonsense'?><annotation/>",
        b"<?xml version='1.0' encoding='gb2312'?><annotation>" + b"\xff\xff</annotation>",
        DEEP[:-1],
    ],
    ids=["ampersand", "empty", "bytes", "no name", "encoding", "other encoding", "wrong bytes", "deep"],
)
def test_one_broken_annotation_is_listed(voc: Path, text: str | bytes) -> None:
    path = annotate(voc, 2, text)
    collection = open_data(DataConfig(root=voc, val_share=0))
    assert [Path(problem.path).name for problem in collection.problems] == ["p2.xml"]
    assert sum(item.tags is not None for item in collection.items) == 3
    with pytest.raises(DataError, match="^" + str(path)):
        object_names(path)


@pytest.mark.parametrize("encoding", ["gb2312", "GBK", "shift_jis", "big5", "utf-8", "utf-16", "iso-8859-1"])
def test_annotations_in_other_encodings_are_read(voc: Path, encoding: str) -> None:
    name = "café" if encoding == "iso-8859-1" else "山"
    text = f"<?xml version='1.0' encoding='{encoding}'?><annotation><object><name>{name}</name></object></annotation>"
    assert object_names(annotate(voc, 0, text.encode(encoding))) == (name,)


def test_deep_and_growing_annotations_end(voc: Path) -> None:
    assert object_names(annotate(voc, 0, DEEP)) == ()
    with pytest.raises(DataError, match=r"p1\.xml"):
        object_names(annotate(voc, 1, LAUGHS + "<a>" + "&c;" * 2000 + "</a>"))
