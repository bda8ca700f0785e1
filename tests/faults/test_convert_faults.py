"""Label files, SBD's masks and submissions that are damaged or made to do harm: no code, no endless work, one error."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from tagmask.cli import main
from tagmask.convert import coco_results, read_label_file, sbd_masks, voc_submission, write_tags
from tagmask.data import read_mask, write_mask
from tagmask.errors import DataError, plain
from tests.faults.campaign import times, told

VECTOR = np.array([1, 0, 1], np.float32)
ARRAY = pickle.dumps(VECTOR, protocol=2)[2:-1]
"""Instructions that leave a vector on the stack."""
NESTED = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(100))
"""A tuple of twice a tuple of twice … 100 deep: its hash and its text never end."""
HUGE = b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000
"""An integer of 240,000 digits."""


def npy(path: Path, payload: bytes) -> Path:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(payload)
    return path


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def entry(key: bytes, value: bytes = ARRAY) -> bytes:
    return b"\x80\x04}" + key + value + b"s."


def dtype(name: bytes) -> bytes:
    return b"cnumpy\ndtype\n" + name + b"\x85R"


def array(shape: bytes, data: bytes, kind: bytes = b"U\x02f4") -> bytes:
    made = b"cnumpy.core.multiarray\n_reconstruct\n)R"
    return made + b"(K\x01" + shape + dtype(kind) + b"\x89" + data + b"tb"


PAYLOADS = {
    "tuples in tuples as a name": entry(NESTED),
    "tuples deep as a name": entry(b")" + b"\x85" * 100_000),
    "tuples in tuples as a type": dtype(NESTED) + b".",
    "tuples in tuples as a type's state": dtype(b"U\x02f4") + b"(K\x03" + NESTED + b"NNNtb.",
    "tuples in tuples as a shape": entry(text("a"), array(NESTED, b"U\x00")),
    "a set of tuples": b"\x80\x04\x8f(" + NESTED + b"\x90.",
    "a dictionary of pairs": b"\x80\x02c__builtin__\ndict\n](" + NESTED + b"N\x86e\x85R.",
    "lists deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a huge number for a name": entry(HUGE),
    "a number of 6,000 digits": entry(b"I" + b"9" * 6000 + b"\n"),
    "numbers that collide": entry(b"\x8a\x10" + (2**61 - 1 << 60).to_bytes(16, "little")),
    "a huge number in a shape": entry(text("a"), array(HUGE + b"\x85", b"U\x00")),
    "a shape of a million": entry(text("a"), array(b"(" + b"J\xff\xff\xff\x7f" * 100_000 + b"t", b"U\x00")),
    "a type of a billion letters": entry(text("a"), array(b"K\x01\x85", b"U\x00", b"U\x0bU1000000000")),
    "a long vector": entry(text("a"), pickle.dumps(np.zeros(300, np.uint8), protocol=2)[2:-1]),
    "text longer than the file": entry(b"\x8d" + struct.pack("<Q", 2**40) + b"a"),
    "bytes longer than the file": entry(text("a"), b"\x8e" + struct.pack("<Q", 2**40) + b"a"),
    "a frame longer than the file": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"}.",
    "a byte array longer than the file": entry(text("a"), b"\x96" + struct.pack("<Q", 2**40) + b"a"),
    "an object made anew": entry(text("a"), b"cbuiltins\nobject\n)\x81"),
    "half a letter": entry(text("\ud800")),
    "control characters": entry(text("a\x1b[31m\n")),
    "no name": entry(text(" ")),
    "a long name": entry(text("a" * 1_000_000)),
    "bytes for a name": entry(b"C\x01a"),
    "nothing": b"",
    "an empty stack": b".",
    "only marks": b"(" * 1000 + b".",
}


@pytest.mark.parametrize("case", PAYLOADS)
def test_label_files_that_do_harm_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(DataError, match=r"a\.npy") as error:
        read_label_file(npy(tmp_path / "a.npy", PAYLOADS[case]))
    assert len(plain(error.value).encode()) <= 2000 and "allow_pickle" not in str(error.value)


def test_a_high_number_of_the_memo_takes_no_memory(tmp_path: Path) -> None:
    found = read_label_file(npy(tmp_path / "a.npy", entry(text("a"))[:-2] + b"r\xff\xff\xff\x7fs."))
    np.testing.assert_array_equal(found["a"], VECTOR)


@pytest.mark.parametrize("header", [b"", b"{'descr': '|O'}", b"(" * 9000, b"{" + b"9" * 6000 + b"}", b" " * 60_000])
def test_headers_are_not_trusted(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + entry(text("a")))
    with pytest.raises(DataError, match=r"a\.npy") as error:
        read_label_file(path)
    assert "allow_pickle" not in str(error.value)


def test_label_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "folder.npy").mkdir()
    for name in ("pipe.npy", "folder.npy", "gone.npy"):
        with pytest.raises(DataError, match=name):
            read_label_file(tmp_path / name)


def test_a_table_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/t\.jsonl"):
        write_tags({"a": VECTOR}, ["x", "y", "z"], tmp_path / "file" / "t.jsonl")


def campaign(folder: Path, seed: int, count: int) -> dict[str, int]:
    """Read ``count`` label files with faults in their bytes: each ends in a DataError, or in vectors of 0 and 1."""
    outcomes = {"refused": 0, "read": 0}
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        labels = {f"2007_{i:06d}": VECTOR for i in range(3)} | dict.fromkeys(range(3), VECTOR[::-1])  # type: ignore[dict-item]
        data = bytearray(pickle.dumps(np.array(labels, dtype=object), protocol=rng.randint(0, 5)))
        for _ in range(rng.randint(1, 3)):
            at, length = rng.randrange(len(data)), rng.randint(0, 4)
            data[at : at + length] = rng.choice([rng.randbytes(length), rng.randbytes(5), b"", data[-40:], NESTED])
        path = npy(folder / "a.npy", bytes(data))
        try:
            found = read_label_file(path)
        except DataError as error:
            assert "a.npy" in str(error), (number, error)
            outcomes["refused"] += 1
        else:
            assert all(type(key) in (str, int) and np.isin(v, (0, 1)).all() for key, v in found.items()), number
            outcomes["read"] += 1
    return outcomes


def test_campaign(tmp_path: Path) -> None:
    outcomes = campaign(tmp_path, 0, times(200))
    told(Counter(outcomes))
    assert min(outcomes.values()) > 0, outcomes


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC 2012 with three photos, and SBD's masks of two of them."""
    root, sbd = tmp_path / "VOC2012", tmp_path / "SBD"
    for name in "abc":
        write_mask(root / "JPEGImages" / f"{name}.png", np.zeros((4, 5), np.uint8))
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part, ids in {"train": "a", "val": "b", "test": "c"}.items():
        (lists / f"{part}.txt").write_text(f"{ids}\n")
    for name in "bc":
        matrix(sbd / "cls" / f"{name}.mat", np.full((4, 5), 7, np.uint8))
    (sbd / "train.txt").write_text("b\nc\n")
    (sbd / "val.txt").write_text("")
    return root


