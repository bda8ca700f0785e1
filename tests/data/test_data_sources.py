from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.config import DataConfig
from tagmask.data import Collection, Item, open_data
from tagmask.data.find import make_ids
from tagmask.data.source_voc import object_names
from tagmask.errors import DataError

Writer = Callable[..., Path]


def tags_of(collection: Collection) -> dict[str, list[str] | None]:
    return {i.id: None if i.tags is None else [collection.classes[t] for t in i.tags] for i in collection.items}


@pytest.fixture
def three(tmp_path: Path, picture: Writer) -> Path:
    for i, name in enumerate("xyz"):
        picture(tmp_path / "images" / f"{name}.jpg", (4 + i, 5), i)
    return tmp_path


def opened(root: Path, **settings: object) -> Collection:
    return open_data(DataConfig(root=root, val_share=0, **settings))  # type: ignore[arg-type]


EXPECTED = {"x": ["cat", "dog"], "y": [], "z": None}
TABLES = {
    "plain.csv": "image,tags\nx.jpg,dog;cat\ny.jpg,\n",
    "mark.csv": "\ufeffimage,tags\nimages/x.jpg, cat ; dog;\ny,\n",
    "quoted.csv": 'Filename,labels\n"x.jpg","dog;cat"\r\n\r\n"y.jpg",""\r\n',
    "mac.csv": "image,tags\rx.jpg,dog;cat\ry.jpg,\r",
    "semicolons.csv": 'image;tags\nx.jpg;"cat;dog"\ny.jpg;\n',
    "tabs.csv": "id\ttags\nx\tcat;dog;cat\ny\t\n",
    "onehot.csv": "image,cat,dog\nx.jpg,1,1\ny.jpg,0,0\n",
    "floats.csv": "file,dog,cat\nx,1.0,1\ny,0.0,0\n",
    "extra.csv": "width,image,tags\n5,x,cat;dog\n5,y,\n",
    "list.jsonl": '{"image": "x.jpg", "tags": ["dog", "cat"]}\n\n{"file": "y", "tags": []}\n',
    "text.jsonl": '{"image": "./x.jpg", "tags": "dog;cat"}\n{"image": "/y.jpg", "labels": ""}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(three: Path, name: str) -> None:
    (three / name).write_text(TABLES[name], encoding="utf-8")
    collection = opened(three, tags=three / name)
    assert collection.source == "table" and sorted(collection.classes) == ["cat", "dog"] and collection.num_classes == 3
    assert {k: v and sorted(v) for k, v in tags_of(collection).items()} == EXPECTED
    assert not collection.problems
    assert [i.id for i in collection.split("all")] == ["x", "y", "z"]
    assert [i.id for i in collection.split("train")] == ["x", "y"]


def test_one_hot_columns_keep_their_order_and_tags_are_sorted(three: Path) -> None:
    (three / "tags.csv").write_text("image,zebra,ape\nx,1,0\n")
    assert opened(three).classes == ["zebra", "ape"]
    (three / "tags.csv").write_text("image,tags\nx,zebra\ny,ape\n")
    assert opened(three).classes == ["ape", "zebra"]
    (three / "tags.csv").write_text("image,label,other\nx,1,0\ny,0,1\n")
    assert opened(three).classes == ["label", "other"]


def test_separator_and_relative_tags(three: Path) -> None:
    (three / "t.csv").write_text("image,tags\nx,cat|dog\n")
    assert tags_of(opened(three, tags="t.csv", separator="|"))["x"] == ["cat", "dog"]
    assert open_data(DataConfig(tags=three / "t.csv", separator="|", val_share=0)).root == three


BROKEN = {
    "": "image,tags",
    "x.jpg,cat\n": "line 1",
    "image\nx.jpg\n": "line 1",
    "image,tags\nx,cat,dog\n": "line 2.*data.separator",
    "image,tags\n,cat\n": "line 2",
    "image,tags\nx,cat\nx.jpg,dog\n": "lines 2 and 3",
    "image,tags\nq,cat\n": "'q'.*data.images",
    "image,cat,dog\nx,1,0\ny,1,maybe\n": "line 3.*'dog'.*'maybe'",
    "image,tags\nx,\n": "data.classes",
    "image,tags\n": "data.classes",
}


@pytest.mark.parametrize("text", BROKEN)
def test_broken_csv(three: Path, text: str) -> None:
    (three / "tags.csv").write_text(text)
    with pytest.raises(DataError, match=BROKEN[text]) as error:
        opened(three)
    assert "tags.csv" in str(error.value)


@pytest.mark.parametrize(
    "line",
    ["{", '["x"]', '{"image": "x"}', '{"image": 3, "tags": []}', '{"image": "x", "tags": [1]}', '{"tags": ["a"]}'],
)
def test_broken_jsonl(three: Path, line: str) -> None:
    (three / "tags.jsonl").write_text('{"image": "y", "tags": ["cat"]}\n' + line)
    with pytest.raises(DataError, match=r"tags\.jsonl, line 2"):
        opened(three)


def test_not_utf8(three: Path) -> None:
    (three / "tags.csv").write_bytes("image,tags\nx,käse\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"tags\.csv"):
        opened(three)


def test_class_lists(three: Path) -> None:
    (three / "tags.csv").write_text("image,tags\nx,dog\n")
    (three / "classes.txt").write_text("background\ndog\ncat\n")
    assert opened(three).classes == ["dog", "cat"]
    assert opened(three, classes=["cat", "dog"]).item("x").tags == (1,)
    (three / "other.txt").write_text("bird\ndogs\n")
    with pytest.raises(DataError, match="line 2.*'dog'.*'dogs'"):
        opened(three, classes=Path("other.txt"))
    with pytest.raises(DataError, match="'dog'"):
        opened(three, classes=["dog", "dog"])
    with pytest.raises(DataError, match="255"):
        opened(three, classes=[str(i) for i in range(255)])
    with pytest.raises(DataError, match=r"absent\.txt"):
        opened(three, classes=Path("absent.txt"))


def test_what_is_skipped_is_listed(three: Path, mask: Writer) -> None:
    (three / "tags.csv").write_text("image,tags\nx,Cat\nx.jpg,Cat\ngone.jpg,cat\n")
    mask(three / "masks" / "x.png", [[0]])
    mask(three / "masks" / "orphan.png", [[0]])
    collection = opened(three)
    found = {(Path(p.path).name, p.what) for p in collection.problems}
    assert found == {
        ("x.jpg", "tags.csv: line 3 repeats line 2"),
        ("gone.jpg", "tags.csv, line 4: no such image"),
        ("orphan.png", "mask without an image"),
        ("cat", "class 'cat' differs from 'Cat' in upper and lower case only"),
    }
    assert collection.item("x").mask == three / "masks" / "x.png" and collection.item("y").mask is None


def test_names_that_collide(tmp_path: Path, picture: Writer, mask: Writer) -> None:
    for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg", "b/2.png", "c/3.tiny.jpg"):
        picture(tmp_path / "images" / name)
    mask(tmp_path / "masks" / "b" / "1.png", [[1]])
    mask(tmp_path / "masks" / "3.tiny.png", [[1]])
    (tmp_path / "tags.csv").write_text("image,tags\na/1.jpg,u\nb/1,v\nb/2.jpg,u\n3.tiny,v\n")
    collection = opened(tmp_path)
    assert tags_of(collection) == {"a/1": ["u"], "b/1": ["v"], "b/2.jpg": ["u"], "b/2.png": None, "3.tiny": ["v"]}
    assert [i.id for i in collection.items if i.mask] == ["b/1", "3.tiny"]
    (tmp_path / "tags.csv").write_text("image,tags\n1.jpg,u\n")
    with pytest.raises(DataError, match=r"'1\.jpg'"):
        opened(tmp_path)
    # A folder that is not there must not fall back to the image of that name in another folder.
    (tmp_path / "tags.csv").write_text("image,tags\nq/3.tiny.jpg,u\na/1,v\n")
    assert [p.path for p in opened(tmp_path).problems if "line" in p.what] == ["q/3.tiny.jpg"]
    assert make_ids([tmp_path / "a" / "1.jpg"], tmp_path) == ["1"]


def test_decomposed_accents_match(tmp_path: Path, picture: Writer) -> None:
    picture(tmp_path / "images" / "cafe\u0301.jpg")
    (tmp_path / "tags.csv").write_text("image,tags\ncaf\u00e9.jpg,u\n", encoding="utf-8")
    assert opened(tmp_path).items[0].tags == (0,)


def test_mask_folders(three: Path, mask: Writer) -> None:
    (three / "tags.csv").write_text("image,tags\nx,cat\n")
    mask(three / "truth" / "x.png", [[0]])
    assert opened(three).item("x").mask is None
    assert opened(three, masks="truth").item("x").mask == three / "truth" / "x.png"
    with pytest.raises(DataError, match=r"data\.masks"):
        opened(three, masks="absent")
    with pytest.raises(DataError, match=r"data\.masks"):
        opened(three, masks="images")
    (three / "truth" / "x.png").rename(three / "truth" / "x_gt.png")
    with pytest.raises(DataError, match=r"x_gt\.png"):
        opened(three, masks="truth")


def test_images_right_in_the_root(tmp_path: Path, picture: Writer, mask: Writer) -> None:
    picture(tmp_path / "x.jpg")
    mask(tmp_path / "masks" / "x.png", [[0]])
    picture(tmp_path / ".hidden" / "x.jpg")
    (tmp_path / "tags.csv").write_text("image,tags\nx,cat\n")
    assert opened(tmp_path).items == [Item("x", tmp_path / "x.jpg", (0,), tmp_path / "masks" / "x.png")]


def test_class_folders(tmp_path: Path, picture: Writer, mask: Writer) -> None:
    for name in ("dog/1.jpg", "cat/1.jpg", "cat/deep/7.png", "background/2.jpg", "unlabelled/3.jpg", "loose.jpg"):
        picture(tmp_path / name)
    mask(tmp_path / "masks" / "cat" / "1.png", [[0]])
    (tmp_path / "notes").mkdir()
    collection = opened(tmp_path)
    assert collection.source == "folders" and collection.classes == ["cat", "dog"]
    assert tags_of(collection) == {"dog/1": ["dog"], "cat/1": ["cat"], "7": ["cat"], "2": [], "3": None, "loose": None}
    assert collection.item("cat/1").mask is not None and collection.item("dog/1").mask is None
    with pytest.raises(DataError, match="dog"):
        opened(tmp_path, classes=["cat", "dogs"])


def test_split_folders_are_no_classes(tmp_path: Path, picture: Writer) -> None:
    for name in ("train/cat/1.jpg", "test/cat/2.jpg"):
        picture(tmp_path / name)
    with pytest.raises(DataError, match=r"data\.root.*train"):
        opened(tmp_path)
    assert opened(tmp_path / "train").classes == ["cat"]


def write_voc(root: Path, picture: Writer, objects: dict[str, list[str]]) -> None:
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, found in objects.items():
        picture(root / "JPEGImages" / f"{name}.jpg")
        body = "".join(f"<object><name>{n}</name><difficult>0</difficult></object>" for n in found)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{body}</annotation>")


def test_voc_from_annotations(tmp_path: Path, picture: Writer, mask: Writer) -> None:
    write_voc(
        tmp_path, picture, {"2007_1": ["person", "dog", "dog"], "2007_2": [], "2007_3": ["cat"], "2007_4": ["cat"]}
    )
    mask(tmp_path / "SegmentationClass" / "2007_1.png", np.full((8, 10), 15))
    picture(tmp_path / "JPEGImages" / "bare.jpg")
    (tmp_path / "Annotations" / "2007_4.xml").write_text("<annotation><object>")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.joinpath("train.txt").write_text("2007_1\n2007_2\n2007_3\n")
    lists.joinpath("val.txt").write_text("2007_3\n")
    collection = open_data(DataConfig(root=tmp_path))
    assert collection.source == "voc" and len(collection.classes) == 20
    expected = {"2007_1": ["dog", "person"], "2007_2": [], "2007_3": ["cat"], "2007_4": None, "bare": None}
    assert tags_of(collection) == expected
    assert collection.item("2007_1").mask is not None
    assert [i.id for i in collection.split("train")] == ["2007_1", "2007_2"]
    assert [i.id for i in collection.split("val")] == ["2007_3"]
    found = [(Path(p.path).name, p.what) for p in collection.problems]
    assert found[0][0] == "2007_4.xml" and found[1] == ("2007_3", "listed for train and val: does not train")
    with pytest.raises(DataError, match="'person'|'dog'"):
        open_data(DataConfig(root=tmp_path, classes=["cat"]))


def test_voc_with_other_classes_or_a_table(tmp_path: Path, picture: Writer) -> None:
    write_voc(tmp_path, picture, {"1": ["unicorn", "cat"], "2": ["cat"]})
    assert opened(tmp_path).classes == ["cat", "unicorn"]
    (tmp_path / "tags.csv").write_text("image,tags\nJPEGImages/1.jpg,ant\n2,\n")
    (tmp_path / "classes.txt").write_text("background\nbee\nant\n")
    collection = opened(tmp_path)
    assert collection.source == "voc" and tags_of(collection) == {"1": ["ant"], "2": []}
    assert collection.classes == ["bee", "ant"]


def test_voc_objects_marked_difficult(tmp_path: Path) -> None:
    text = "<a><object><name>cat</name><difficult>1</difficult></object><object><name>dog</name></object></a>"
    (tmp_path / "a.xml").write_text(text)
    assert object_names(tmp_path / "a.xml") == ("cat", "dog")
    (tmp_path / "a.xml").write_text("<a><object/></a>")
    with pytest.raises(DataError, match=r"\.xml"):
        object_names(tmp_path / "a.xml")


def test_voc_one_folder_too_high(tmp_path: Path, picture: Writer) -> None:
    write_voc(tmp_path / "VOC2012", picture, {"1": ["cat"]})
    with pytest.raises(DataError, match=r"data\.root=.*VOC2012"):
        opened(tmp_path, source="voc")


def test_roots_that_are_none(tmp_path: Path, picture: Writer) -> None:
    with pytest.raises(DataError, match=r"data\.root"):
        open_data(DataConfig())
    with pytest.raises(DataError, match=r"data\.root"):
        opened(tmp_path / "absent")
    with pytest.raises(DataError, match="There are no images"):
        opened(tmp_path)
    picture(tmp_path / "images" / "x.jpg")
    with pytest.raises(DataError, match=r"no tags.*tags\.csv"):
        opened(tmp_path)
    with pytest.raises(DataError, match=r"data\.root"):
        opened(tmp_path / "images" / "x.jpg")


def test_colour_map_reaches_the_collection(three: Path) -> None:
    (three / "tags.csv").write_text("image,tags\nx,cat\n")
    (three / "map.txt").write_text("1 2 3 cat\n")
    assert opened(three, colour_map="map.txt").colour_map == {(1, 2, 3): 1}


def test_real_photos(msrc: Path) -> None:
    collection = open_data(DataConfig(root=msrc))
    assert collection.source == "voc" and collection.num_classes == 15 and not collection.problems
    assert {name: len(ids) for name, ids in collection.splits.items()} == {"train": 276, "val": 58, "test": 254}
    assert sum(i.tags == () for i in collection.split("train")) == 45
    assert json.loads(json.dumps(collection.splits)) == collection.splits


def test_background_is_no_tag(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    (tmp_path / "tags.csv").write_text("image,tags\na.png,Dog\nb.png,background\n")
    with pytest.raises(DataError, match="background"):
        open_data(DataConfig(root=tmp_path))


def test_a_class_that_looks_like_several_tags_is_pointed_out(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "tags.csv").write_text("image;tags\na.png;ball,tree\n")
    found = open_data(DataConfig(root=tmp_path))
    assert any("data.separator=','" in problem.what for problem in found.problems)
