"""Weights files of strangers: read, or refused in one line; no code of theirs runs, and none ends the process."""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tagmask.config import EncoderConfig
from tagmask.encoders import build_encoder
from tagmask.encoders.weight_files import read_state
from tagmask.encoders.weights import TRAINED
from tagmask.errors import WeightsError, plain
from tagmask.pickles import check_pickle

STATE = {"conv.weight": torch.ones(2, 3), "steps": torch.tensor(3)}
RAN: list[str] = []


class Harmful:
    def __reduce__(self):
        return RAN.append, ("ran",)


def saved(content: object, path: Path, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


def with_pickle(path: Path, data: bytes) -> Path:
    """A checkpoint of torch's whose pickle is ``data``."""
    saved(STATE, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, data if name.endswith("data.pkl") else content)
    return path


def looped(path: Path) -> Path:
    state: dict = {}
    state["state_dict"] = {"model": state}
    return saved(state, path)


def bomb(path: Path) -> Path:
    """An archive of a hundred kB that holds an array of 100 MB."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (25_000_000,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conv.weight.npy", buffer.getvalue() + bytes(100_000_000))
    return path


def params(array: bytes) -> bytes:
    """A file of MXNet's with one array, which is what comes after the number that new arrays start with."""
    return struct.pack("<QQQI", 0x112, 0, 1, 0xF993FAC9) + array + struct.pack("<QQ5s", 1, 5, b"arg:a")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


DEEP = b"\x80\x02})" + b"\x85" * 1_000_000
HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999,)}"
HALF = torch.zeros(1, dtype=torch.half)
WRONG = {
    "empty.pth": lambda p: written(p, b""),
    "empty.safetensors": lambda p: written(p, b""),
    "empty.npz": lambda p: written(p, b""),
    "empty.params": lambda p: written(p, b""),
    "text.pth": lambda p: written(p, b"<html>not found</html>"),
    "nothing.pth": lambda p: saved({}, p),
    "numbers.pth": lambda p: saved({1: torch.ones(2), 2: torch.ones(2)}, p),
    "list.pth": lambda p: saved([torch.ones(2)], p),
    "tensor.pth": lambda p: saved(torch.ones(2), p),
    "loop.pth": looped,
    "deep key.pth": lambda p: with_pickle(p, DEEP + b"K\x01s."),
    "deep value.pth": lambda p: with_pickle(p, DEEP.replace(b"})", b"}K\x01)") + b"s."),
    "deep legacy.pth": lambda p: written(p, DEEP + b"K\x01s."),
    "code.pth": lambda p: saved({"state_dict": STATE, "x": Harmful()}, p),
    "code legacy.pth": lambda p: saved({"x": Harmful()} | STATE, p, _use_new_zipfile_serialization=False),
    "pickle.pth": lambda p: written(p, pickle.dumps(STATE)),
    "sparse.pth": lambda p: saved({"a": torch.eye(3).to_sparse()}, p),
    "meta.pth": lambda p: saved({"a": torch.empty(3, device="meta")}, p),
    "complex.pth": lambda p: saved({"a": torch.ones(3, dtype=torch.complex64)}, p),
    "strides.pth": lambda p: saved({"a": HALF.expand(1_000_000, 1_000_000)}, p),
    "bomb.npz": bomb,
    "objects.npz": lambda p: np.savez(p, a=np.array([Harmful()], object)),
    "shape.npz": lambda p: written(p, b"\x93NUMPY\x01\x00\x46\x00" + HEADER.ljust(70)),
    "header.safetensors": lambda p: written(p, struct.pack("<Q", 2**63) + b"{}"),
    "deep.safetensors": lambda p: written(p, struct.pack("<Q", 100_000) + b"[" * 100_000),
    "offsets.safetensors": lambda p: written(
        p, struct.pack("<Q", 64) + b'{"a":{"dtype":"F32","shape":[9,9],"data_offsets":[0,99999999]}}'.ljust(64)
    ),
    "dimensions.params": lambda p: written(p, params(struct.pack("<I", 2**31))),
    "sizes.params": lambda p: written(p, params(struct.pack("<I2q3i", 2, 2**62, 2**62, 1, 0, 0))),
    "names.params": lambda p: written(p, params(struct.pack("<Iq3if", 1, 1, 1, 0, 0, 1)).replace(b"\5\0", b"\xff\xff")),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line_with_a_way_out(name: str, tmp_path: Path) -> None:
    WRONG[name](tmp_path / name)
    with pytest.raises(WeightsError, match=re.escape(name)) as caught:
        read_state(tmp_path / name)
    text = plain(caught.value)
    assert "\n" not in text and "weights_only" not in text and "\x1b" not in str(caught.value)
    assert not RAN


def test_no_such_file_of_any_name(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / ("x" * 300), Path("/dev/zero")):
        with pytest.raises(WeightsError, match=place.name):
            read_state(place)


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_beside_the_tensors_are_no_code(zipped: bool, tmp_path: Path) -> None:
    extra = {"best_acc1": np.float64(71.2), "epoch": np.int64(3), "curve": np.ones(3), "rng": [np.ones(3, "u4")]}
    content = {"state_dict": {f"module.{k}": v for k, v in STATE.items()}, **extra}
    path = saved(content, tmp_path / "dp.pth", _use_new_zipfile_serialization=zipped)
    assert read_state(path).keys() == STATE.keys()


def test_tuples_are_counted_however_they_are_nested() -> None:
    shared, deep = (1, [(2,)]), (1,)
    for _ in range(200):
        deep = (deep, 0, deep)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        check_pickle(io.BytesIO(pickle.dumps({"a": [shared] * 500, (1, (2,)): {"b": [shared] * 3}}, protocol)))
        with pytest.raises(ValueError, match="tuples"):
            check_pickle(io.BytesIO(pickle.dumps(deep, protocol)))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tiny = EncoderConfig(name="test_resnet", weights="none")
    state = build_encoder(tiny).body.state_dict()
    next(iter(state.values())).fill_(torch.nan)
    path = saved(state, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match="1 not finite"):
        build_encoder(tiny.model_copy(update={"weights": str(path)}))


MODEL = {
    "config.yaml": "encoder: {name: test_resnet, layout: default}\nmethod: {name: seam}\n",
    "classes.json": json.dumps({"encoder": "encoder", "digest": "1", "supervision": "tags", "weights_origin": "none"}),
}
DAMAGE = {
    "config.yaml": ["", "encoder: [", "encoder: 3", "- 1", "method: {}", "encoder: {name: test_resnet}", "a: &a [*a]"],
    "classes.json": [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"encoder": 3, "digest": 1, "supervision": 1, "weights_origin": 1}',
    ],
    "weights.safetensors": ["", "x" * 100],
}


