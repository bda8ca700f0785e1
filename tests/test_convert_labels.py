"""Label files of other projects, read without running what they hold."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.convert import image_names, read_label_file, write_tags
from tagmask.errors import DataError

LABELLED = {"2007_000032": np.array([1, 0, 1], np.float32), "2007_000033": np.array([0, 0, 0], np.float32)}


def test_label_file_as_others_write_it(tmp_path: Path) -> None:
    np.save(tmp_path / "cls_labels.npy", LABELLED)  # type: ignore[arg-type]
    found = read_label_file(tmp_path / "cls_labels.npy")
    assert found.keys() == LABELLED.keys()
    for key, vector in found.items():
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, LABELLED[key])
    found = image_names(found)
    assert write_tags(found, ["cat", "cow", "dog"], tmp_path / "tags.jsonl") == 2
    rows = [json.loads(line) for line in (tmp_path / "tags.jsonl").read_text().splitlines()]
    assert rows == [{"image": "2007_000032", "tags": ["cat", "dog"]}, {"image": "2007_000033", "tags": []}]
    with pytest.raises(DataError, match="3 .*2 "):
        write_tags(found, ["cat", "cow"], tmp_path / "tags.jsonl")
    with pytest.raises(DataError, match=r"\.jsonl"):
        write_tags(found, ["cat", "cow", "dog"], tmp_path / "tags.csv")


VECTOR = np.array([1, 0, 1], np.float32)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("module", ["numpy._core", "numpy.core"])
def test_keys_as_irn_and_coco_projects_write_them(tmp_path: Path, protocol: int, module: str) -> None:
    for keys, numbers, names in (
        ((np.int32(2007000032), np.int32(2011003276)), "voc", ["2007_000032", "2011_003276"]),
        ((np.str_("2007_000032"), "2011_003276"), "voc", ["2007_000032", "2011_003276"]),
        ((np.array("2007_000032", ">U11")[()], np.str_("é")), "", ["2007_000032", "é"]),
        ((9, np.int64(581929)), "coco", ["000000000009", "000000581929"]),
    ):
        payload = pickle.dumps(np.array(dict.fromkeys(keys, VECTOR), dtype=object), protocol=protocol)
        # as NumPy 1 wrote it; the only length in the file that this changes is a framed text's of protocol 4
        if protocol < 4:
            payload = payload.replace(b"numpy._core.", module.encode() + b".")
        found = read_label_file(npy(tmp_path / "a.npy", payload))
        assert list(image_names(found, numbers)) == names
        assert all(type(key) in (str, int) for key in found)
        for vector in found.values():
            np.testing.assert_array_equal(vector, VECTOR)


def test_numbers_for_names_need_a_set_that_has_them() -> None:
    assert list(image_names({9: VECTOR}, "coco", "COCO_train2014_")) == ["COCO_train2014_000000000009"]
    assert list(image_names({"a": VECTOR}, "voc")) == ["a"]
    for labels, numbers, prefix, message in (
        ({9: VECTOR}, "", "", "number 9"),
        ({9: VECTOR}, "voc", "", "number 9"),
        ({-9: VECTOR}, "coco", "", "number -9"),
        ({10**12: VECTOR}, "coco", "", "number 1000000000000"),
        ({2007000032: VECTOR, "2007_000032": VECTOR}, "voc", "", "'2007_000032'"),
        ({2007000032: VECTOR}, "voc", "COCO_", "COCO_"),
        ({"a": VECTOR}, "coco", "COCO_", "COCO_"),
    ):
        with pytest.raises(DataError, match=message):
            image_names(labels, numbers, prefix)  # type: ignore[arg-type]


def npy(path: Path, payload: bytes) -> Path:
    """A .npy file of one object, with the given pickle."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(payload)
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["float32", ">f8", "uint8", "int64", "bool"])
def test_label_file_protocols_and_types(tmp_path: Path, protocol: int, kind: str) -> None:
    content = np.array({k: v.astype(kind) for k, v in LABELLED.items()}, dtype=object)
    path = npy(tmp_path / "a.npy", pickle.dumps(content, protocol=protocol))
    for key, vector in read_label_file(path).items():
        np.testing.assert_array_equal(vector, LABELLED[key])


def test_label_file_of_python_2_and_old_numpy(tmp_path: Path) -> None:
    # Written out by hand: text as bytes, numpy.core, and the dictionary from __builtin__.
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n"
    array += b"(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00\\x00'\ntb"
    path = npy(tmp_path / "a.npy", b"c__builtin__\ndict\n(tR(S'2007_1'\n" + array + b"u.")
    found = read_label_file(path)
    assert list(found) == ["2007_1"] and found["2007_1"].tolist() == [1.0, 0.0]


SCALAR = b"c__builtin__\ndict\n(tR(cnumpy.core.multiarray\nscalar\n(%s%s\ntRcnumpy\nndarray\n(tRu."
"""A dictionary whose key is a NumPy scalar of a type and bytes."""


