"""COCO's annotations, damaged or made to do harm: an error that names the entry, or every mask and tag there is."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tagmask.config import DataConfig
from tagmask.convert import coco as coco_module
from tagmask.convert import coco_masks
from tagmask.data import open_data, read_mask, write_mask
from tagmask.data.source_coco import COCO_CATEGORIES, read_coco_tags
from tagmask.errors import DataError, plain
from tagmask.files import OLD
from tests.faults.campaign import times, told

pytest.importorskip("pycocotools")
SIZE = (20, 30)
NAME = "instances_val2017.json"
NAN, INFINITY = float("nan"), float("inf")


def photo(id: int, name: str = "") -> dict[str, Any]:
    return {"id": id, "file_name": name or f"{id:012d}.jpg", "height": SIZE[0], "width": SIZE[1]}


def thing(id: int, image: int, category: int, segmentation: Any) -> dict[str, Any]:
    fields = {"id": id, "image_id": image, "category_id": category, "iscrowd": 0, "segmentation": segmentation}
    return {**fields, "bbox": [1.5, 2.5, 10.0, 8.0], "area": 80.0}


def scenes() -> dict[str, Any]:
    """Three photos: a polygon, run lengths, packed run lengths, two polygons in one."""
    box = [5, 5, 15.5, 5, 15.5, 12, 5, 12]
    runs = {"size": list(SIZE), "counts": [100, 20, 480]}
    packed = {"size": list(SIZE), "counts": "T3d0P?"}
    found = [thing(1, 7, 1, [box]), thing(2, 8, 17, runs), thing(3, 9, 18, packed), thing(4, 7, 90, [box, box[2:]])]
    categories = [{"id": id, "name": name, "supercategory": "x"} for id, name in COCO_CATEGORIES.items()]
    return {"info": {"year": 2017}, "images": [photo(i) for i in (7, 8, 9)], "annotations": found} | {
        "categories": categories
    }


def put(root: Path, content: Any) -> Path:
    """The file, given as its value, text or bytes."""
    path = root / "annotations" / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(content)
    return path


def changed(steps: tuple[Any, ...], value: Any) -> dict[str, Any]:
    content = copy.deepcopy(scenes())
    place: Any = content
    for step in steps[:-1]:
        place = place[step]
    place[steps[-1]] = value
    return content


def test_the_scenes_are_fine(tmp_path: Path) -> None:
    assert coco_masks(put(tmp_path, scenes()), workers=1) == {"images": 3, "with_tags": 3, "crowds": 0}
    for image, label, pixels in ((8, 16, 20), (9, 17, 20)):
        mask = read_mask(tmp_path / "masks" / "val2017" / f"{image:012d}.png", 80)
        assert (mask == label).sum() == pixels


ANNOTATION = ("annotations", 1)
SEGMENTATIONS = {
    "nan": [[5, 5, NAN, 5, 9, 9]],
    "infinity": [[5, 5, INFINITY, 5, 9, 9]],
    "far": [[0, 0, 1e9, 0, 1e9, 1e9]],
    "far below": [[0, 0, -1e9, 0, 5, 5]],
    "two points": [[0, 0, 5, 5]],
    "half a point": [[0, 0, 5, 5, 9, 9, 1]],
    "text": [["0", "0", "5", "0", "5", "5"]],
    "nested": [[[0, 0], [5, 0], [5, 5]]],
    "numbers": [0, 0, 5, 0, 5, 5],
    "no polygons": [],
    "one without points": [[0, 0, 5, 0, 5, 5], []],
    "an endless outline": [[0, 0, 29, 19] * 100_000],
    "null": None,
    "a name": "polygon",
    "no counts": {"size": list(SIZE)},
    "no size": {"counts": [600]},
    "another size": {"size": [100_000, 100_000], "counts": [10**10]},
    "too few": {"size": list(SIZE), "counts": [9]},
    "negative": {"size": list(SIZE), "counts": [700, -100]},
    "huge": {"size": list(SIZE), "counts": [2**32, 600 - 2**32]},
    "fractions": {"size": list(SIZE), "counts": [300.5, 299.5]},
    "nan runs": {"size": list(SIZE), "counts": [NAN]},
    "packed nonsense": {"size": list(SIZE), "counts": "zzzz"},
    "packed too long": {"size": list(SIZE), "counts": "T3d0P?T3"},
    "packed negative": {"size": list(SIZE), "counts": "O1"},
    "packed cut off": {"size": list(SIZE), "counts": "T3d0P"},
    "packed endless": {"size": list(SIZE), "counts": "o" * 1000 + "0"},
}


@pytest.mark.parametrize("case", SEGMENTATIONS)
def test_numbers_are_checked_before_c_code_sees_them(tmp_path: Path, case: str) -> None:
    path = put(tmp_path, changed((*ANNOTATION, "segmentation"), SEGMENTATIONS[case]))
    with pytest.raises(DataError, match=f"{NAME}: annotation 2: not a valid segmentation"):
        coco_masks(path, workers=1)
    assert not (tmp_path / "tags_val2017.jsonl").exists()
    read_coco_tags(path)  # tags alone can be had


def test_polygons_may_reach_over_the_edge(tmp_path: Path) -> None:
    path = put(tmp_path, changed((*ANNOTATION, "segmentation"), [[-3.5, -2, 31.2, -2, 31.2, 21, -3.5, 21]]))
    coco_masks(path, workers=1)
    assert (read_mask(tmp_path / "masks" / "val2017" / f"{8:012d}.png", 80) == 16).all()


IMAGE = ("images", 0)
FIELDS: list[tuple[tuple[Any, ...], Any, str]] = [
    *(((*IMAGE, "height"), value, "image 7.*height") for value in (0, -5, 100_000, NAN, 1e300, None, "20", 20.5, [20])),
    *(((*IMAGE, "id"), value, "image .*'id'") for value in (None, "7", 1e30, -1, True, [[]])),
    ((*IMAGE, "id"), 8, "image 8 is listed twice"),
    *(((*IMAGE, "file_name"), value, "image 7.*file_name") for value in ("../a.jpg", "/a.jpg", "..\\a.jpg", "..", "")),
    *(((*IMAGE, "file_name"), value, "image 7.*file_name") for value in ("a\0.jpg", "a\n.jpg", None, 5)),
    ((*IMAGE, "file_name"), "a" * 300 + ".jpg", "image 7.*file_name"),
    ((*IMAGE, "file_name"), f"{8:012d}.jpg", "image 8.*image 7"),  # one file
    ((*IMAGE, "file_name"), f"{8:012d}.png", "image 8.*image 7"),  # one mask
    *(((*ANNOTATION, "iscrowd"), value, "annotation 2.*iscrowd") for value in (None, "0", 2, [1], NAN)),
    *(((*ANNOTATION, "image_id"), value, "annotation 2.*image_id") for value in (None, 1e30, "8", 8.5)),
    ((*ANNOTATION, "image_id"), 99, "annotation 2.*image 99"),
    *(((*ANNOTATION, "category_id"), value, "annotation 2.*category") for value in (12, 0, None, "person", NAN)),
    *(((key,), value, key) for key in ("images", "annotations", "categories") for value in (None, {}, 5, "x")),
    *(((key,), [value], "number 1") for key in ("images", "annotations", "categories") for value in (None, [], 5)),
    (("images",), [], "annotation 1"),
    (("categories", 0, "name"), "unicorn", "category 1.*unicorn"),
]


@pytest.mark.parametrize("case", range(len(FIELDS)))
def test_wrong_fields_are_named(tmp_path: Path, case: int) -> None:
    steps, value, message = FIELDS[case]
    path = put(tmp_path, changed(steps, value))
    for read in (read_coco_tags, lambda path: coco_masks(path, workers=1)):
        with pytest.raises(DataError, match=f"{NAME}.*{message}"):
            read(path)


def test_a_huge_photo_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    content = changed((*IMAGE, "height"), 65_000)
    content["images"][0]["width"] = 65_000
    with pytest.raises(DataError, match="image 7 .*65000x65000"):
        coco_masks(put(tmp_path, content), workers=1)


def text(**lists: str) -> str:
    whole = {key: json.dumps(value) for key, value in scenes().items()} | lists
    return "{" + ", ".join(f'"{key}": {value}' for key, value in whole.items()) + "}"


DEEP = 100_000
TEXTS = {
    "deep lists": text(annotations="[" * DEEP + "]" * DEEP),
    "deep lists, cut off": text()[:-1] + ', "more": ' + "[" * DEEP,
    "deep objects": text(info='{"a":' * DEEP + "1" + "}" * DEEP),
    "a deep segmentation": text(annotations='[{"id": 2, "segmentation": ' + "[" * 990 + "]" * 990 + "}]"),
    "a long integer": text(images='[{"id": ' + "9" * 6000 + "}]"),
    "cut off": text()[:-200],
    "a list": "[]",
    "nothing": "",
    "two values": text() + text(),
    "UTF-16": text().encode("utf-16"),
    "no text": b"\x89PNG\r\n\x1a\n" + bytes(200),
}


@pytest.mark.parametrize("case", TEXTS)
def test_broken_json_is_named(tmp_path: Path, case: str) -> None:
    path = put(tmp_path, TEXTS[case])
    with pytest.raises(DataError, match=NAME) as error:
        coco_masks(path, workers=1)
    assert len(plain(error.value).encode()) <= 2000
    assert [p.name for p in tmp_path.iterdir()] == ["annotations"]


def test_a_mark_and_numbers_beyond_json_are_no_fault(tmp_path: Path) -> None:
    content = changed((*ANNOTATION, "area"), NAN)
    assert coco_masks(put(tmp_path, b"\xef\xbb\xbf" + json.dumps(content).encode()), workers=1)["images"] == 3


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = put(tmp_path, scenes())
    path.unlink()
    os.mkfifo(path)
    for read in (read_coco_tags, coco_masks, lambda path: open_data(DataConfig(root=tmp_path, source="coco"))):
        with pytest.raises(DataError):
            read(path)


def test_rows_of_one_photo_are_united(tmp_path: Path) -> None:
    path = tmp_path / "tags_val2017.jsonl"
    rows = [{"image": "a.jpg", "tags": ["dog"]}, {"image": "a.jpg", "tags": ["cat", "dog"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_coco_tags(path) == {"a.jpg": (15, 16)}


def test_photos_of_one_name_in_two_lists_are_refused(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        write_mask(tmp_path / split / "a.png", np.zeros((2, 2), np.uint8))
        (tmp_path / f"tags_{split}.jsonl").write_text('{"image": "a.png", "tags": ["dog"]}\n')
    with pytest.raises(DataError, match="val2017/a.png.*train2017/a.png"):
        open_data(DataConfig(root=tmp_path, source="coco"))


@pytest.mark.parametrize("mark", ["", "[]", "{", '{"bytes": 5}', '{"source": 0, "buckets": "x"}', "kept"])
def test_a_damaged_folder_of_parts_is_made_anew(tmp_path: Path, mark: str) -> None:
    path, work = put(tmp_path, scenes()), tmp_path / ".convert_val2017"
    coco_module.fill_buckets(path, work)
    if mark == "kept":
        (work / "0.jsonl").unlink()
    else:
        (work / "mark.json").write_text(mark)
    assert coco_masks(path, workers=1)["images"] == 3


def test_a_damaged_part_says_what_to_delete(tmp_path: Path) -> None:
    path, work = put(tmp_path, scenes()), tmp_path / ".convert_val2017"
    coco_module.fill_buckets(path, work)
    (work / "0.jsonl").write_bytes((work / "0.jsonl").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"\.convert_val2017.*Delete"):
        coco_masks(path, workers=1)


def test_leftovers_of_killed_calls_go(tmp_path: Path) -> None:
    path, masks = put(tmp_path, scenes()), tmp_path / "masks" / "val2017"
    masks.mkdir(parents=True)
    for old in (masks / ".0123abce.8.part", tmp_path / ".0123abcd.7.part"):
        old.write_text("")
        os.utime(old, (time.time() - 2 * OLD,) * 2)
    (tmp_path / ".convert_val2017").mkdir()
    (tmp_path / ".convert_val2017" / "0.jsonl").write_text("[")
    coco_masks(path, workers=1)
    assert {p.name for p in tmp_path.iterdir()} == {"annotations", "masks", "tags_val2017.jsonl"}
    assert len(list(masks.iterdir())) == 3


def test_nothing_is_written_under_its_name_by_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, labels: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(coco_module, "write_mask", fails)
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(KeyboardInterrupt):
        coco_masks(put(tmp_path, scenes()), workers=1)
    assert {p.name for p in tmp_path.iterdir()} == {"annotations", ".convert_val2017"}


def dies(job: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_module, "get_context", lambda kind: multiprocessing.get_context("fork"))
    monkeypatch.setattr(coco_module, "_draw_bucket", dies)
    with pytest.raises(DataError, match=f"{NAME}.*--workers 1"):
        coco_masks(put(tmp_path, scenes()), workers=2)


def test_workers_end_with_their_parent() -> None:
    code = """
        import os, sys, time
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        from tagmask.processes import end_with_parent
        pool = ProcessPoolExecutor(1, get_context("spawn"), end_with_parent)
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        worker = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    for _ in range(600):
        if not alive(worker):
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


