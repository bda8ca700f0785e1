"""VOC with SBD, COCO and CUB in exactly their own layouts, in miniature, whole and broken."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.io import savemat
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.config import DataConfig
from tagmask.data import Collection, clean, fingerprint, open_data, print_fingerprint, read_mask
from tagmask.data.benchmarks import ARCHIVES, BENCHMARKS, check_archives, count_lists
from tagmask.data.json_stream import stream_json
from tagmask.data.source_coco import COCO_CATEGORIES, LABELS, read_coco_tags
from tagmask.errors import DataError

Writer = Callable[..., Path]


def opened(root: Path, **settings: Any) -> Collection:
    return open_data(DataConfig(root=root, **{"val_share": 0, **settings}))


def write_sbd(folder: Path, masks: dict[str, np.ndarray], train: list[str], val: list[str]) -> Path:
    (folder / "cls").mkdir(parents=True)
    for name, values in masks.items():
        record = {"Segmentation": values.astype(np.uint8), "Boundaries": np.zeros((20, 1)), "CategoriesPresent": [1]}
        savemat(folder / "cls" / f"{name}.mat", {"GTcls": record}, do_compression=True)
    (folder / "train.txt").write_text("\n".join(train) + "\n")
    (folder / "val.txt").write_text("\n".join(val) + "\n")
    return folder


@pytest.fixture
def voc(tmp_path: Path, picture: Writer, mask: Writer) -> Path:
    """VOCdevkit/VOC2012 with eight photos, SBD beside it: a, b train; c, d val; e, f, g only in SBD; t for test."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    (root / "Annotations").mkdir(parents=True)
    for i, name in enumerate("abcdefgt"):
        picture(root / "JPEGImages" / f"2008_{name}.jpg", (6, 9), i)
        objects = ["person", "dog"] if i % 2 else ["tvmonitor"]
        body = "".join(f"<object><name>{o}</name><difficult>0</difficult></object>" for o in objects)
        if name != "t":
            (root / "Annotations" / f"2008_{name}.xml").write_text(f"<annotation>{body}</annotation>")
    for name in "abcd":
        mask(root / "SegmentationClass" / f"2008_{name}.png", np.full((6, 9), 20))
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, ids in {"train": "ab", "val": "cd", "trainval": "abcd", "test": "t"}.items():
        (lists / f"{name}.txt").write_text("".join(f"2008_{i}\n" for i in ids))
    sbd = {f"2008_{i}": np.full((6, 9), 12) for i in "acefg"}
    write_sbd(tmp_path / "benchmark_RELEASE" / "dataset", sbd, ["2008_a", "2008_c", "2008_e"], ["2008_f", "2008_g"])
    return root


def ids(collection: Collection, split: str) -> list[str]:
    return [item.id.removeprefix("2008_") for item in collection.split(split)]


def test_voc_lists_and_tags(voc: Path) -> None:
    collection = opened(voc)
    assert collection.source == "voc" and collection.benchmark == "voc2012" and not collection.problems
    assert [ids(collection, s) for s in ("train", "val")] == [["a", "b"], ["c", "d"]]
    assert [collection.classes[t] for t in collection.item("2008_b").tags or ()] == ["dog", "person"]
    assert [i.id for i in (collection.item(n) for n in collection.splits["test"])] == ["2008_t"]
    assert collection.item("2008_t").tags is None


def test_sbd_masks_fill_in_for_absent_ones(voc: Path) -> None:
    collection = opened(voc, train="train_aug")
    assert ids(collection, "train") == ["a", "b", "e", "f", "g"], "VOC's train and SBD without VOC's val"
    values = {i.id[-1]: int(read_mask(i.mask, 20)[0, 0]) for i in collection.items if i.mask is not None}
    assert values == dict.fromkeys("abcd", 20) | dict.fromkeys("efg", 12), "VOC's own masks come first"
    assert opened(voc, masks="SegmentationClass").item("2008_e").mask is None


def test_own_lists_are_splits_of_their_own(voc: Path) -> None:
    collection = opened(voc, train="train_aug", val="train")
    assert ids(collection, "train") == ["e", "f", "g"] and ids(collection, "val") == ["a", "b"]
    assert ids(collection, "list:train") == ["a", "b"] and ids(collection, "list:val") == ["c", "d"]
    with pytest.raises(DataError, match="list:trainval.*list:train_aug"):
        collection.split("list:trainval")
    (voc / "JPEGImages" / "2008_a.jpg").write_bytes(b"broken")
    cleaned = clean(collection, fingerprint(collection))
    assert ids(cleaned, "list:train") == ["b"] and "2008_a" not in cleaned.lists["train_aug"]