@pytest.mark.parametrize("file", DAMAGE)
def test_a_damaged_model_is_no_encoder(file: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    config = EncoderConfig(name="test_resnet", weights="none")
    encoder = build_encoder(config)
    save_file({f"encoder.{k}": v for k, v in encoder.state_dict().items()}, whole / "weights.safetensors")
    for name, text in MODEL.items():
        (whole / name).write_text(text)
    assert {path.name for path in whole.iterdir()} == set(TRAINED)
    build_encoder(config.model_copy(update={"weights": str(whole)}))
    for number, text in enumerate(DAMAGE[file]):
        copy = shutil.copytree(whole, tmp_path / str(number))
        (copy / file).write_text(text)
        with pytest.raises(WeightsError, match=f"{number}.*"):
            build_encoder(config.model_copy(update={"weights": str(copy)}))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The same with a few bytes changed, cut out or repeated."""
    result = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(result))
        way = rng.randrange(4)
        if way == 0:
            result[at] = rng.randrange(256)
        elif way == 1:
            result[at : at + 8] = struct.pack("<Q", rng.choice([0, 2**31, 2**40, 2**63 - 1, 2**64 - 1]))
        elif way == 2 and len(result) > 50:
            del result[at : at + rng.randrange(1, 20)]
        else:
            result[at:at] = result[at : at + 40]
    return bytes(result)


@pytest.mark.parametrize("suffix", ["pth", "legacy.pth", "safetensors", "npz", "params", "pkl"])
def test_mutated_files_are_read_or_refused(suffix: str, tmp_path: Path) -> None:
    rng, path = random.Random(suffix), tmp_path / f"x.{suffix}"
    if suffix == "safetensors":
        save_file(STATE, path)
    elif suffix == "npz":
        np.savez(path, **{name: value.numpy() for name, value in STATE.items()})
    elif suffix == "params":
        path.write_bytes(params(struct.pack("<I2q3i6f", 2, 2, 3, 1, 0, 0, *[1.0] * 6)))
    else:
        saved({"state_dict": STATE, "epoch": np.int64(3)}, path, _use_new_zipfile_serialization="legacy" not in suffix)
    whole = path.read_bytes()
    if suffix == "pkl":  # of the pickle alone, in an archive whose checksums fit
        with zipfile.ZipFile(path) as archive:
            whole = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    for _ in range(40):
        data = mutated(whole, rng)
        if suffix == "pkl":
            with_pickle(path, data)
        else:
            path.write_bytes(data)
        try:
            read_state(path)
        except WeightsError as error:
            assert path.name in str(error) and "weights_only" not in str(error)
