"""Photos, tables, settings and checkpoints that are damaged at random: read, or refused in one sentence that names
them. 'make test-faults' tries many more."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel
from safetensors.torch import save

from tagmask.config import DataConfig, RunConfig, load_config
from tagmask.data import clean, fingerprint, open_data, read_image
from tagmask.encoders.weights import read_state
from tagmask.registry import METHODS
from tests.faults.campaign import damaged, outcome, times, told

SIZE = (24, 18)


def pictures() -> list[bytes]:
    """Small photos in many formats."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8))
    grey = Image.fromarray(rng.integers(0, 65536, SIZE[::-1], dtype=np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    made = []
    for image, kind, options in [
        (colours, "JPEG", {}), (colours, "JPEG", {"exif": turned}), (colours, "JPEG", {"progressive": True}),
        (colours, "PNG", {}), (colours.convert("P"), "PNG", {}), (colours.convert("RGBA"), "PNG", {}),
        (grey, "PNG", {}), (colours, "TIFF", {}), (colours, "TIFF", {"compression": "tiff_lzw"}), (colours, "BMP", {}),
        (colours.convert("CMYK"), "TIFF", {}), (colours, "WEBP", {}), (colours, "GIF", {}), (colours, "PPM", {}),
    ]:  # fmt: skip
        file = io.BytesIO()
        image.save(file, format=kind, **options)
        made.append(file.getvalue())
    return made


def test_photos(tmp_path: Path) -> None:
    rng, made, counts = np.random.default_rng(1), pictures(), Counter[str]()
    good = tmp_path / "good.png"
    good.write_bytes(made[3])
    number = times(60)
    for i in range(number):
        (tmp_path / f"p{i}.jpg").write_bytes(damaged(made[i % len(made)], rng))
    rows = [f"p{i}.jpg,cat" for i in range(number)]
    (tmp_path / "tags.csv").write_text("\n".join(["image,tags", "good.png,cat", *rows]))
    collection = open_data(DataConfig(root=tmp_path))
    found = fingerprint(collection)
    left = {item.id for item in clean(collection, found).items}
    out = {entry["id"]: entry["path"] for entry in found["unreadable"]}
    assert "good" in left and left | set(out) == {"good", *(f"p{i}" for i in range(number))}, "none is lost"
    for i in range(number):
        path = tmp_path / f"p{i}.jpg"
        came = outcome(lambda path=path: read_image(path), path.name)  # type: ignore[misc]
        assert (came == "refused") == (path.stem in out)
        counts[came] += 1
    told(counts)


TABLES = [
    "image,tags\np0.png,cat;dog\np1.png,\np2.png,dog\n",
    "image;tags\np0.png;cat\np1.png;dog\np2.png;\n",
    'image,tags\n"p0.png","[""cat"", ""dog""]"\np1.png,[]\np2.png,"[""dog""]"\n',
    "filename\tcat\tdog\np0.png\t1\t0\np1.png\t0\t1\np2.png\t1\t1\n",
    "image,tags,split\np0.png,cat,train\np1.png,dog,val\np2.png,cat,test\n",
    "image,class\np0.png,cat\np0.png,dog\np1.png,cat\np2.png,dog\n",
    "\ufeffimage,tags\r\nC:\\photos\\p0.PNG,caf\u00e9\r\nC:\\photos\\p1.PNG,dog\r\n",
]
LINES = ['{"image": "p0.png", "tags": ["cat"]}\n{"image": "p1.png", "tags": "dog;cat"}\n']


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    for i in range(3):
        Image.new("RGB", (16, 16), (80 * i, 0, 0)).save(tmp_path / f"p{i}.png")
    rng, counts = np.random.default_rng(2), Counter[str]()
    texts = TABLES if suffix == "csv" else LINES
    path = tmp_path / f"tags.{suffix}"

    def opened() -> None:
        collection = open_data(DataConfig(root=tmp_path))
        assert len(collection.items) == 3, "a table never takes a photo away"
        tags = [item.tags for item in collection.items if item.tags]
        assert tags and all(0 <= tag < len(collection.classes) for each in tags for tag in each)

    for i in range(times(40)):
        path.write_bytes(damaged(texts[i % len(texts)].encode(), rng))
        counts[outcome(opened, tmp_path.name)] += 1
    told(counts)


VALUES = [
    "-1", "0", "1", "2", "1e26", "-0.5", ".nan", ".inf", "-.inf", "[]", "[-1]", "[0, 0]", "[2, 1]", "{}", "null",
    "true", "foo", "''", "[foo]", "{foo: 1}", "1" * 6000, "[" * 2000, "&a [*a]", "!!python/name:os.system x", "\x00",
    "\ud800", "../../x", "|", ",", ">", "- -", "é", "2026-11-29", "0x7fffffffffffffff", "~/x", "%", "@", "`",
]  # fmt: skip


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted keys of all settings."""
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and name != "method":
            found += keys(inner, f"{prefix}{name}.")
        elif name != "method":
            found.append(f"{prefix}{name}")
    return found


def test_settings() -> None:
    """Each value is taken within its bounds, and can be saved and read again, or is refused by its key."""
    rng, counts = np.random.default_rng(3), Counter[str]()
    methods = METHODS.names()
    for _ in range(times(100)):
        method = methods[rng.integers(len(methods))]
        known = keys(RunConfig) + keys(METHODS.get(method).config_class, "method.")
        known = [key for key in known if key != "method.name"]
        key, value = known[rng.integers(len(known))], VALUES[rng.integers(len(VALUES))]

        def taken(method: str = method, key: str = key, value: str = value) -> None:
            config = load_config({"method": {"name": method}}, overrides=[f"{key}={value}"])
            assert load_config(config.model_dump(mode="json")) == config

        counts[outcome(taken, key.rpartition(".")[2])] += 1
    told(counts)


def checkpoints(folder: Path) -> list[Path]:
    """A file of each kind that weights are read from."""
    state = {
        "conv1.weight": torch.linspace(-1, 1, 108).view(4, 3, 3, 3),
        "fc.bias": torch.arange(5),
        "step": torch.tensor(3),
    }
    torch.save({"model": state, "best_acc1": np.float64(0.5), "epoch": 3}, folder / "a.pth")
    torch.save(state, folder / "b.pth", _use_new_zipfile_serialization=False)
    np.savez(folder / "c.npz", **{name: value.numpy() for name, value in state.items()})
    (folder / "d.safetensors").write_bytes(save(state))
    return sorted(folder.glob("[a-d].*"))


def read_tensors(path: Path) -> None:
    state = read_state(path)
    assert all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items())


def test_checkpoints(tmp_path: Path) -> None:
    rng, counts = np.random.default_rng(4), Counter[str]()
    made = [(path, path.read_bytes()) for path in checkpoints(tmp_path)]
    for path, _ in made:
        assert outcome(lambda path=path: read_state(path)) == "read"  # type: ignore[misc]
    for i in range(times(40)):
        path, content = made[i % len(made)]
        path.write_bytes(damaged(content, rng))
        counts[outcome(lambda path=path: read_tensors(path), path.name)] += 1  # type: ignore[misc]
    told(counts)