def test_segmentation_class_aug_comes_before_mat(voc: Path, mask: Writer) -> None:
    mask(voc / "SegmentationClassAug" / "2008_e.png", np.full((6, 9), 3))
    (voc / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("2008_a\n2008_e\n")
    collection = opened(voc, train="train_aug", val="val")
    assert ids(collection, "train") == ["a", "e"], "a list that is there is taken as it is"
    assert collection.item("2008_e").mask == voc / "SegmentationClassAug" / "2008_e.png"


def test_check_counts_and_names_the_archive(voc: Path) -> None:
    found = fingerprint(opened(voc))
    rows = {row["list"]: (row["found"], row["expected"]) for row in found["benchmark"]["lists"]}
    assert rows == {"train": (2, 1464), "train_aug": (5, 10582), "val": (2, 1449), "test": (1, 1456)}
    assert sum("VOCtrainval_11-May-2012.tar" in w for w in found["warnings"]) == 2
    console = Console(record=True, width=200)
    print_fingerprint(found, console)
    text = console.export_text()
    assert "10582" in text and "differs" in text and "VOCtrainval" in text
    masks = {row["list"]: row["masks"] for row in found["benchmark"]["lists"]}
    assert masks == {"train": 2, "train_aug": 5, "val": 2, "test": None}, "VOC's own and SBD's; none of test"
    (voc / "SegmentationClass" / "2008_b.png").unlink()
    rows = {row["list"]: row for row in fingerprint(opened(voc))["benchmark"]["lists"]}
    assert (
        rows["train"]["masks"] == 1
        and "1 photos have no mask to be scored with. It comes with VOCtrainval" in (rows["train"]["what"])
    )
    for path in (voc.parent.parent / "benchmark_RELEASE" / "dataset").glob("*.txt"):
        path.unlink()
    row = fingerprint(opened(voc))["benchmark"]["lists"][1]
    assert row["found"] is None and "benchmark.tgz" in row["what"] and "convert sbd" in row["what"]
    with pytest.raises(DataError, match=r"train_aug.*benchmark\.tgz"):
        opened(voc, train="train_aug")


def test_archives_are_compared_with_what_was_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="VOCtrainval"):
        check_archives(tmp_path)
    (tmp_path / "val2017.zip").write_bytes(b"whole")
    (tmp_path / "benchmark.tgz").write_bytes(b"broken off")
    # MD5 of 'whole', as md5sum prints it.
    monkeypatch.setitem(ARCHIVES, "val2017.zip", "356c9ee60e9da05301adc3bd96f6b383")
    rows = {row["archive"]: row for row in check_archives(tmp_path)}
    assert rows["val2017.zip"]["whole"] and not rows["benchmark.tgz"]["whole"]
    assert "82b4d87ceb2ed10f6038a1cba92111cb" in rows["benchmark.tgz"]["what"]
    result = CliRunner().invoke(app, ["check", "--archives", str(tmp_path)])
    assert result.exit_code == 1 and "benchmark.tgz: differs" in result.output and "as published" in result.output
    (tmp_path / "benchmark.tgz").unlink()
    shown = CliRunner().invoke(app, ["check", "--archives", str(tmp_path), "--json"])
    assert shown.exit_code == 0 and json.loads(shown.stdout)[0]["archive"] == "val2017.zip"
    named = " ".join(listed.archive for lists in BENCHMARKS.values() for listed in lists.values())
    assert all(name in named for name in ARCHIVES), "what a missing list names can be checked"


def test_lists_of_the_published_size_are_fine() -> None:
    lists = {name: [str(i) for i in range(listed.photos)] for name, listed in BENCHMARKS["voc2012"].items()}
    assert not any(row["what"] for row in count_lists("voc2012", lists, lists["train_aug"]))
    assert [listed.photos for listed in BENCHMARKS["coco2014"].values()] == [82081, 40137]
    assert [listed.photos for listed in BENCHMARKS["cub200_2011"].values()] == [5994, 5794]


def test_voc_layouts_of_other_classes_are_no_benchmark(voc: Path) -> None:
    (voc / "classes.txt").write_text("person\ndog\ntvmonitor\n")
    collection = opened(voc)
    assert collection.benchmark is None and fingerprint(collection)["benchmark"] is None


