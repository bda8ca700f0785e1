"""Layouts of other tools: read rightly, or refused with what to set; never taken for classes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.config import DataConfig, parse_overrides
from tagmask.data import Collection, open_data
from tagmask.data.layout import masks_among, role
from tagmask.errors import DataError


def photos(root: Path, *names: str) -> Path:
    """Pictures of 4×4 pixels, each of another colour."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), i, dtype=np.uint8)).save(root / name)
    return root


def masks(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(4, dtype=np.uint8)).save(root / name)


def opened(root: Path, **settings: object) -> Collection:
    return open_data(DataConfig(root=root, **{"val_share": 0, **settings}))  # type: ignore[arg-type]


def tags_of(collection: Collection) -> dict[str, list[str] | None]:
    return {i.id: None if i.tags is None else [collection.classes[t] for t in i.tags] for i in collection.items}


PAIRS = [
    ("img_dir/train/", "ann_dir/train/"),
    ("imagesTr/", "labelsTr/"),
    ("images/", "labels/"),
    ("images/", "Annotations/"),
    ("Images/", "Masks/"),
    ("img/", "mask/"),
    ("JPEGImages/", "SegmentationClass/"),
    ("photos/", "ground truth/"),
    ("train_images/", "train_masks/"),
]


@pytest.mark.parametrize("image,mask", PAIRS)
def test_photos_beside_masks_need_tags(tmp_path: Path, image: str, mask: str) -> None:
    photos(tmp_path, f"{image}a.jpg", f"{image}b.jpg")
    masks(tmp_path, f"{mask}a.png", f"{mask}b.png")
    with pytest.raises(DataError, match=r"no tags.*tags\.csv"):
        opened(tmp_path, source="auto")
    with pytest.raises(DataError):
        opened(tmp_path, source="folders")
    (tmp_path / "tags.csv").write_text("image,tags\na.jpg,red\nb.jpg,\n")
    collection = opened(tmp_path)
    assert tags_of(collection) == {"a": ["red"], "b": []}, "what the message says works"
    assert [item.mask and item.mask.name for item in collection.items] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "train,test", [("Training", "Testing"), ("train", "valid"), ("TRAIN", "Test"), ("Val", "test")]
)
def test_splits_in_any_case_are_no_classes(tmp_path: Path, train: str, test: str) -> None:
    photos(tmp_path, *(f"{split}/{name}/1.jpg" for split in (train, test) for name in ("red", "blue")))
    with pytest.raises(DataError, match=r"data\.root=") as error:
        opened(tmp_path)
    found = re.search(r"'data\.root=[^']*'|data\.root=\S+", str(error.value))
    assert found is not None
    values = parse_overrides(shlex.split(found[0]))
    assert opened(Path(values["data"]["root"])).classes == ["blue", "red"], "as typed"


def test_splits_of_loose_photos(tmp_path: Path) -> None:
    photos(tmp_path, "train/1.jpg", "test/2.jpg")
    with pytest.raises(DataError, match=r"tags\.csv.*split"):
        opened(tmp_path)


def test_mvtec(tmp_path: Path) -> None:
    photos(tmp_path, "train/good/000.png", *(f"test/{d}/000.png" for d in ("good", "crack", "stain")))
    masks(tmp_path, *(f"ground_truth/{d}/000_mask.png" for d in ("crack", "stain")))
    with pytest.raises(DataError, match=r"splits.*masks: ground_truth.*data\.root=.*test"):
        opened(tmp_path)
    assert opened(tmp_path / "test").classes == ["crack", "good", "stain"]


@pytest.mark.parametrize("name", ["test", "Labels", "annotations", "ground_truth", "imgs", "images"])
def test_one_such_folder_among_classes(tmp_path: Path, name: str) -> None:
    photos(tmp_path, "cat/1.jpg", "dog/2.jpg", f"{name}/3.jpg")
    with pytest.raises(DataError, match=rf"{name}.*classes\.txt"):
        opened(tmp_path)
    assert opened(tmp_path, classes=["cat", "dog", name]).classes == ["cat", "dog", name]
    (tmp_path / "classes.txt").write_text(f"dog\ncat\n{name}\n")
    assert tags_of(opened(tmp_path)) == {"1": ["cat"], "2": ["dog"], "3": [name]}, "what the message says works"


