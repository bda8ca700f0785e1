"""Tables, class lists and split lists as people and programs write them: read rightly, or refused by line."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.config import DataConfig
from tagmask.data import Collection, fingerprint, open_data
from tagmask.data.agreement import disagreement
from tagmask.data.find import check_classes
from tagmask.errors import DataError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos p0 to p7."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(8):
        Image.fromarray(np.full((4, 4, 3), i, dtype=np.uint8)).save(root / f"p{i}.jpg")
    return root


def opened(root: Path, table: str | bytes, name: str = "table.csv", **settings: object) -> Collection:
    path = root / name
    path.write_bytes(table if isinstance(table, bytes) else table.encode())
    return open_data(DataConfig(root=root, tags=path, **{"val_share": 0, **settings}))  # type: ignore[arg-type]


def tags_of(collection: Collection) -> dict[str, list[str]]:
    return {i.id: [collection.classes[t] for t in i.tags] for i in collection.items if i.tags is not None}


def notes(collection: Collection) -> str:
    return "\n".join(f"{problem.path}: {problem.what}" for problem in collection.problems)


def rows(*cells: str) -> str:
    return "image,tags\n" + "".join(f"p{i}.jpg,{cell}\n" for i, cell in enumerate(cells))


LISTS = {
    "\"['red', 'blue']\"": ["blue", "red"],
    '"[""red"", ""blue""]"': ["blue", "red"],
    "['red']": ["red"],
    '"[ ""bl\\u0075e"" ]"': ["blue"],
    "[]": [],
    "[other]": ["[other]"],
}


@pytest.mark.parametrize("cell", LISTS)
def test_lists_in_cells(files: Path, cell: str) -> None:
    assert tags_of(opened(files, rows(cell, "red")))["p0"] == LISTS[cell]


@pytest.mark.parametrize(
    "cell", ["['red' 'blue']", '"[1, 2]"', '"[red, blue]"', '"[""red"", nan]"', "[" * 9999 + "'']"]
)
def test_lists_that_cannot_be_read(files: Path, cell: str) -> None:
    with pytest.raises(DataError, match=r"table\.csv, line 2"):
        opened(files, rows(cell, "red"))


def test_split_column(files: Path) -> None:
    table = "image,tags,Split\np0,red,train\np1,blue,TEST\np2,red,Validation\np3,blue,valid\np4,,training\np5,red,val\n"
    collection = opened(files, table)
    assert collection.splits == {"train": ["p0", "p4"], "val": ["p2", "p3", "p5"], "test": ["p1"]}
    one_hot = "image,red,split\np0,1,train\np1,0,test\n"
    assert opened(files, one_hot).splits == {"train": ["p0"], "test": ["p1"]}
    lines = '{"image": "p0", "tags": ["red"], "split": "train"}\n{"image": "p1", "tags": [], "split": "test"}\n'
    assert opened(files, lines, "table.jsonl").splits == {"train": ["p0"], "test": ["p1"]}
    with pytest.raises(DataError, match="line 3.*'7'"):
        opened(files, "image,tags,split\np0,red,train\np1,red,7\n")
    with pytest.raises(DataError, match="lines 2 and 3"):
        opened(files, "image,tags,split\np0,red,train\np0,red,test\n")


def test_lists_go_before_a_split_column(files: Path, tmp_path: Path) -> None:
    for path in files.glob("*.jpg"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "Valid.txt").write_text("p1.JPG\n")
    collection = opened(tmp_path, "image,tags,split\np0,red,test\np1,red,train\n")
    assert collection.splits == {"train": ["p0"], "val": ["p1"]}
    assert "split column is not read" in notes(collection) and "1 names differ" in notes(collection)


def test_odd_split_columns(files: Path) -> None:
    collection = opened(files, "image,tags,split\np0,red,train\np1,red,\np2,red,nan\n")
    assert collection.splits == {"train": ["p0"]}
    lines = '{"image": "p0", "tags": ["red"], "split": "val"}\n{"image": "p1", "tags": ["red"], "split": null}\n'
    assert opened(files, lines, "table.jsonl").splits == {"train": ["p1"], "val": ["p0"]}
    collection = opened(files, "image,red,partition\np0,1,north\np1,0,south\n")
    assert collection.splits == {"train": ["p0", "p1"]} and "'partition' holds none" in notes(collection)
    assert "'subset'" in notes(opened(files, '{"image": "p0", "tags": ["red"], "subset": 3}', "table.jsonl"))


TWO = {
    "image,filename,tags\np0.jpg,q,red\n": "'image' is read for the photo, not 'filename'",
    "id,image_path,tags\n7,a/p0.jpg,red\n": "'image_path' is read for the photo, not 'id'",
    "image,label,class\np0.jpg,red,3\n": "'label' is read for the tags, not 'class'",
}


@pytest.mark.parametrize("table", TWO)
def test_two_columns_for_one_thing(files: Path, table: str) -> None:
    collection = opened(files, table)
    assert TWO[table] in notes(collection) and tags_of(collection)["p0"] == ["red"]


def test_the_column_that_names_no_photo_is_doubted(files: Path) -> None:
    with pytest.raises(DataError, match="'q'.*'image'.*'filename'"):
        opened(files, "image,filename,tags\nq,p0.jpg,red\n")


def test_long_form_is_united_and_said(files: Path) -> None:
    table = "image,tags\np0,red\np0,blue\np0,red\np1,red\np2,\n"
    collection = opened(files, table)
    assert tags_of(collection) == {"p0": ["blue", "red"], "p1": ["red"], "p2": []}
    assert notes(collection).count("united") == len(collection.problems) == 1


@pytest.mark.parametrize("last,expected", [("", ["red"]), ("p7,blue\np7,blue\n", ["blue", "red"])])
def test_one_row_an_object(files: Path, last: str, expected: list[str]) -> None:
    table = "image,tags\n" + "".join(f"p{i},red\n" * 3 for i in range(8))
    collection = opened(files, table + last)
    assert tags_of(collection)["p7"] == expected
    assert notes(collection) == "table.csv: 8 photos have several rows: their tags are united"


def test_few_photos_that_stand_twice(tmp_path: Path) -> None:
    for i in range(11):
        (tmp_path / f"p{i}.jpg").touch()
    with pytest.raises(DataError, match="lines 2 and 13"):
        opened(tmp_path, rows(*["red"] * 11) + "p0.jpg,blue\n")


def test_the_column_that_is_unique_names_the_photo(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    collection = opened(tmp_path, "filename,path,tags\n1.jpg,a/1.jpg,red\n1.jpg,b/1.jpg,blue\n")
    assert tags_of(collection) == {"a/1": ["red"], "b/1": ["blue"]}
    assert "'path' is read for the photo, not 'filename'" in notes(collection)
    long = "image,id,tags\na/1.jpg,1,red\na/1.jpg,2,blue\n"
    assert tags_of(opened(tmp_path, long)) == {"a/1": ["blue", "red"]}


@pytest.mark.parametrize("no,yes", [("False", "True"), ("no", "YES"), ("FALSE", "true"), ("No", "1")])
def test_yes_and_no(files: Path, no: str, yes: str) -> None:
    assert tags_of(opened(files, f"image,cat\np0,{yes}\np1,{no}\n")) == {"p0": ["cat"], "p1": []}
    both = opened(files, f"image,label,dog\np0,{yes},{no}\np1,{no},{yes}\n")
    assert tags_of(both) == {"p0": ["label"], "p1": ["dog"]} and both.classes == ["label", "dog"]
    assert "yes and no only" in notes(opened(files, rows("yes", "no")))
    assert opened(files, "image,cat\np0,yes\np1,maybe\n").classes == ["maybe", "yes"]


CONFLICTS = ["p0,red\np0.jpg,blue\n", "p0,red\np0,\n", "p0,red;blue\np0,red\n", "x/p0.jpg,red\ny/p0.jpg,blue\n"]


@pytest.mark.parametrize("table", CONFLICTS)
def test_rows_that_contradict(files: Path, table: str) -> None:
    with pytest.raises(DataError, match="lines 2 and 3"):
        opened(files, f"image,tags\n{table}")


LOOSE = ["p0.JPG", "p0.png", "P0.jpg", "C:\\Users\\me\\p0.jpg", "\\\\server\\x\\p0.tif", "/home/me/p0.jpg", "x/p0.JPEG"]


@pytest.mark.parametrize("name", LOOSE)
def test_names_that_differ_a_little(files: Path, name: str) -> None:
    collection = opened(files, f"image,tags\n{name},red\np1.jpg,blue\n")
    assert tags_of(collection) == {"p0": ["red"], "p1": ["blue"]}
    assert "1 names differ" in notes(collection) and len(collection.problems) == 1, "once, with the count"


def test_names_by_the_end_of_their_path(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg", "b/2.png", "3.jpg", "cafe\u0301.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "in" / name)
    root = tmp_path / "in"
    table = "image,tags\nD:\\x\\in\\a\\1.jpg,u\nx/b/1.JPG,v\n/mnt/b/2.jpg,u\n/mnt/in/3.jpg,v\nCAF\u00c9.jpg,u\n"
    collection = opened(root, table)
    assert tags_of(collection) == {"a/1": ["u"], "b/1": ["v"], "b/2.jpg": ["u"], "3": ["v"], "cafe\u0301": ["u"]}
    assert "5 names differ" in notes(collection)
    whole = opened(root, f"image,tags\n{root / 'a' / '1.jpg'},u\n")
    assert tags_of(whole) == {"a/1": ["u"]} and not any("differ" in p.what for p in whole.problems), "it exists"
    missing = opened(root, "image,tags\na/1.jpg,u\nq/a.jpg,v\nc/3.jpg,v\nq/1.jpg,v\n")
    assert tags_of(missing) == {"a/1": ["u"]} and notes(missing).count("no such image") == 3
    for name in ("1.jpg", "b/2.gif"):
        with pytest.raises(DataError, match="may mean"):
            opened(root, f"image,tags\n{name},u\n")
    taken = opened(root, "image,tags\nb/2.jpg,u\nb/2.png,u\nb/2.gif,v\n")
    assert "line 4: no such image" in notes(taken), "both have rows of their own"


def test_accents_in_two_forms_are_one_class(files: Path) -> None:
    table = rows("cafe\u0301", "caf\u00e9", "\u200bcaf\u00e9\u00a0", "caf\u00e9;big\u00a0red", "")
    assert opened(files, table).classes == ["big red", "caf\u00e9"]
    assert opened(files, table, classes=["cafe\u0301", "big red"]).classes == ["caf\u00e9", "big red"]
    assert opened(files, "image,cafe\u0301\np0,1\n", classes=["caf\u00e9"]).item("p0").tags == (0,)


def test_class_lists_of_labelme(files: Path, tmp_path: Path) -> None:
    for ground in ("_background_", "__background__", "bg", "BackGround"):
        assert check_classes(["__ignore__", ground, "blue", "red"], "x") == ["blue", "red"]
        assert check_classes([ground, "blue"], "x") == ["blue"]
        with pytest.raises(DataError, match=ground):
            check_classes(["blue", ground], "x")
    for wrong in (["blue", "__ignore__"], ["__ignore__"], ["a" * 300], ["a\tb\x01"], ["a\nb"]):
        with pytest.raises(DataError):
            check_classes(wrong, "x")
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nblue\nred\n")
    assert opened(files, rows("red", "blue"), classes=tmp_path / "labels.txt").item("p0").tags == (1,)
    with pytest.raises(DataError, match="line 2.*leave the tags empty"):
        opened(files, rows("_background_", "blue"))


@pytest.mark.parametrize("table", ["image,red,blue\np0,0,0\np1,0,0\n", rows("", ""), "image,red\n", "image,tags\n"])
def test_tables_without_any_tag(files: Path, table: str) -> None:
    with pytest.raises(DataError, match=r"no photo there has a tag.*data\.classes"):
        opened(files, table)


def test_odd_classes_are_pointed_out(files: Path) -> None:
    assert "'tags' holds numbers only" in notes(opened(files, rows("0", "1", "1")))
    assert "name the column by the class" in notes(opened(files, rows("0", "1", "1")))
    assert "numbers only" in notes(opened(files, rows("3.0", "12")))
    assert not opened(files, "image,cat\np0,0\np1,1\n").problems, "a column called by its class"
    for word in ("nan", "NaN", "None", "NULL"):
        assert f"class '{word}' is what programs write" in notes(opened(files, rows("red", word)))


@pytest.mark.parametrize("sign", "|,;")
def test_the_separator_that_is_advised_works(files: Path, sign: str) -> None:
    table = "image\ttags\np0\tred\np1\tblue\np2\tred%sblue\np3\tblue%sred\n".replace("%s", sign)
    first = opened(files, table, separator="+")
    assert f"data.separator='{sign}'" in notes(first) and len(first.problems) == 1
    assert opened(files, table, separator=sign).classes == ["blue", "red"]


BROKEN = {
    "empty": b"",
    "blank": b"\n\n  \n",
    "utf-16": "image,tags\np0,red\n".encode("utf-16"),
    "utf-16 without a mark": "image,tags\np0,red\n".encode("utf-16-le"),
    "latin-1": "image,tags\np0,k\u00e4se\n".encode("latin-1"),
    "gb2312": "image,tags\np0,\u732b\u72d7\n".encode("gb2312"),
    "zero byte": b"image,tags\np0,re\0d\n",
    "huge field": b"image,tags\np0," + b"a" * 200_000,
    "long class": b"image,tags\np0," + b"a" * 2000,
    "open quote": b'image,tags\np0,"red\np1,blue\n',
    "two open quotes": b'image,tags\np0,"red\np1,blue"\n',
    "text after a quote": b'image,tags\np0,"red"x\n',
    "column twice": b"image,tags,tags\np0,red,blue\n",
    "tags in a column without a name": b"image,tags,\np0,red,blue\n",
    "no header": b"p0,red\np1,blue\n",
    "other columns": b"image,tags\np0,red,blue\n",
    "control character": b"image,tags\np0,r\x1b[31med\n",
    "control character in a name": b"image,tags\np0\x07,red\n",
    "workbook": b"PK\x03\x04........",
    "old workbook": b"\xd0\xcf\x11\xe0........",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_tables_are_named(files: Path, kind: str) -> None:
    with pytest.raises(DataError, match=r"table\.csv"):
        opened(files, BROKEN[kind])


@pytest.mark.parametrize("name", ["tags.xlsx", "Tags.XLS", "tags.ods"])
def test_workbooks_are_refused_with_the_way_out(files: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "p0.jpg").symlink_to(files / "p0.jpg")
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    for settings in ({}, {"tags": name}):
        with pytest.raises(DataError, match=rf"{name}.*CSV UTF-8"):
            open_data(DataConfig(root=tmp_path, **settings))  # type: ignore[arg-type]
    (tmp_path / "TAGS.csv").write_text("image,tags\np0,red\n")
    assert open_data(DataConfig(root=tmp_path)).classes == ["red"]


GOOD = {
    "pandas' index": ",image,tags\n0,p0,red\n1,p1,blue\n",
    "Unnamed: 0": "Unnamed: 0,image,blue,red\n5,p0,0,1\n7,p1,1,0\n",
    "empty columns of Excel": "image,tags,,\np0,red,,\np1,blue,,\n",
    "quotes after blanks": 'image, tags\np0, "red"\np1, "blue"\n',
    "two marks": "\ufeff\ufeffimage,tags\np0,red\np1,blue\n",
    "blank lines first": "\r\n\r\nimage;tags\r\np0;red\r\np1;blue\r\n",
    "File Name": "File Name,Category\np0,red\np1,blue\n",
}


@pytest.mark.parametrize("kind", GOOD)
def test_tables_as_programs_write_them(files: Path, kind: str) -> None:
    collection = opened(files, GOOD[kind])
    assert tags_of(collection) == {"p0": ["red"], "p1": ["blue"]} and not collection.problems


JSONL = [
    '{"image": "p0", "tags": ["\\ud800"]}',
    "[" * 99_999,
    '{"image": "p0", "tags": ["a"], "tags": ["b"]}',
    "1" * 9999,
]


@pytest.mark.parametrize("line", JSONL)
def test_broken_jsonl(files: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"table\.jsonl, line 2"):
        opened(files, '{"image": "p1", "tags": ["line\u2028"]}\n' + line, "table.jsonl")


def test_masks_that_show_other_classes(tmp_path: Path) -> None:
    for i in range(6):
        Image.new("RGB", (4, 4)).save(tmp_path / f"p{i}.jpg")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4), i % 2 + 1, dtype=np.uint8)).save(tmp_path / "masks" / f"p{i}.png")
    (tmp_path / "tags.csv").write_text(rows(*["blue", "red"] * 3))
    assert not any("disagree" in text for text in fingerprint(open_data(DataConfig(root=tmp_path)))["warnings"])
    (tmp_path / "classes.txt").write_text("red\nblue\n")
    found = fingerprint(open_data(DataConfig(root=tmp_path)))["warnings"]
    assert sum("disagree on 6 of 6 photos" in text for text in found) == 1


def test_disagreement() -> None:
    fine = [((0,), {0, 1, 255})] * 3 + [((), {0}), (None, {5}), ((0, 1), {0, 1}), ((1,), {255})]
    assert disagreement(fine) == [] and disagreement([((0,), {2})]) == [], "one photo shows nothing"
    assert disagreement([*fine, *[((0,), {0, 2})] * 4]) != []
    assert disagreement([((0,), {0})] * 3) != [], "no object although there are tags"


def test_mutated_tables_are_read_or_refused(files: Path) -> None:
    """Whatever 400 damaged tables hold: a collection or a DataError."""
    source, good = random.Random(7), [rows("red", "blue", "red;blue", ""), *GOOD.values(), *TWO]
    good += ["image,red,blue\np0,1,0\np1,0,1\n", "image,tags,split\np0,red,train\np1,blue,test\n"]
    bits = [
        '"',
        "'",
        ",",
        ";",
        "\n",
        "\r",
        "\0",
        "[",
        "]",
        "\u0301",
        "\ufeff",
        "\u2028",
        "/",
        "\\",
        "..",
        "nan",
        "tags",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(400):
            text = source.choice(good)
            for _ in range(source.randint(1, 4)):
                start = source.randrange(len(text) + 1)
                text = text[:start] + source.choice(bits) + text[start + source.randint(0, 4) :]
            data = bytearray(text.encode())
            if source.random() < 0.2:
                data[source.randrange(len(data))] = source.randrange(256)
            try:
                assert opened(files, bytes(data)).classes
            except DataError as error:
                assert "table.csv" in str(error)