def test_voc_without_photos_names_the_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"VOCtrainval_11-May-2012\.tar"):
        opened(tmp_path, source="voc")


def test_sbd_files_that_are_broken_or_absent(voc: Path) -> None:
    folder = voc.parent.parent / "benchmark_RELEASE" / "dataset" / "cls"
    (folder / "2008_e.mat").write_bytes(b"no mat")
    savemat(folder / "2008_f.mat", {"GTinst": {"Segmentation": np.zeros((6, 9))}})
    for name, message in (("e", "2008_e"), ("f", "GTcls"), ("x", "2008_x")):
        with pytest.raises(DataError, match=message):
            read_mask(folder / f"2008_{name}.mat", 20)
    (folder.parent / "train.txt").write_text("2008_e\n2008_gone\n")
    problems = opened(voc).problems
    assert [p.path for p in problems] == ["2008_gone"]


def coco_json(
    path: Path, images: list[dict], annotations: list[dict], categories: dict[int, str] | None = None
) -> Path:
    """As the real files: 2014's has its categories last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [
        {"supercategory": "any", "id": i, "name": n}
        for i, n in (COCO_CATEGORIES if categories is None else categories).items()
    ]
    content = {"info": {"year": 2014, "list": [1, {"a": "]}"}]}, "images": images, "licenses": []}
    path.write_text(json.dumps({**content, "annotations": annotations, "categories": listed}), encoding="utf-8")
    return path


def image(id: int, split: str = "train2014", size: tuple[int, int] = (8, 10)) -> dict:
    return {"id": id, "file_name": f"COCO_{split}_{id:012d}.jpg", "height": size[0], "width": size[1]}


def annotation(image: int, category: int, id: int = 1, **more: Any) -> dict:
    box = [[0, 0, 4, 0, 4, 4, 0, 4]]
    return {"image_id": image, "category_id": category, "id": id, "iscrowd": 0, "segmentation": box, **more}


@pytest.fixture
def coco(tmp_path: Path, picture: Writer) -> Path:
    for split, numbers in (("train2014", (1, 2, 3)), ("val2014", (7, 8))):
        for i in numbers:
            picture(tmp_path / split / image(i, split)["file_name"], (8, 10), i)
    notes = tmp_path / "annotations"
    annotations = [annotation(1, 90, 1), annotation(2, 1, 2), annotation(1, 13, 3), annotation(1, 90, 4)]
    coco_json(notes / "instances_train2014.json", [image(i) for i in (1, 2, 3)], annotations)
    coco_json(notes / "instances_val2014.json", [image(i, "val2014") for i in (7, 8)], [annotation(8, 18)])
    return tmp_path


def test_coco(coco: Path) -> None:
    collection = opened(coco)
    assert collection.source == "coco" and collection.benchmark == "coco2014" and len(collection.classes) == 80
    names = {i.id[-1]: [collection.classes[t] for t in i.tags or ()] for i in collection.items}
    assert names == {"1": ["stop sign", "toothbrush"], "2": ["person"], "3": [], "7": [], "8": ["dog"]}
    assert [i.id[-1] for i in collection.split("train")] == ["1", "2"], "photos without annotation are in no list"
    assert [i.id[-1] for i in collection.split("val")] == ["8"]
    rows = fingerprint(collection)["benchmark"]["lists"]
    assert [(r["found"], r["expected"]) for r in rows] == [(2, 82081), (1, 40137)]


def test_coco_ids_are_remapped() -> None:
    assert list(LABELS.values()) == list(range(1, 81)) and len(set(COCO_CATEGORIES.values())) == 80
    known = {1: "person", 12: None, 13: "stop sign", 44: "bottle", 67: "dining table", 90: "toothbrush"}
    assert {i: COCO_CATEGORIES.get(i) for i in known} == known
    assert [LABELS[i] for i in (1, 11, 13, 90)] == [1, 11, 12, 80]


def test_coco_of_two_years(coco: Path, picture: Writer) -> None:
    picture(coco / "images" / "train2014" / image(1)["file_name"])  # photos may lie in images/, too
    for name in ("train2014", "val2014"):
        (coco / "images" / name).mkdir(parents=True, exist_ok=True)
        for path in (coco / name).iterdir():
            path.rename(coco / "images" / name / path.name)
    picture(coco / "images" / "train2017" / "000000000005.jpg")
    coco_json(
        coco / "annotations" / "instances_train2017.json",
        [{"id": 5, "file_name": "000000000005.jpg", "height": 8, "width": 10}],
        [annotation(5, 2)],
    )
    with pytest.raises(DataError, match=r"data\.train=train2017"):
        opened(coco)
    collection = opened(coco, train="train2017")
    assert collection.benchmark == "coco2017" and [i.id for i in collection.split("train")] == ["000000000005"]
    assert len(opened(coco, train="train2014", val="val2014").split("train")) == 2


def test_coco_reads_what_was_converted(coco: Path, mask: Writer) -> None:
    mask(coco / "masks" / "train2014" / "COCO_train2014_000000000001.png", np.full((8, 10), 80))
    for split in ("train2014", "val2014"):
        tags = read_coco_tags(coco / "annotations" / f"instances_{split}.json")
        rows = [{"image": n, "tags": [list(COCO_CATEGORIES.values())[t] for t in found]} for n, found in tags.items()]
        (coco / f"tags_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = opened(coco)
    for path in (coco / "annotations").iterdir():
        path.write_text("{ not even read")
    after = opened(coco)
    assert after.items == before.items and after.splits == before.splits
    assert after.items[0].mask is not None and after.items[1].mask is None
    (coco / "tags_val2014.jsonl").write_text('{"image": "a.jpg", "tags": ["unicorn"]}\n')
    with pytest.raises(DataError, match=r"tags_val2014\.jsonl, line 1"):
        opened(coco)


def test_coco_broken(coco: Path) -> None:
    path = coco / "annotations" / "instances_train2014.json"
    cases: list[tuple[list[dict], list[dict], dict | None, str]] = [
        ([image(1)], [annotation(9, 1)], None, "image 9"),
        ([image(1)], [annotation(1, 12, 77)], None, "annotation 77 .*category 12"),
        ([image(1)], [{"id": 4}], None, "image_id"),
        ([], [], None, "images"),
        ([{"id": 1}], [], None, "file_name"),
        ([image(1) | {"file_name": "../a.jpg"}], [], None, r"\.\./a\.jpg"),
        ([image(1)], [], {1: "unicorn"}, "unicorn.*person"),
    ]
    for images, found, categories, message in cases:
        coco_json(path, images, found, categories)
        with pytest.raises(DataError, match=message) as error:
            opened(coco)
        assert path.name in str(error.value)


def test_coco_names_the_missing_archive(coco: Path) -> None:
    for photo in (coco / "val2014").iterdir():
        photo.unlink()
    archives = r"annotations_trainval2014\.zip and val2014\.zip"
    for role in ("train", "val", "test"):
        with pytest.raises(DataError, match=f"val2014.*{archives}"):
            opened(coco, **{role: "val2014"})
    collection = opened(coco, val_share=0.5)
    assert [i.id[-1] for name in ("train", "val") for i in collection.split(name)] in (["1", "2"], ["2", "1"])
    assert all(len(collection.split(name)) == 1 for name in ("train", "val")), "val is held out of train"
    (problem,) = collection.problems
    assert problem.path == str(coco / "val2014") and re.search(archives, problem.what)
    with pytest.raises(DataError, match=r"instances_train2014\.json.*annotations_trainval2014\.zip"):
        opened(coco / "val2014", source="coco")
    next((coco / "train2014").glob("*2.jpg")).unlink()
    (coco / "annotations" / "instances_val2014.json").unlink()
    collection = opened(coco)
    assert [(Path(p.path).name[-5:], "not there" in p.what) for p in collection.problems] == [("2.jpg", True)]


def test_coco_without_photos_to_train_on_can_be_scored(coco: Path) -> None:
    for photo in (coco / "train2014").iterdir():
        photo.unlink()
    collection = opened(coco)
    assert [i.id[-1] for i in collection.split("val")] == ["8"] and collection.split("train") == []
    assert [Path(p.path).name for p in collection.problems] == ["train2014"]
    for photo in (coco / "val2014").iterdir():
        photo.unlink()
    with pytest.raises(DataError, match=r"train2014\.zip"):
        opened(coco)


def test_json_stream_equals_json(tmp_path: Path) -> None:
    value = {"a": [1, -23.5e3, 'ä]\\"}', {"b": [1, [2]], "item": [3]}, None], "empty": [], "n": 12, "o": [{"x": []}]}
    (tmp_path / "a.json").write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    found = list(stream_json(tmp_path / "a.json", ("o", "a", "empty")))
    assert found == [("o", {"x": []}), *(("a", part) for part in value["a"])]  # type: ignore[attr-defined]
    assert [type(part) for _, part in found[1:3]] == [int, float]
    for key in ("n", "absent"):
        with pytest.raises(DataError, match=f"a.json.*list '{key}'"):
            list(stream_json(tmp_path / "a.json", ("a", key)))


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [{"id": 1}, {"id"',
        '{"a": [{"id": 1}',
        '{"a": [1,]}',
        '{"a": [1 2]}',
        "{1: 2}",
        "",
        '{"a": ["\xe9"]}',
        "{}}",
    ],
)
def test_json_stream_names_a_broken_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin1")
    for path in (tmp_path / "a.json", tmp_path / "absent.json"):
        with pytest.raises(DataError, match=path.name):
            list(stream_json(path, ("a",)))


def test_json_stream_holds_one_value_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("w") as file:
        file.write('{"a": [' + ",".join('{"text": "' + "x" * 1000 + '"}' for _ in range(20_000)) + "]}")
    tracemalloc.start()
    assert sum(1 for _ in stream_json(tmp_path / "a.json", ("a",))) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6, "of 20 MB"


CUB = {
    "images.txt": "1 001.Albatross/A one.jpg\n2 001.Albatross/A_2.jpg\n3 002.Crow/C_3.jpg\n",
    "image_class_labels.txt": "1 1\n2 1\n3 2\n",
    "train_test_split.txt": "1 1\n2 0\n3 1\n",
    "bounding_boxes.txt": "1 1.0 2.0 3.0 4.0\n2 0.0 0.0 10.0 8.0\n3 5.5 1.0 2.0 2.0\n",
    "classes.txt": "1 001.Albatross\n2 002.Crow\n",
}


@pytest.fixture
def cub(tmp_path: Path, picture: Writer) -> Path:
    for name, text in CUB.items():
        (tmp_path / name).write_text(text)
    for name in ("001.Albatross/A one.jpg", "001.Albatross/A_2.jpg", "002.Crow/C_3.jpg"):
        picture(tmp_path / "images" / name)
    return tmp_path


def test_cub(cub: Path) -> None:
    collection = opened(cub)
    assert collection.source == "cub" and collection.classes == ["001.Albatross", "002.Crow"]
    assert {i.id: (i.tags, i.boxes) for i in collection.items} == {
        "A one": ((0,), ((1.0, 2.0, 4.0, 6.0),)),
        "A_2": ((0,), ((0.0, 0.0, 10.0, 8.0),)),
        "C_3": ((1,), ((5.5, 1.0, 7.5, 3.0),)),
    }
    assert collection.splits == {"train": ["A one", "C_3"], "test": ["A_2"]}
    rows = fingerprint(collection)["benchmark"]["lists"]
    assert [(r["found"], r["expected"]) for r in rows] == [(2, 5994), (1, 5794)]


@pytest.mark.parametrize(
    "name,text,message",
    [
        ("bounding_boxes.txt", None, r"CUB_200_2011\.tgz"),
        ("bounding_boxes.txt", "1 1 2 3 4\n2 0 0 5 5\n3 1 1 0 4\n", "image 3"),
        ("bounding_boxes.txt", "1 1 2 3 4\n2 0 0 5\n", "line 2"),
        ("bounding_boxes.txt", "1 1 2 3 4\n2 0 0 x 5\n3 1 1 1 1\n", "image 2"),
        ("image_class_labels.txt", "1 1\n2 1\n3 9\n", "image 3.*class 9"),
        ("image_class_labels.txt", "1 1\n2 1\n", "image 3"),
        ("train_test_split.txt", "1 1\n2 0\n3 1\n4 0\n", "image 4"),
        ("train_test_split.txt", "1 1\n2 2\n3 1\n", "image 2"),
        ("images.txt", "1 a.jpg\n1 b.jpg\n", "line 2.*number 1"),
        ("images.txt", "1 a.jpg\n2 b.jpg\n3 c.jpg\n", r"images\.txt"),
    ],
)
def test_cub_broken(cub: Path, name: str, text: str | None, message: str) -> None:
    if text is None:
        (cub / name).unlink()
    else:
        (cub / name).write_text(text)
    with pytest.raises(DataError, match=message):
        opened(cub)


def test_cub_lists_absent_photos(cub: Path) -> None:
    (cub / "images" / "002.Crow" / "C_3.jpg").unlink()
    collection = opened(cub)
    assert [Path(p.path).name for p in collection.problems] == ["C_3.jpg"] and len(collection.items) == 2