def matrix(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"GTcls": {"Segmentation": values, "CategoriesPresent": [1]}}, do_compression=True)


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "cut off":
        path.write_bytes(data[:-30])
    elif kind == "changed":
        path.write_bytes(data[:200] + bytes(40) + data[240:])
    elif kind == "text":
        path.write_text("not found")
    else:
        values = {"values": np.full((4, 5), 21, np.int16), "sizes": np.zeros((2, 2, 2)), "empty": np.array("x")}
        matrix(path, values[kind])


@pytest.mark.parametrize("kind", ["cut off", "changed", "text", "values", "sizes", "empty"])
def test_one_broken_mask_of_sbd_does_not_stop_the_rest(voc: Path, tmp_path: Path, kind: str) -> None:
    whole = (tmp_path / "SBD" / "cls" / "b.mat").read_bytes()
    damage(tmp_path / "SBD" / "cls" / "b.mat", kind)
    with pytest.raises(DataError, match=r"1 of 2.*b\.mat"):
        sbd_masks(voc)
    assert (read_mask(voc / "SegmentationClassAug" / "c.png", 20) == 7).all()
    assert not (voc / "ImageSets" / "Segmentation" / "train_aug.txt").exists()
    (tmp_path / "SBD" / "cls" / "b.mat").write_bytes(whole)
    assert sbd_masks(voc) == {"written": 1, "kept": 1, "train_aug": 2}