@pytest.mark.parametrize("names", ["bus car train", "photo sketch cartoon", "mask no_mask"])
def test_a_class_called_as_a_folder_with_a_role(tmp_path: Path, names: str) -> None:
    photos(tmp_path, *(f"{name}/{i}.jpg" for i, name in enumerate(names.split())))
    collection = opened(tmp_path)
    assert collection.classes == sorted(names.split())
    assert [p.what.count("read as a class") for p in collection.problems] == [1]


def test_what_is_no_such_class(tmp_path: Path) -> None:
    photos(tmp_path / "deep", "cat/1.jpg", "train/dog/2.jpg")
    photos(tmp_path / "two", "cat/1.jpg", "train/2.jpg", "test/3.jpg")
    photos(tmp_path / "drawn", "cat/1.jpg")
    masks(tmp_path / "drawn", "mask/1.png")
    photos(tmp_path / "listed", "cat/1.jpg", "train/2.jpg")
    for name, classes in (("deep", None), ("two", None), ("drawn", None), ("listed", ["cat"])):
        with pytest.raises(DataError, match=r"no classes, by their names"):
            opened(tmp_path / name, classes=classes)


def test_thumbnails_are_no_class(tmp_path: Path) -> None:
    photos(tmp_path, "cat/1.jpg", "dog/2.jpg", "@eaDir/3.jpg", "empty/@eaDir/4.jpg")
    assert tags_of(opened(tmp_path)) == {"1": ["cat"], "2": ["dog"]}


def test_photos_behind_links_in_class_folders(tmp_path: Path) -> None:
    pool = photos(tmp_path / "pool", "1.jpg")
    root = photos(tmp_path / "root", "dog/2.jpg")
    (root / "cat").mkdir()
    (root / "cat" / "more").symlink_to(pool)
    assert tags_of(opened(root)) == {"1": ["cat"], "2": ["dog"]}


def test_photos_of_one_stem(tmp_path: Path) -> None:
    photos(tmp_path, *(f"{name}/{i}.{end}" for name in ("cat", "dog") for i in range(2) for end in ("jpg", "png")))
    assert len(opened(tmp_path).items) == 8
    masks(tmp_path, *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(2)))
    with pytest.raises(DataError, match="look like masks"):
        opened(tmp_path)


def test_a_guessed_folder_of_masks_that_fits_nothing(tmp_path: Path) -> None:
    photos(tmp_path, "images/1.jpg", "images/2.jpg")
    masks(tmp_path, "labels/x.png", "labels/y.png")
    (tmp_path / "tags.csv").write_text("image,tags\n1.jpg,red\n2.jpg,\n")
    collection = opened(tmp_path)
    assert all(item.mask is None for item in collection.items) and len(collection.problems) == 1
    with pytest.raises(DataError, match=r"data\.masks"):
        opened(tmp_path, masks=Path("labels"))


def test_class_folders_around_photos_and_masks(tmp_path: Path) -> None:
    photos(tmp_path, *(f"scene{i}/images/{i}.jpg" for i in range(3)))
    masks(tmp_path, *(f"scene{i}/masks/{i}.png" for i in range(3)))
    with pytest.raises(DataError, match="look like masks"):
        opened(tmp_path)


def test_root_one_folder_too_high(tmp_path: Path) -> None:
    photos(tmp_path, "my data/cat/1.jpg", "my data/dog/2.jpg")
    with pytest.raises(DataError, match=r"'data\.root=.*my data'"):
        opened(tmp_path)
    photos(tmp_path, "other/images/cat/1.jpg", "other/images/dog/2.jpg")
    with pytest.raises(DataError, match=r"data\.root=.*images"):
        opened(tmp_path / "other")


@pytest.mark.parametrize("end", ["_mask", "_seg", "_label", "_gt", "-mask", "_mask_1", " Segmentation", "_labels"])
def test_masks_beside_photos(tmp_path: Path, end: str) -> None:
    photos(tmp_path, *(f"{name}/{name} ({i}).png" for name in ("benign", "malignant") for i in range(3)))
    masks(tmp_path, *(f"{name}/{name} ({i}){end}.png" for name in ("benign", "malignant") for i in range(3)))
    with pytest.raises(DataError, match=r"6 of 12 photos look like masks"):
        opened(tmp_path)


