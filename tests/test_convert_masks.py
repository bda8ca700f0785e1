"""Masks to the formats of other tools and back, checked with those tools' own libraries where there are any."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.path import Path as Outline
from PIL import Image

from tagmask.convert import FORMATS, masks_from, masks_to
from tagmask.convert.masks.labelstudio import pack, unpack
from tagmask.data import Collection, Item, palette, read_mask, write_mask
from tagmask.errors import ConfigError, DataError
from tagmask.files import read_json, write_json

CLASSES = ["cat", '#dog "big" & <small>', "tree: ä"]
SIDES = array_shapes(min_dims=2, max_dims=2, max_side=11)
MAPS = arrays(np.uint8, SIDES, elements=st.sampled_from([0, 0, 1, 1, 2, 3, 255]))
IDS = ("a/b c", "b/ünï.côde 1", "x")
FILES = {  # what of the written folder is read
    "coco": "annotations.json",
    "coco-panoptic": "panoptic.json",
    "cvat": "annotations.xml",
    "labelstudio": "tasks.json",
}


def example(seed: int = 0, size: tuple[int, int] = (13, 19)) -> np.ndarray:
    """A map with holes, several parts, a part within a hole, single pixels, unsure ones."""
    labels = np.zeros(size, np.uint8)
    labels[1:9, 1:10] = 1 + seed % 3
    labels[3:7, 3:8] = 0
    labels[4:6, 5:7] = 1 + (seed + 1) % 3
    labels[10, 2], labels[11, 3] = 2, 2
    labels[0:5, 13:19] = 255
    labels[12, 18] = 3
    return labels


def make(root: Path, maps: Mapping[str, np.ndarray], ext: str = "png") -> Collection:
    """Photos of these ids, with masks in root/masks; the first one trains, the second one is held out."""
    items = []
    for id, labels in maps.items():
        photo = root / "photos" / f"{id}.{ext}"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", labels.shape[::-1], (90, 120, 150)).save(photo)
        write_mask(root / "masks" / f"{id}.png", labels)
        items.append(Item(id, photo, ()))
    ids = list(maps)
    return Collection("table", root, CLASSES, items, {"train": ids[:1], "val": ids[1:2]})


def known(labels: np.ndarray, format: str) -> np.ndarray:
    """What a format keeps of a map."""
    return np.where(labels == 255, 0, labels) if format == "yolo" else labels


def there(folder: Path) -> dict[str, np.ndarray]:
    return {
        path.relative_to(folder).as_posix().removesuffix(".png"): read_mask(path, len(CLASSES)).numpy()
        for path in folder.rglob("*.png")
    }


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Collection, dict[str, np.ndarray], Path]:
    maps = {id: example(seed) for seed, id in enumerate(IDS)}
    maps["x"] = np.zeros((5, 7), np.uint8)
    return make(tmp_path, maps), maps, tmp_path


@pytest.mark.parametrize("format", FORMATS)
def test_there_and_back(format: str, scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    collection, maps, root = scene
    pytest.importorskip("pycocotools")
    calls: list[tuple[int, int]] = []
    done = masks_to(format, collection, root / "masks", root / "out", progress=lambda *c: calls.append(c))
    assert done == {"masks": 3, "without_mask": 0, "failed": []} and calls[-1] == (3, 3)
    for source in {root / "out", root / "out" / FILES.get(format, "")}:
        out = root / f"back{source.suffix}"
        assert masks_from(format, source, collection, out) == {"masks": 3, "absent": 0, "failed": []}
        found = there(out)
        assert found.keys() == maps.keys()
        for id, labels in maps.items():
            np.testing.assert_array_equal(found[id], known(labels, format), err_msg=id)
        assert read_json(out / "classes.json")["classes"] == ["background", *CLASSES]


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=40, deadline=None)
@given(maps=st.lists(MAPS, min_size=3, max_size=3))
def test_any_map_comes_back(format: str, maps: list[np.ndarray]) -> None:
    pytest.importorskip("pycocotools")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        collection = make(root, dict(zip(IDS, maps)))
        masks_to(format, collection, root / "masks", root / "out", copy=True)
        assert masks_from(format, root / "out", collection, root / "back")["masks"] == 3
        for id, labels in zip(IDS, maps):
            np.testing.assert_array_equal(there(root / "back")[id], known(labels, format))


@pytest.mark.parametrize("format", FORMATS)
def test_some_photos_only(format: str, scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    collection, maps, root = scene
    pytest.importorskip("pycocotools")
    assert masks_to(format, collection, root / "masks", root / "val", split="val")["masks"] == 1
    done = masks_from(format, root / "val", collection, root / "back")
    assert done == {"masks": 1, "absent": 2, "failed": []} and there(root / "back").keys() == {IDS[1]}
    # Of masks that cannot be written the others are.
    (root / "masks" / f"{IDS[0]}.png").write_bytes(b"no picture")
    write_mask(root / "masks" / f"{IDS[1]}.png", np.zeros((4, 4), np.uint8))
    done = masks_to(format, collection, root / "masks", root / "rest")
    assert done["masks"] == 1 and [Path(f["file"]).stem for f in done["failed"]] == ["b c", "ünï.côde 1"]
    assert masks_from(format, root / "rest", collection, root / "rest back")["masks"] == 1
    # And of masks that come back.
    Image.new("RGB", (3, 3)).save(root / "photos" / f"{IDS[1]}.png")
    done = masks_from(format, root / "val", collection, root / "again") if format != "yolo" else None
    assert done is None or (done["masks"] == 0 and "3x3" in done["failed"][0]["why"].replace(" pixels", ""))


def test_what_cannot_be_written_or_read_is_said(scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    collection, _, root = scene
    masks = root / "masks"
    with pytest.raises(ConfigError, match="'coco'"):
        masks_to("cocoo", collection, masks, root / "out")
    with pytest.raises(DataError, match="masks"):
        masks_to("cvat", collection, masks, masks)
    with pytest.raises(DataError, match="nothing"):
        masks_to("cvat", collection, root / "nothing", root / "out")
    for name in ("background", "unsure"):
        other = Collection("table", root, ["cat", name], collection.items)
        with pytest.raises(DataError, match=f"'{name}'"):
            masks_to("cvat", other, masks, root / "out")
        with pytest.raises(DataError, match=f"'{name}'"):
            masks_from("cvat", root / "nothing", other, root / "out")
    for format in FORMATS:
        with pytest.raises((DataError, ConfigError), match="nothing"):
            masks_from(format, root / "nothing", collection, root / "out")
        (root / "empty").mkdir(exist_ok=True)
        with pytest.raises((DataError, ConfigError), match="empty"):
            masks_from(format, root / "empty", collection, root / "out")


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("cvat", "<View><Image/></View>"),
        ("cvat", "<annotations/>"),
        ("labelstudio", "[]"),
        ("labelstudio", '[{"data": {"image": "x.png"}}]'),
        ("coco", '{"images": [], "categories": [], "annotations": []}'),
        ("coco-panoptic", '{"images": [], "categories": [], "annotations": []}'),
    ],
)
def test_a_file_without_masks(format: str, content: str, scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    collection, _, root = scene
    (root / "empty.file").write_text(content)
    with pytest.raises(DataError, match="empty.file"):
        masks_from(format, root / "empty.file", collection, root / "out")
    assert not (root / "out").exists()


DAMAGED: dict[str, list[tuple[str, str, str]]] = {
    "coco": [
        ('"category_id":1', '"category_id":77', "annotation"),
        ('"name": "cat"', '"name": "catt"', "'cat'"),
        ('"counts":"', '"counts":"~', "annotation"),
        ('"bbox"', '"box"', ""),
        ('"image_id":1', '"image_id":"one"', "one"),
        ('"image_id":1', '"image":1', "annotations.json"),
        ('"width": 19', '"width": 18', "18"),
        ('"height": 13', '"height": "tall"', "annotations.json"),
        ('"annotations"', '"annotation"', "'annotations'"),
        ("[", "{", "annotations.json"),
    ],
    "coco-panoptic": [
        ('"name": "cat"', '"name": "catt"', "'cat'"),
        ('"category_id":1', '"category_id":[1]', "panoptic.json"),
        ('"id":1,', '"id":999,', "value 1 "),
        ('"file_name":"x.png"', '"file_name":"../x.png"', "x.png"),
        ('"file_name":"x.png"', '"file_name":"y.png"', "y.png"),
        ('"segments_info":[', '"segments":[', "panoptic.json"),
        ('"image_id":1', '"image_id":9', "panoptic.json"),
    ],
    "cvat": [
        ('label="cat"', 'label="catt"', "'cat'"),
        ('left="1"', 'left="18"', "image '"),
        ('left="1"', 'left="-1"', "image '"),
        ('rle="', 'rle="1, ', "annotations.xml"),
        ('rle="', 'rle="a', "annotations.xml"),
        (' width="19"', ' width="1"', "image '"),
        ("<mask", '<box xtl="1"', "box"),
        ("</annotations>", "", "annotations.xml"),
        ("name=", "title=", "annotations.xml"),
        ("<image", '<track id="0"/><image', "video"),
        ("</image>", '<polygon label="cat" points="1,1;2"/></image>', "annotations.xml"),
        ("</image>", '<polygon label="cat" points="1,1;2,nan;3,3"/></image>', "annotations.xml"),
    ],
    "labelstudio": [
        ('"brushlabels":["cat"]', '"brushlabels":["catt"]', "'cat'"),
        ('"brushlabels":["cat"]', '"brushlabels":[]', "tasks.json"),
        ('"original_width":19', '"original_width":18', "18"),
        ('"rle":[0', '"rle":[1', "tasks.json"),
        ('"rle":[', '"rle":[300,', "tasks.json"),
        ('"rle":[', '"rle":"', "tasks.json"),
        ('"type":"brushlabels"', '"type":"rectanglelabels"', "rectanglelabels"),
        ('"result"', '"results"', "tasks.json"),
        ('"data"', '"date"', "tasks.json"),
        ("[", '{"a": [', "tasks.json"),
    ],
}


@pytest.mark.parametrize(("format", "case"), [(f, i) for f, cases in DAMAGED.items() for i in range(len(cases))])
def test_damaged_files(format: str, case: int, scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    """Each is an error that names file, or a failure of the photos that are concerned; the others are read."""
    collection, maps, root = scene
    pytest.importorskip("pycocotools")
    old, new, said = DAMAGED[format][case]
    masks_to(format, collection, root / "masks", root / "out")
    file = root / "out" / FILES[format]
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    try:
        done = masks_from(format, file, collection, root / "back")
    except DataError as error:
        assert said in str(error) and not list((root / "back").rglob("*.png"))
        return
    assert done["masks"] + len(done["failed"]) >= 1 and (done["failed"] or not said)
    assert all(said in failure["why"] for failure in done["failed"])
    for id, labels in there(root / "back").items():
        np.testing.assert_array_equal(labels, maps[id])


def test_damaged_folders(scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    collection, _, root = scene
    masks = root / "masks"
    for format in ("yolo", "cityscapes", "geojson", "voc"):
        masks_to(format, collection, masks, root / format)

    def fails(format: str, file: str, content: str | bytes, said: str) -> None:
        path = root / format / file
        before = path.read_bytes()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        out = Path(tempfile.mkdtemp(dir=root))
        done = masks_from(format, root / format, collection, out)
        path.write_bytes(before)
        assert done["masks"] == 2 and len(done["failed"]) == 1 and said in done["failed"][0]["why"], done
        assert len(there(out)) == 2

    fails("yolo", "labels/train/a/b c.txt", "0 0.5 0.5 0.2 0.2\n", "line 1")
    fails("yolo", "labels/train/a/b c.txt", "\n9 0 0 1 0 1 1\n", "line 2")
    fails("yolo", "labels/train/a/b c.txt", "9 0 0 1 0 1 1\n", "class 9 is not in 'names'")
    fails("yolo", "labels/train/a/b c.txt", "cat 0 0 1 0 1 1\n", "b c")
    fails("yolo", "labels/train/a/b c.txt", "0 0 0 1 0 1\n", "b c")
    fails("yolo", "labels/train/a/b c.txt", b"\xff\xfe", "b c.txt")
    fails("cityscapes", "x_gtFine_labelIds.png", b"no", "x_gtFine_labelIds.png")
    fails(
        "voc", "SegmentationClass/x.png", (root / "voc" / "SegmentationClass" / f"{IDS[0]}.png").read_bytes(), "19x13"
    )
    feature = '{"properties": {"class": "%s"}, "geometry": {"type": "%s", "coordinates": [[[0, 0], [1, 0], [1, 1]]]}}'
    fails("geojson", "x.geojson", '{"features": [' + feature % ("catt", "Polygon") + "]}", "'cat'")
    fails("geojson", "x.geojson", '{"features": [' + feature % ("cat", "Point") + "]}", "feature 1")
    fails("geojson", "x.geojson", '{"features": [{}]}', "feature 1: has no properties")
    fails("geojson", "x.geojson", '{"features": [{"properties": null}]}', "feature 1: has no properties")
    fails("geojson", "x.geojson", '{"features": [{"properties": {}}]}', "feature 1: has no geometry")
    fails("geojson", "x.geojson", '{"features": [{"properties": {}, "geometry": {}}]}', "feature 1: has no class")
    fails("geojson", "x.geojson", "{}", "'features' is missing")
    fails("geojson", "x.geojson", "[", "x.geojson")
    for format, file in (("yolo", "data.yaml"), ("cityscapes", "labels.json"), ("voc", "labelmap.txt")):
        (root / format / file).write_text("names: 3\n")
        with pytest.raises(DataError, match={"voc": "voc", "yolo": "'names'"}.get(format, file)):
            masks_from(format, root / format, collection, root / "none")
    Image.fromarray(np.full((5, 7), 9, np.uint8)).save(root / "cityscapes" / "x_gtFine_labelIds.png")
    (root / "cityscapes" / "labels.json").unlink()
    assert "9" in masks_from("cityscapes", root / "cityscapes", collection, root / "some")["failed"][0]["why"]


def test_photos_that_the_run_lacks(scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    collection, _, root = scene
    masks_to("geojson", collection, root / "masks", root / "out")
    (root / "out" / "stranger.geojson").write_text('{"features": []}')
    (root / "out" / "photos").mkdir()
    (root / "out" / "photos" / "x.geojson").write_text('{"features": []}')
    done = masks_from("geojson", root / "out", collection, root / "back")
    why = " ".join(failure["why"] for failure in done["failed"])
    assert done["masks"] == 3 and "stranger" in why and len(done["failed"]) == 2


def test_coco_in_pycocotools(scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    collection, maps, root = scene
    masks_to("coco", collection, root / "masks", root / "out")
    data = coco.COCO(root / "out" / "annotations.json")
    ids = {f"{id}.png": id for id in IDS}
    for image in data.loadImgs(data.getImgIds()):
        labels = maps[ids[image["file_name"]]]
        found = np.zeros_like(labels)
        for entry in data.loadAnns(data.getAnnIds(image["id"])):
            inside = data.annToMask(entry) == 1
            assert entry["area"] == inside.sum() and entry["iscrowd"] == (entry["category_id"] == 255)
            rows, columns = np.nonzero(inside)
            x, y, width, height = entry["bbox"]
            assert (x, x + width - 1, y, y + height - 1) == (columns.min(), columns.max(), rows.min(), rows.max())
            assert not found[inside].any(), "parts do not overlap"
            found[inside] = entry["category_id"]
        np.testing.assert_array_equal(found, labels)
    assert len(data.getAnnIds(imgIds=[1], catIds=[2])) == 3, "a part in the hole and two single pixels"


def test_coco_of_other_tools(scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    """Polygons, numbers of other categories, objects that overlap, crowds under all."""
    pytest.importorskip("pycocotools")
    collection, _, root = scene
    box = [[1.0, 1.0, 5.0, 1.0, 5.0, 4.0, 1.0, 4.0]]
    objects = [
        {"id": 1, "image_id": 7, "category_id": 30, "segmentation": box},
        {"id": 2, "image_id": 7, "category_id": 20, "segmentation": [[3.0, 2.0, 7.0, 2.0, 7.0, 5.0, 3.0, 5.0]]},
        {"id": 3, "image_id": 7, "category_id": 20, "iscrowd": 1, "segmentation": {"size": [5, 7], "counts": [0, 35]}},
    ]
    image = {"id": 7, "file_name": "C:\\work\\x.png", "width": 7, "height": 5}
    content = {"images": [image], "annotations": objects}
    content["categories"] = [{"id": 20, "name": "cat"}, {"id": 30, "name": "tree: ä"}, {"id": 40, "name": "unused"}]
    write_json(root / "other.json", content)
    assert masks_from("coco", root / "other.json", collection, root / "back")["masks"] == 1
    expected = np.full((5, 7), 255, np.uint8)
    expected[1:4, 1:5] = 3
    expected[2:5, 3:7] = 1
    np.testing.assert_array_equal(there(root / "back")["x"], expected)


@pytest.mark.parametrize("copy", [False, True])
def test_coco_and_yolo_in_supervision(tmp_path: Path, copy: bool) -> None:
    supervision = pytest.importorskip("supervision")
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("pycocotools")
    maps = {"one": example(0), "two": example(1), "three": example(2)}
    collection = make(tmp_path, maps)
    masks_to("coco", collection, tmp_path / "masks", tmp_path / "coco")
    photos, file = str(tmp_path / "photos"), str(tmp_path / "coco" / "annotations.json")
    data = supervision.DetectionDataset.from_coco(photos, file)
    for path, _, found in data:
        labels = np.zeros((13, 19), np.uint8)
        for mask, name in zip(found.mask, (data.classes[i] for i in found.class_id)):
            labels[mask] = 255 if name == "unsure" else CLASSES.index(name) + 1
        np.testing.assert_array_equal(labels, maps[Path(path).stem])
    masks_to("yolo", collection, tmp_path / "masks", tmp_path / "yolo", copy=copy)
    assert (tmp_path / "yolo" / "images" / "train" / "one.png").is_symlink() != copy
    seen = []
    for split in ("train", "val"):
        place = tmp_path / "yolo"
        places = place / "images" / split, place / "labels" / split, place / "data.yaml"
        data = supervision.DetectionDataset.from_yolo(*map(str, places))
        assert data.classes == CLASSES
        for path, _, found in data:
            seen.append(Path(path).stem)
            for mask, label in zip(found.mask, found.class_id + 1):
                # It rounds to whole pixels, where trainers cut: a border of one pixel to the right and below.
                own = (maps[seen[-1]] == label).astype(np.uint8)
                wide = cv2.dilate(own, np.ones((2, 2), np.uint8), anchor=(1, 1))
                assert not (mask & (wide == 0)).any()
            for label in np.unique(found.class_id + 1):
                union = found.mask[found.class_id + 1 == label].any(0)
                assert union[maps[seen[-1]] == label].all()
    assert seen == ["one", "two"]


def test_yolo_as_documented(scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    """Every photo has a text of the same name; points in shares, cut to whole pixels and filled by OpenCV."""
    cv2 = pytest.importorskip("cv2")
    yaml = pytest.importorskip("yaml")
    collection, maps, root = scene
    masks_to("yolo", collection, root / "masks", root / "out")
    settings = yaml.safe_load((root / "out" / "data.yaml").read_text(encoding="utf-8"))
    assert settings == {"train": "images/train", "val": "images/val", "names": dict(enumerate(CLASSES))}
    photos = [path for path in (root / "out" / "images").rglob("*") if path.is_file()]
    assert len(photos) == 3
    for photo in photos:
        text = Path(str(photo.with_suffix(".txt")).replace("/images/", "/labels/"))
        id = photo.relative_to(root / "out" / "images").as_posix().partition("/")[2].removesuffix(".png")
        found = np.zeros_like(maps[id])
        for line in text.read_text().splitlines():
            number, *shares = line.split()
            points = np.array(shares, np.float32).reshape(-1, 2) * found.shape[::-1]
            assert len(points) >= 3 and (points >= 0).all() and (np.array(shares, float) <= 1).all()
            cv2.fillPoly(found, [points.astype(np.int32)], int(number) + 1)
        # A larger part that is drawn later covers what lies in its hole's border: none here.
        np.testing.assert_array_equal(found, known(maps[id], "yolo"))


def test_panoptic_in_transformers(scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    transforms = pytest.importorskip("transformers.image_transforms")
    collection, maps, root = scene
    masks_to("coco-panoptic", collection, root / "masks", root / "out")
    content = read_json(root / "out" / "panoptic.json")
    things = {entry["id"]: entry for entry in content["categories"]}
    assert things[255]["name"] == "background" and things[255]["isthing"] == 0 and things[1]["isthing"] == 1
    for entry in content["annotations"]:
        picture = np.array(Image.open(root / "out" / "panoptic" / entry["file_name"]))
        ids = transforms.rgb_to_id(picture)
        labels = maps[entry["file_name"].removesuffix(".png")]
        found = np.full_like(labels, 255)
        for segment in entry["segments_info"]:
            inside = ids == segment["id"]
            assert inside.sum() == segment["area"] > 0
            rows, columns = np.nonzero(inside)
            assert segment["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            found[inside] = segment["category_id"] % 255
        np.testing.assert_array_equal(found, labels)
        assert ((ids == 0) == (labels == 255)).all()


def test_label_studio_in_its_own_converter(scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    collection, maps, root = scene
    masks_to("labelstudio", collection, root / "masks", root / "out", url="https://photos.example/")
    config = (root / "out" / "config.xml").read_text(encoding="utf-8")
    tasks = read_json(root / "out" / "tasks.json")
    checked = interface.LabelInterface(config)
    for task in tasks:
        assert task["data"]["image"].startswith("https://photos.example/")
        assert checked.validate_prediction(task["predictions"][0]), task
        labels = maps[task["data"]["photo"]]
        found = np.zeros_like(labels)
        for entry in task["predictions"][0]["result"]:
            value = entry["value"]
            image = brush.decode_rle(value["rle"]).reshape(*labels.shape, 4)[..., 3]
            assert set(np.unique(image)) == {0, 255}
            name = value["brushlabels"][0]
            found[image > 0] = 255 if name == "unsure" else CLASSES.index(name) + 1
        np.testing.assert_array_equal(found, labels)


@settings(deadline=None)
@given(MAPS)
def test_label_studio_run_lengths(labels: np.ndarray) -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    inside = labels == 1
    np.testing.assert_array_equal(unpack(pack(inside), inside.shape), inside)
    pixels = np.repeat(inside.ravel() * 255, 4).astype(np.uint8)
    np.testing.assert_array_equal(brush.decode_rle(pack(inside)), pixels)
    np.testing.assert_array_equal(unpack(brush.encode_rle(pixels), inside.shape), inside)


def test_label_studio_long_runs() -> None:
    inside = np.zeros((300, 400), bool)
    inside[150:290] = True
    np.testing.assert_array_equal(unpack(pack(inside), inside.shape), inside)
    single = [0, 0, 0, 4, 0b00111_000, 0b1_0001_001, 0b1_011_0_00_0, 0b11_000000, 0b01_000000, 0b01_111111, 0b11_000000]
    assert unpack([*single, 0], (1, 1)).shape == (1, 1), "values one by one"


def test_label_studio_as_people_return_it(scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    """Annotations before predictions, the last one that was not cancelled; polygons in percent; names of uploads."""
    collection, _, root = scene
    inside = np.zeros((5, 7), bool)
    inside[1:3, 2:6] = True
    about = {"original_width": 7, "original_height": 5}
    stroke = {**about, "type": "brushlabels", "value": {"rle": pack(inside), "brushlabels": ["cat"]}}
    points = [[0, 0], [100 / 7 * 3, 0], [100 / 7 * 3, 40], [0, 40]]
    polygon = {**about, "type": "polygonlabels", "value": {"points": points, "polygonlabels": ["tree: ä"]}}
    old, empty = {"result": [stroke]}, {"result": [], "was_cancelled": True}
    task = {
        "data": {"image": "/data/upload/3/1a2b3c4d-x.png"},
        "annotations": [old, {"result": [stroke, polygon]}, empty],
    }
    nothing = {"data": {"image": "/data/local-files/?d=a/b%20c.png"}, "annotations": [], "predictions": []}
    (root / "export.json").write_text(json.dumps([task, nothing]))
    done = masks_from("labelstudio", root / "export.json", collection, root / "back")
    assert done == {"masks": 1, "absent": 2, "failed": []}
    expected = np.where(inside, 1, 0)
    expected[:2, :3] = 3
    np.testing.assert_array_equal(there(root / "back")["x"], expected)
    nothing["predictions"] = [{"result": []}]
    (root / "export.json").write_text(json.dumps([task, nothing]))
    assert masks_from("labelstudio", root / "export.json", collection, root / "more")["masks"] == 2


def test_cvat_masks_and_polygons(scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    """Its run lengths go row by row within the box, as CVAT documents them; polygons of people, in order of z."""
    collection, maps, root = scene
    masks_to("cvat", collection, root / "masks", root / "out")
    top = ElementTree.parse(root / "out" / "annotations.xml").getroot()
    assert (
        [name.text for name in top.iter("name")]
        == [*CLASSES, "unsure"]
        == [label["name"] for label in read_json(root / "out" / "labels.json")]
    )
    for image in top.iter("image"):
        labels = maps[image.get("name", "").removesuffix(".png")]
        found = np.zeros_like(labels)
        for mask in image.iter("mask"):
            left, top_, width, height = (int(mask.get(key, "")) for key in ("left", "top", "width", "height"))
            flat: list[int] = []
            for number, length in enumerate(mask.get("rle", "").split(", ")):
                flat += [number % 2] * int(length)
            box = found[top_ : top_ + height, left : left + width]
            name = mask.get("label", "")
            label = 255 if name == "unsure" else CLASSES.index(name) + 1
            box[np.reshape(flat, (height, width)) == 1] = label
        np.testing.assert_array_equal(found, labels)
    shapes = """<tag label="cat"/><polygon label="cat" points="1.0,1.0;5.0,1.0;5.0,4.0;1.0,4.0" z_order="1"/>
    <polygon label="tree: ä" points="0,0;7,0;7,2;0,2" z_order="0"/>
    <polygon label="background" points="2,2;3,2;3,3;2,3" z_order="2"/>"""
    xml = f'<annotations><image id="0" name="x.png" width="7" height="5">{shapes}</image></annotations>'
    (root / "people.xml").write_text(xml, encoding="utf-8")
    assert masks_from("cvat", root / "people.xml", collection, root / "back")["masks"] == 1
    expected = np.zeros((5, 7), np.uint8)
    expected[:2] = 3
    expected[1:4, 1:5] = 1
    expected[2, 2] = 0
    np.testing.assert_array_equal(there(root / "back")["x"], expected)


def test_cityscapes_in_torchvision(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    maps = {"one": example(0), "two": example(1)}
    collection = make(tmp_path, maps)
    city = tmp_path / "gtFine" / "train" / "city"
    masks_to("cityscapes", collection, tmp_path / "masks", city)
    photos = tmp_path / "leftImg8bit" / "train" / "city"
    photos.mkdir(parents=True)
    for id in maps:
        Image.new("RGB", (19, 13)).save(photos / f"{id}_leftImg8bit.png")
    data = datasets.Cityscapes(str(tmp_path), "train", "fine", ["semantic", "color"])
    for (_, targets), path in zip(data, data.images):
        labels = maps[Path(path).stem.removesuffix("_leftImg8bit")]
        np.testing.assert_array_equal(np.array(targets[0]), labels)
        np.testing.assert_array_equal(np.array(targets[1])[..., :3], palette()[labels])
    # Photos may be called as Cityscapes calls them; labels may have other numbers.
    other = make(tmp_path / "other", {"one_leftImg8bit": maps["one"], "two_leftImg8bit": maps["two"]})
    numbers = {0: "background", 1: CLASSES[1], 2: "cat", 3: CLASSES[2], 255: "unsure"}
    write_json(city / "labels.json", [{"name": name, "id": number} for number, name in numbers.items()])
    assert masks_from("cityscapes", city, other, tmp_path / "back2")["masks"] == 2
    swapped = np.array([0, 2, 1, 3, *range(4, 256)])[maps["one"]]
    np.testing.assert_array_equal(there(tmp_path / "back2")["one_leftImg8bit"], swapped)


def test_voc_in_torchvision(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    maps = {"one": example(0), "two 2": example(1), "three": example(2)}
    collection = make(tmp_path, maps, "jpg")
    root = tmp_path / "VOCdevkit" / "VOC2012"
    masks_to("voc", collection, tmp_path / "masks", root)
    for split, id in (("train", "one"), ("val", "two 2")):
        data = datasets.VOCSegmentation(str(tmp_path), "2012", split)
        ((photo, labels),) = data
        assert photo.size == (19, 13)
        np.testing.assert_array_equal(np.array(labels), maps[id])
    assert (root / "ImageSets" / "Segmentation" / "other.txt").read_text() == "three\n"
    # In colours, as CVAT writes it, and with labels in another order.
    lines = (root / "labelmap.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["# label:color_rgb:parts:actions", "background:0,0,0::", "cat:128,0,0::"]
    Image.fromarray(palette()[maps["one"]]).save(root / "SegmentationClass" / "one.png")
    (root / "labelmap.txt").write_text(
        "\n".join([lines[0], lines[1], lines[3], lines[2], *lines[4:]]), encoding="utf-8"
    )
    masks_from("voc", root, collection, tmp_path / "back")
    np.testing.assert_array_equal(there(tmp_path / "back")["one"], maps["one"])
    swapped = np.array([0, 2, 1, 3, *range(4, 256)])[maps["three"]]
    np.testing.assert_array_equal(there(tmp_path / "back")["three"], swapped)


def test_geojson_rings(scene: tuple[Collection, dict[str, np.ndarray], Path]) -> None:
    """Rings are closed, outer ones turn as RFC 7946 says, holes the other way; several polygons are taken, too."""
    collection, maps, root = scene
    masks_to("geojson", collection, root / "masks", root / "out")
    for id, labels in maps.items():
        found = np.zeros_like(labels)
        grid = np.meshgrid(np.arange(labels.shape[1]) + 0.5, np.arange(labels.shape[0]) + 0.5)
        for feature in read_json(root / "out" / f"{id}.geojson")["features"]:
            rings = [Outline(ring) for ring in feature["geometry"]["coordinates"]]
            outer, *holes = (ring.contains_points(np.stack(grid, -1).reshape(-1, 2)) for ring in rings)
            inside = outer & ~np.any([np.zeros_like(outer), *holes], axis=0)
            found[inside.reshape(labels.shape)] = feature["properties"]["label"]
        np.testing.assert_array_equal(found, labels)
    content = read_json(root / "out" / f"{IDS[0]}.geojson")
    assert content["type"] == "FeatureCollection" and len(content["features"]) == 6
    for feature in content["features"]:
        for number, ring in enumerate(feature["geometry"]["coordinates"]):
            points = np.array(ring)
            assert ring[0] == ring[-1] and len(ring) >= 4
            x, y = points.T
            area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2
            assert (area > 0) == (number == 0)
    properties = content["features"][0]["properties"]
    assert properties["classification"] == {"name": "cat", "color": [128, 0, 0]} and properties["label"] == 1
    squares = [[[[x, 0], [x + 1, 0], [x + 1, 2], [x, 2], [x, 0]]] for x in (0, 4)]
    feature = {
        "properties": {"classification": {"name": "cat"}},
        "geometry": {"type": "MultiPolygon", "coordinates": squares},
    }
    (root / "qupath").mkdir()
    (root / "qupath" / "x.geojson").write_text(json.dumps([feature]))
    masks_from("geojson", root / "qupath", collection, root / "back")
    expected = np.zeros((5, 7), np.uint8)
    expected[:2, [0, 4]] = 1
    np.testing.assert_array_equal(there(root / "back")["x"], expected)


def test_photos_that_are_turned(tmp_path: Path) -> None:
    """A mask is of the photo as it is shown, whatever its EXIF data say."""
    collection = make(tmp_path, {"one": np.ones((4, 6), np.uint8)}, "jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 6)).save(tmp_path / "photos" / "one.jpg", exif=exif)
    assert masks_to("cvat", collection, tmp_path / "masks", tmp_path / "out")["failed"] == []
    assert masks_from("cvat", tmp_path / "out", collection, tmp_path / "back")["masks"] == 1