def test_a_pipe_among_the_masks_of_sbd_is_not_waited_for(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "SBD" / "cls" / "c.mat").unlink()
    os.mkfifo(tmp_path / "SBD" / "cls" / "c.mat")
    with pytest.raises(DataError, match=r"c\.mat"):
        sbd_masks(voc)


@pytest.mark.parametrize("id", ["../c", "/c", "a/../c", "..", "c\0", "c" * 300])
def test_no_submission_leaves_its_folder(voc: Path, tmp_path: Path, id: str) -> None:
    for folder in (tmp_path / "masks", tmp_path, tmp_path / "masks" / "a"):
        write_mask(folder / "c.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(DataError, match="list of test images names"):
        voc_submission(tmp_path / "masks", tmp_path / "out", ["c", id], voc / "JPEGImages")
    assert not (tmp_path / "out").exists()


def test_a_photo_listed_twice_is_submitted_once(voc: Path, tmp_path: Path) -> None:
    write_mask(tmp_path / "masks" / "c.png", np.zeros((4, 5), np.uint8))
    (voc / "JPEGImages" / "c.xml").write_text("no photo")
    archive = voc_submission(tmp_path / "masks", tmp_path / "out", ["c", "c"], voc / "JPEGImages")
    with tarfile.open(archive) as tar:
        assert len(tar.getnames()) == 1


def test_results_that_break_off_leave_the_old_file(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    out = tmp_path / "results.json"
    out.write_text("[]")
    write_mask(tmp_path / "masks" / "000000000001.png", np.ones((4, 5), np.uint8))
    (tmp_path / "masks" / "000000000002.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"000000000002\.png"):
        coco_results(tmp_path / "masks", out)
    assert out.read_text() == "[]" and {p.name for p in tmp_path.iterdir()} == {"masks", "results.json"}
    (tmp_path / "masks" / "000000000002.png").rename(tmp_path / "masks" / f"{'9' * 200}.png")
    with pytest.raises(DataError, match="9999"):
        coco_results(tmp_path / "masks", out)


COMMANDS = {
    "labels": ("labels", "a.npy", "t.jsonl", "--classes", "voc"),
    "classes": ("labels", "good.npy", "t.jsonl", "--classes", "nowhere.txt"),
    "coco": ("coco", "annotations/instances_val2017.json", "--workers", "1"),
    "out": ("coco", "annotations/instances_val2017.json", "--workers", "1", "-o", "good.npy"),
    "sbd": ("sbd", "VOC2012", "--sbd", "nowhere"),
    "voc-submission": ("voc-submission", "nowhere", "out", "--voc", "VOC2012"),
    "photos": ("voc-submission", "masks", "out", "--voc", "bare"),
    "coco-results": ("coco-results", "nowhere", "r.json"),
    "results": ("coco-results", "masks", "masks"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_commands_end_in_one_line(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    pytest.importorskip("pycocotools")
    npy(tmp_path / "a.npy", PAYLOADS["tuples in tuples as a name"])
    np.save(tmp_path / "good.npy", {"a": VECTOR})  # type: ignore[arg-type]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps({"images": []}))
    write_mask(tmp_path / "masks" / "1.png", np.zeros((4, 5), np.uint8))
    (tmp_path / "masks" / "1.png").rename(tmp_path / "masks" / "000000000001.png")
    (tmp_path / "bare" / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "bare" / "ImageSets" / "Segmentation" / "test.txt").write_text("000000000001\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tagmask", "convert", *COMMANDS[case]])
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr().err.strip()
    assert end.value.code == 1 and shown.startswith("error: ") and "\n" not in shown