def test_masks_beside_photos_of_a_table(tmp_path: Path) -> None:
    photos(tmp_path, *(f"p{i}.jpg" for i in range(6)))
    rows = "".join(f"p{i}.jpg,red\n" for i in range(6))
    (tmp_path / "tags.csv").write_text(f"image,tags\n{rows}")
    masks(tmp_path, "p0_mask.png")
    assert [p.what.count("look like masks") for p in opened(tmp_path).problems] == [1], "a few are mentioned"
    masks(tmp_path, "p1.png", "p2_gt.png", "labels/p3.png", "labels/p4.png")
    with pytest.raises(DataError, match="5 of 11 photos look like masks"):
        opened(tmp_path)
    named = "".join(
        f"{name},red\n" for name in ("p0_mask.png", "p1.png", "p2_gt.png", "labels/p3.png", "labels/p4.png")
    )
    rows = rows.replace("p1.jpg", "./p1.jpg")
    (tmp_path / "tags.csv").write_text(f"image,tags\n{rows}{named}")
    assert len(opened(tmp_path).split("train")) == 11, "what a row names is a photo"


def test_photos_that_are_no_masks(tmp_path: Path) -> None:
    names = ("label/1.jpg", "mask_off/1.jpg", "b/gt.png", "b/x.jpeg", "b/x.jpg", "b/the_mask.jpg", "1.jpg")
    photos(tmp_path, *names)
    assert masks_among([tmp_path / name for name in names], tmp_path) == {tmp_path / "label/1.jpg": tmp_path / "1.jpg"}
    assert [role(name) for name in ("cat", "trainer", "maskrcnn", "imagery", "labelsTs")] == [*[None] * 4, "masks"]


def test_linked_class_folders(tmp_path: Path) -> None:
    pool = photos(tmp_path / "pool", "r0.jpg", "r1.jpg", "deep/r2.jpg")
    root = photos(tmp_path / "root", "blue/b0.jpg", "background/n0.jpg")
    (root / "red").symlink_to(pool)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "loop").symlink_to(root / "loop")
    collection = opened(root)
    expected = {"b0": ["blue"], "n0": [], "r0": ["red"], "r1": ["red"], "r2": ["red"]}
    assert tags_of(collection) == expected
    assert [Path(p.path).name for p in collection.problems] == ["gone", "loop"]
    (root / "blue").rename(tmp_path / "blue")
    (root / "blue").symlink_to("../blue")
    assert tags_of(opened(root)) == expected, "all of them links"


@pytest.mark.parametrize("target", ["root/blue", "pool", "root", "."])
def test_links_that_would_double_photos(tmp_path: Path, target: str) -> None:
    pool = photos(tmp_path / "pool", "r0.jpg")
    root = photos(tmp_path / "root", "blue/b0.jpg")
    (root / "red").symlink_to(pool)
    (root / "twin").symlink_to(tmp_path / target)
    with pytest.raises(DataError, match="twin"):
        opened(root)


def test_folders_without_class_or_tags(tmp_path: Path) -> None:
    photos(tmp_path, "cat/1.jpg", "Background/2.jpg", "_background_/3.jpg", "Unlabeled/4.jpg")
    assert tags_of(opened(tmp_path)) == {"1": ["cat"], "2": [], "3": [], "4": None}


def test_class_folders_in_two_forms_of_an_accent(tmp_path: Path) -> None:
    photos(tmp_path, "caf\u00e9/1.jpg", "cafe\u0301/2.jpg")
    assert tags_of(opened(tmp_path)) == {"1": ["caf\u00e9"], "2": ["caf\u00e9"]}


def test_another_table_is_named(tmp_path: Path) -> None:
    photos(tmp_path, "1.jpg")
    (tmp_path / "labels.csv").write_text("image,tags\n1.jpg,red\n")
    with pytest.raises(DataError, match=r"data\.tags=.*labels\.csv"):
        opened(tmp_path)
    assert tags_of(opened(tmp_path, tags="labels.csv")) == {"1": ["red"]}