class Evil:
    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickles_are_refused(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "ran"
    command = f"touch {witness}"
    attacks = [
        Evil(os.system, command),
        Evil(subprocess.Popen, ["touch", str(witness)]),
        Evil(eval, f"open({str(witness)!r}, 'w')"),
        Evil(np.load, str(witness)),
        {"a": np.ones(2), "b": Evil(os.system, command)},
        {"a": np.array([Evil(os.system, command)], dtype=object)},
        {np.int32(1): Evil(os.system, command)},
    ]
    for attack in attacks:
        path = npy(tmp_path / "a.npy", pickle.dumps(np.array(attack, dtype=object), protocol=protocol))
        with pytest.raises(DataError, match="a call of"):
            read_label_file(path)
    assert not witness.exists()
    # The test means something: loaded in the usual way the file does run its command.
    path = npy(tmp_path / "a.npy", pickle.dumps(np.array(attacks[0], dtype=object), protocol=protocol))
    np.load(path, allow_pickle=True)
    assert witness.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cbuiltins\ngetattr\n.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c_codecs\nencode\n(S'a'\nS'zlib'\ntR.",  # another codec
        b"c_codecs\nencode\n}S'function'\nS'x'\nsb.",  # changes the function itself
        b"cnumpy\ndtype\n(S'V9999999'\ntR.",
        b"cnumpy\ndtype\n(S'f4'\ntR(I3\nS'<'\n(S'a'\ntNNI-1\nI-1\nI0\ntb.",  # fields on a number
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I9\ntcnumpy\ndtype\n(S'f4'\ntRI00\nS'short'\ntb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I-9\ntcnumpy\ndtype\n(S'f4'\ntRI00\nS'short'\ntb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I2\ntcnumpy\ndtype\n(S'O'\ntRI00\n(lS'a'\natb.",
        SCALAR % (b"cnumpy\ndtype\n(S'i4'\ntR", b"S'abc'"),  # bytes short of the number's
        SCALAR % (b"cnumpy\ndtype\n(S'i4'\ntR", b"S'abcde'"),
        SCALAR % (b"cnumpy\ndtype\n(S'U2'\ntR", b"S'a\\x00\\x00\\x00'"),
        SCALAR % (b"cnumpy\ndtype\n(S'O'\ntR", b"S'abcd'"),  # an object from bytes
        SCALAR % (b"cnumpy\ndtype\n(S'M8'\ntR", b"S'abcdefgh'"),
        SCALAR % (b"cnumpy\ndtype\n(S'U0'\ntR", b"S''"),
        SCALAR % (b"S'i4'\n", b"S'abcd'"),  # no type
        b"cnumpy.core.multiarray\nscalar\n(tR.",
        b"Pid\n.",
    ],
)
def test_crafted_pickles_are_refused(tmp_path: Path, payload: bytes) -> None:
    with pytest.raises(DataError, match="refused|expected a dictionary"):
        read_label_file(npy(tmp_path / "a.npy", payload))


def test_label_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with pytest.raises(DataError, match=r"a\.npy"):
        read_label_file(path)
    np.save(path, np.ones(3))
    with pytest.raises(DataError, match="float64"):
        read_label_file(path)
    contents: list[tuple[Any, str]] = [
        ({}, "dictionary"),
        ([1, 2], "dictionary"),
        ({"a": [0, 1]}, "entry 'a'"),
        ({True: np.ones(2)}, "entry True"),
        ({np.float64(3): np.ones(2)}, "entry 3.0"),
        ({"a": np.str_("b")}, "entry 'a'"),
        ({"a": np.array(["b"])}, "array of text"),
        ({"a": np.ones((2, 2))}, "entry 'a'"),
        ({"a": np.full(2, 0.5)}, "'a'"),
        ({"a": np.ones(2), "b": np.ones(3)}, "2 .*3 "),
    ]
    for content, message in contents:
        holder = np.empty((), object)
        holder[()] = content
        np.save(path, holder)
        with pytest.raises(DataError, match=message):
            read_label_file(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"a\.npy"):
        read_label_file(path)
    np.save(path, LABELLED)  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.npy"):
        read_label_file(path)


def test_command_takes_the_prefix_of_cocos_names(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", {np.int32(9): np.eye(80, dtype=np.float32)[0]})  # type: ignore[arg-type]
    words = ["convert", "labels", tmp_path / "labels.npy", tmp_path / "tags.jsonl", "--classes", "coco"]
    command = [*map(str, words), "--prefix", "COCO_val2014_", "--json"]
    assert json.loads(CliRunner().invoke(app, command, catch_exceptions=False).output) == {"rows": 1}
    row = json.loads((tmp_path / "tags.jsonl").read_text())
    assert row == {"image": "COCO_val2014_000000000009", "tags": ["person"]}
