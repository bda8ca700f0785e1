"""Converters: masks and tags from benchmarks' files, masks to test servers' formats, label files without their code."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.config import DataConfig
from tagmask.convert import coco as coco_module
from tagmask.convert import coco_masks, coco_results, sbd_masks, voc_submission
from tagmask.data import open_data, palette, read_mask, write_mask
from tagmask.data.source_coco import COCO_CATEGORIES, LABELS
from tagmask.errors import DataError

SIZE = (12, 16)


def box(x0: int, y0: int, x1: int, y1: int) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def draw(objects: list[tuple[int, int, list[tuple[int, int, int, int]]]]) -> np.ndarray:
    """Pixel by pixel: the first object that covers it, or else 255 if a crowd does."""
    labels = np.zeros(SIZE, np.uint8)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            over = [(c, k) for c, k, boxes in objects if any(a <= x < b2 and b <= y < d for a, b, b2, d in boxes)]
            things = [k for crowd, k in over if not crowd]
            labels[y, x] = things[0] if things else 255 if over else 0
    return labels


def runs(boxes: list[tuple[int, int, int, int]]) -> dict[str, Any]:
    """Run lengths down the columns, beginning with those of background."""
    inside = np.zeros(SIZE, bool)
    for x0, y0, x1, y1 in boxes:
        inside[y0:y1, x0:x1] = True
    counts, state, length = [], False, 0
    for value in inside.T.ravel():
        if value != state:
            counts.append(length)
            state, length = bool(value), 0
        length += 1
    return {"size": list(SIZE), "counts": [*counts, length]}


Truth = dict[int, list[tuple[int, int, list[tuple[int, int, int, int]]]]]
TRUTH: Truth = {
    5: [(0, 1, [(2, 2, 9, 8)]), (0, 80, [(5, 0, 14, 6), (0, 9, 3, 12)])],  # overlap: the first wins
    6: [(1, 1, [(0, 0, 8, 12)]), (0, 12, [(4, 4, 12, 8)])],  # a crowd before an object that it overlaps
    7: [],
    12: [(1, 17, [(1, 1, 3, 3), (6, 2, 9, 12)])],
    13: [(0, 3, [(0, 0, 16, 12)]), (0, 2, [(3, 3, 5, 5)])],
}


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """The scenes of TRUTH as instances_train2014.json; annotations of different photos are mixed, as COCO's are."""
    ids = list(COCO_CATEGORIES)
    images = [
        {"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in TRUTH
    ]
    found = []
    for turn in range(2):
        for image, objects in TRUTH.items():
            for crowd, label, boxes in objects[turn : turn + 1]:
                shape = runs(boxes) if crowd else [box(*b) for b in boxes]
                fields = {"image_id": image, "category_id": ids[label - 1], "iscrowd": crowd, "segmentation": shape}
                found.append({"id": len(found) + 1, **fields})
    path = tmp_path / "annotations" / "instances_train2014.json"
    path.parent.mkdir()
    categories = [{"id": i, "name": n} for i, n in COCO_CATEGORIES.items()]
    path.write_text(json.dumps({"images": images, "annotations": found, "categories": categories}))
    return path


def name(image: int) -> str:
    return f"COCO_train2014_{image:012d}"


@pytest.mark.parametrize("bucket", [1 << 20, 300])
def test_coco_masks(annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: int) -> None:
    pytest.importorskip("pycocotools")
    monkeypatch.setattr(coco_module, "BUCKET_BYTES", bucket)
    calls: list[tuple[int, int]] = []
    counts = coco_masks(annotations, workers=1, progress=lambda *c: calls.append(c))
    assert counts == {"images": 5, "with_tags": 4, "crowds": 2}
    assert calls[-1][0] == calls[-1][1] and (bucket > 1000) == (calls[-1][1] == 1)
    for image, objects in TRUTH.items():
        got = read_mask(tmp_path / "masks" / "train2014" / f"{name(image)}.png", 80).numpy()
        np.testing.assert_array_equal(got, draw(objects))
    names = list(COCO_CATEGORIES.values())
    rows = [json.loads(line) for line in (tmp_path / "tags_train2014.jsonl").read_text().splitlines()]
    expected = {f"{name(i)}.jpg": [names[k - 1] for k in sorted(k for _, k, _ in o)] for i, o in TRUTH.items()}
    assert {row["image"]: row["tags"] for row in rows} == expected
    assert {p.name for p in tmp_path.iterdir()} == {"annotations", "masks", "tags_train2014.jsonl"}


@pytest.mark.slow
def test_coco_masks_by_several_processes(annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocotools")
    monkeypatch.setattr(coco_module, "BUCKET_BYTES", 300)
    coco_masks(annotations, tmp_path / "out", workers=2)
    got = read_mask(tmp_path / "out" / "masks" / "train2014" / f"{name(5)}.png", 80).numpy()
    np.testing.assert_array_equal(got, draw(TRUTH[5]))


def test_coco_masks_go_on_where_they_were_cut_off(
    annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycocotools")
    monkeypatch.setattr(coco_module, "BUCKET_BYTES", 300)
    real, drawn = coco_module._draw_bucket, []

    def breaks(job: Any) -> None:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(job[1])
        real(job)

    monkeypatch.setattr(coco_module, "_draw_bucket", breaks)
    with pytest.raises(KeyboardInterrupt):
        coco_masks(annotations, workers=1)
    assert not (tmp_path / "tags_train2014.jsonl").exists(), "a table is whole or not there"
    monkeypatch.setattr(coco_module, "_draw_bucket", lambda job: (drawn.append(job[1]), real(job))[1])
    monkeypatch.setattr(coco_module, "read_instances", lambda path: pytest.fail("the file was split before"))
    assert coco_masks(annotations, workers=1)["images"] == 5
    assert len(drawn) == len(set(drawn)) > 3
    for image, objects in TRUTH.items():
        got = read_mask(tmp_path / "masks" / "train2014" / f"{name(image)}.png", 80).numpy()
        np.testing.assert_array_equal(got, draw(objects))


def test_another_annotation_file_is_split_anew(annotations: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert coco_module.fill_buckets(annotations, work)[0] == 1
    (work / "0.tags").write_text("stale")
    annotations.write_text(annotations.read_text() + "\n")
    coco_module.fill_buckets(annotations, work)
    assert not (work / "0.tags").exists()


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "polygon": ({"segmentation": [[1, 2, 3, 4]]}, "annotation 1"),
    "empty": ({"segmentation": []}, "annotation 1"),
    "none": ({"segmentation": None}, "annotation 1"),
    "size": ({"segmentation": {"size": [3, 3], "counts": [9]}}, "annotation 1.*size"),
    "sum": ({"segmentation": {"size": list(SIZE), "counts": [9]}}, "annotation 1"),
    "image": ({"image_id": 99}, "annotation 1.*image 99"),
    "category": ({"category_id": 12}, "annotation 1.*category 12"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_coco_masks_broken(annotations: Path, case: str) -> None:
    pytest.importorskip("pycocotools")
    change, message = BROKEN[case]
    content = json.loads(annotations.read_text())
    content["annotations"][0].update(change)
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as error:
        coco_masks(annotations, workers=1)
    assert "instances_train2014.json" in str(error.value)


def test_coco_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, annotations: Path) -> None:
    with pytest.raises(DataError, match=r"annotations_trainval2017\.zip"):
        coco_masks(tmp_path / "instances_val2017.json")
    with pytest.raises(DataError, match=r"captions_val2017\.json"):
        coco_masks(tmp_path / "captions_val2017.json")
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(DataError, match=r"tagmask\[coco\]"):
        coco_masks(annotations)
    with pytest.raises(DataError, match="pycocotools"):
        coco_results(tmp_path, tmp_path / "results.json")


def test_packed_run_lengths_are_read_as_written() -> None:
    tools = pytest.importorskip("pycocotools.mask")
    shape = runs([(1, 1, 3, 3)])
    packed = tools.frPyObjects(shape, *SIZE)
    got = coco_module.decode({"size": list(SIZE), "counts": packed["counts"].decode()}, SIZE, "a")
    np.testing.assert_array_equal(got, draw([(0, 1, [(1, 1, 3, 3)])]) == 1)


def test_coco_results(tmp_path: Path) -> None:
    tools = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    maps = {42: rng.choice([0, 1, 80, 255], SIZE), 7: np.zeros(SIZE, int), 581921: rng.choice([12, 13], SIZE)}
    for number, values in maps.items():
        write_mask(tmp_path / "masks" / f"COCO_val2014_{number:012d}.png", values)
    counts = coco_results(tmp_path / "masks", tmp_path / "out" / "results.json")
    entries = json.loads((tmp_path / "out" / "results.json").read_text())
    assert counts == {"images": 3, "entries": 4} and len(entries) == 4
    for entry in entries:
        label = LABELS[entry["category_id"]]
        np.testing.assert_array_equal(tools.decode(entry["segmentation"]) == 1, maps[entry["image_id"]] == label)
    assert {(e["image_id"], e["category_id"]) for e in entries} == {(42, 1), (42, 90), (581921, 13), (581921, 14)}
    write_mask(tmp_path / "masks" / "000000000042.png", maps[42])
    with pytest.raises(DataError, match="masks"):
        coco_results(tmp_path / "masks", tmp_path / "results.json")
    write_mask(tmp_path / "odd" / "cat.png", maps[42])
    with pytest.raises(DataError, match=r"cat\.png"):
        coco_results(tmp_path / "odd", tmp_path / "results.json")
    write_mask(tmp_path / "high" / "1.png", np.full(SIZE, 81))
    with pytest.raises(DataError, match="value 81"):
        coco_results(tmp_path / "high", tmp_path / "results.json")
    with pytest.raises(DataError, match=r"\*\.png"):
        coco_results(tmp_path, tmp_path / "results.json")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOC2012"
    rng = np.random.default_rng(0)
    for i in "abcdt":
        write_mask(root / "JPEGImages" / f"{i}.png", rng.integers(0, 9, SIZE))
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part, ids in {"train": "a", "val": "b", "test": "t"}.items():
        (lists / f"{part}.txt").write_text("\n".join(ids) + "\n")
    folder = tmp_path / "benchmark_RELEASE" / "dataset"
    (folder / "cls").mkdir(parents=True)
    for k, i in enumerate("bcd"):
        values = rng.integers(0, 21, SIZE).astype(np.uint8)
        np.save(tmp_path / f"{i}.npy", values)
        savemat(folder / "cls" / f"{i}.mat", {"GTcls": {"Segmentation": values, "CategoriesPresent": [k]}})
    (folder / "train.txt").write_text("b\nd\n")
    (folder / "val.txt").write_text("c\n")
    return root


def test_sbd_masks(voc: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    assert sbd_masks(voc, progress=lambda *c: calls.append(c)) == {"written": 3, "kept": 0, "train_aug": 3}
    assert calls == [(1, 3), (2, 3), (3, 3)]
    for i in "bcd":
        got = read_mask(voc / "SegmentationClassAug" / f"{i}.png", 20).numpy()
        np.testing.assert_array_equal(got, np.load(tmp_path / f"{i}.npy"))
    assert (voc / "ImageSets" / "Segmentation" / "train_aug.txt").read_text().split() == ["a", "c", "d"]
    (voc / "SegmentationClassAug" / "c.png").unlink()
    assert sbd_masks(voc, tmp_path / "benchmark_RELEASE" / "dataset")["written"] == 1
    (voc / "tags.csv").write_text("image,tags\na,cat\nc,dog\nd,dog\n")
    collection = open_data(DataConfig(root=voc, train="train_aug"))
    assert [i.id for i in collection.split("train")] == ["a", "c", "d"]
    assert collection.item("c").mask == voc / "SegmentationClassAug" / "c.png"


def test_sbd_broken(voc: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"benchmark\.tgz"):
        sbd_masks(voc, tmp_path / "elsewhere")
    folder = tmp_path / "benchmark_RELEASE" / "dataset"
    (folder / "cls" / "d.mat").unlink()
    with pytest.raises(DataError, match=r"d\.mat"):
        sbd_masks(voc)
    for path in folder.glob("cls/*"):
        path.unlink()
    with pytest.raises(DataError, match="cls"):
        sbd_masks(voc)
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt"):
        sbd_masks(voc)


def test_voc_submission(voc: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 21, SIZE)
    write_mask(tmp_path / "masks" / "t.png", values)
    write_mask(tmp_path / "masks" / "stray.png", values)
    archive = voc_submission(tmp_path / "masks", tmp_path / "out", ["t"], voc / "JPEGImages")
    inner = "results/VOC2012/Segmentation/comp6_test_cls/t.png"
    with tarfile.open(archive) as tar:
        assert tar.getnames() == [inner]
        tar.extractall(tmp_path / "unpacked", filter="data")
    got = tmp_path / "unpacked" / inner
    np.testing.assert_array_equal(read_mask(got, 20).numpy(), values)
    from PIL import Image

    with Image.open(got) as opened:
        assert opened.mode == "P" and opened.getpalette() == palette().ravel().tolist()
    assert "comp5_test_cls" in str(
        next(
            (voc_submission(tmp_path / "masks", tmp_path / "o5", ["t"], voc / "JPEGImages", "comp5")).parent.rglob(
                "*.png"
            )
        )
    )


def test_voc_submission_refuses(voc: Path, tmp_path: Path) -> None:
    masks, out, photos = tmp_path / "masks", tmp_path / "out", voc / "JPEGImages"
    with pytest.raises(DataError, match="masks"):
        voc_submission(masks, out, ["t"], photos)
    write_mask(masks / "t.png", np.pad(np.full((SIZE[0], 1), 255), ((0, 0), (0, SIZE[1] - 1))))
    with pytest.raises(DataError, match=r"t\.png: 6\.2%.*label\.unsure=0"):
        voc_submission(masks, out, ["t"], photos)
    write_mask(masks / "t.png", np.full(SIZE, 21))
    with pytest.raises(DataError, match="value 21"):
        voc_submission(masks, out, ["t"], photos)
    write_mask(masks / "t.png", np.zeros(SIZE[::-1], int))
    with pytest.raises(DataError, match="12x16 pixels, its photo .* has 16x12"):
        voc_submission(masks, out, ["t"], photos)
    with pytest.raises(DataError, match="comp7"):
        voc_submission(masks, out, ["t"], photos, "comp7")
    with pytest.raises(DataError, match="masks"):
        voc_submission(masks, out, [], photos)
    write_mask(masks / "u.png", np.zeros(SIZE, int))
    with pytest.raises(DataError, match="JPEGImages.*'u'"):
        voc_submission(masks, out, ["u"], photos)
    assert not (out / "results.tgz").exists()


def run(*args: Any) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["convert", *map(str, args), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_command_line(voc: Path, tmp_path: Path) -> None:
    assert run("sbd", voc)["train_aug"] == 3
    write_mask(tmp_path / "masks" / "t.png", np.zeros(SIZE, int))
    archive = run("voc-submission", tmp_path / "masks", tmp_path / "out", "--voc", voc)["archive"]
    assert Path(archive).is_file()
    np.save(tmp_path / "l.npy", {"a": np.eye(20)[7]})  # type: ignore[arg-type]
    assert run("labels", tmp_path / "l.npy", tmp_path / "t.jsonl", "--classes", "voc") == {"rows": 1}
    assert json.loads((tmp_path / "t.jsonl").read_text()) == {"image": "a", "tags": ["cat"]}
    (voc / "ImageSets" / "Segmentation" / "test.txt").unlink()
    with pytest.raises(DataError, match="'test'.*VOC2012test"):
        run("voc-submission", tmp_path / "masks", tmp_path / "out", "--voc", voc)


def test_command_line_of_coco(annotations: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    assert run("coco", annotations, "--workers", 1)["images"] == 5
    assert run("coco-results", tmp_path / "masks" / "train2014", tmp_path / "r.json")["images"] == 5