HOSTILE: list[Any] = [
    *(NAN, INFINITY, -INFINITY, 1e9, -1e9, 1e300, 10**30, 10**4000, -1, 0, 1, 2**31, 2**32, 2**63, 0.5, 1e-300),
    *(None, True, "", "\0", "../x", "9" * 300, [], {}, [[]], [None], [[NAN] * 6], {"size": [1, 1], "counts": "0"}),
    *([[0, 0, 29, 19] * 3], [0, 10**9], {"size": list(SIZE), "counts": [0] * 50 + [600]}, "a.jpg", 100_000),
]


def places(value: Any, above: Any = None, key: Any = None) -> list[tuple[Any, Any]]:
    """(holder, key) of each part of a JSON value but the categories."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [place for k, part in inner if k != "categories" for place in places(part, value, k)]
    return [(above, key), *below] if above is not None else below


def mutated(rng: random.Random) -> bytes:
    """The scenes with one to three faults, in their values or in their bytes."""
    content = scenes()
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(places(content))
        kind = rng.random()
        if kind < 0.6:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif kind < 0.7:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(rng.randint(0, len(holder)), copy.deepcopy(holder[key]))
    data = json.dumps(content).encode()
    if rng.random() < 0.3:
        data = json.dumps(scenes()).encode()
        at, length = rng.randrange(1500), rng.randint(1, 20)
        piece = rng.choice(
            [b"", bytes(rng.randrange(256) for _ in range(length)), data[at + 7 :], b"[" * 5000, b"9" * 9]
        )
        data = data[:at] + piece + data[at + length :]
    return data


def expected(data: bytes) -> dict[str, set[str]]:
    """Tags by file name, read plainly."""
    content = json.loads(data)
    names = {entry["id"]: entry["file_name"] for entry in content["images"]}
    found: dict[str, set[str]] = {entry["file_name"]: set() for entry in content["images"]}
    for entry in content["annotations"]:
        found[names[entry["image_id"]]].add(COCO_CATEGORIES[entry["category_id"]])
    return found


def campaign(root: Path, seed: int, count: int) -> dict[str, int]:
    """Convert ``count`` faulty files: each ends in a DataError that names the file, or in all its masks and tags."""
    outcomes = {"refused": 0, "whole": 0}
    for number in range(count):
        data = mutated(random.Random(f"{seed} {number}"))
        path = put(root / str(number), data)
        try:
            coco_masks(path, workers=1)
        except DataError as error:
            assert NAME in str(error), (number, error)
            assert not (path.parent.parent / "tags_val2017.jsonl").exists(), number
            outcomes["refused"] += 1
            continue
        rows = map(json.loads, (path.parent.parent / "tags_val2017.jsonl").read_text().splitlines())
        want = expected(data)
        assert {row["image"]: set(row["tags"]) for row in rows} == want, number
        masks = {p.stem for p in (path.parent.parent / "masks" / "val2017").iterdir()}
        assert masks == {Path(name).stem for name in want}, number
        outcomes["whole"] += 1
    return outcomes


def test_campaign(tmp_path: Path) -> None:
    outcomes = campaign(tmp_path, 0, times(40))
    told(Counter(outcomes))
    assert min(outcomes.values()) > 0, outcomes
