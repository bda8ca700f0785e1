"""Settings and YAML files of strangers: each wrong one is an error that names its key or file."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from tagmask.config import dump_yaml, load_config, parse_overrides, read_yaml
from tagmask.errors import ConfigError, plain
from tagmask.methods.base import build_refiner
from tagmask.registry import METHODS
from tagmask.reproduce.table import read_table
from tagmask.training import make_fabric
from tagmask.yaml_text import LARGEST, parse_yaml, to_yaml

WRONG = [
    "train.clip=-1", "train.clip=0", "train.betas=[2,3]", "train.betas=[0.9,1]", "train.ema=5", "train.ema=1",
    "train.devices=0", "train.devices=-2", "train.devices=a", "train.nodes=0", "train.accelerator=foo",
    "train.strategy=foo", "train.workers=-1", "train.workers=1e9", "train.lr=nan", "train.lr=inf", "train.lr=1e999",
    "train.steps=1e10", "train.batch_size=null", "seed=1e26", "seed=-1", "seed=4294967296",
    "data.seed=-1", "label.scales=[]", "label.scales=[-1]", "label.scales=[0]", "label.scales=[1e9]", "label.tile=-5",
    "label.threshold=1.1", "label.cam_scales=1", "views.crop=1e9", "views.scale=[2,1]", "views.scale=[0,1]",
    "views.jitter=[0,0,0,1]", "views.short_side=0", "encoder.std=[0,0,0]", "encoder.output_stride=-8",
    "evaluate.bins=1e9", "evaluate.boundary=-0.1", "evaluate.only=[true]", "method=3", "train=[1]", "stages=3",
    "stages=[[a]]", "stages=[{a: 1, b: 2}]", "stages={cams: {high: 0.1, low: 0.5}}", "label.high=0.5",
    "data.nothing=1", ".=1", f"seed={'9' * 6000}", f"train.lr={'9' * 6000}", f"{'a.' * 9000}b=1",
]  # fmt: skip


@pytest.mark.parametrize("setting", WRONG, ids=lambda setting: setting[:40])
def test_a_wrong_setting_is_named(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0].split(".")[0] or "."):
        load_config(overrides=[setting])


def kinds(annotation: Any) -> set[Any]:
    inner = get_args(annotation)
    return set().union(*map(kinds, inner)) if inner else {annotation}


def numbers(part: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Defaults of all settings that take numbers, by dotted key."""
    found: dict[str, Any] = {}
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            found |= numbers(value, f"{prefix}{name}.")
        elif kinds(field.annotation) & {int, float}:
            found[prefix + name] = value
    return found


@pytest.mark.parametrize("name", METHODS.names())
def test_every_number_has_bounds(name: str) -> None:
    config = load_config({"method": {"name": name}})
    found = numbers(config)
    assert {"seed", "train.lr", "label.scales", "views.jitter"} < found.keys()
    for key, default in found.items():
        for number in ("1e30", "-1e30", "nan", "inf"):
            listed = f"[{', '.join([number] * max(1, len(default)))}]" if isinstance(default, list | tuple) else number
            with pytest.raises(ConfigError, match=key):
                load_config({"method": {"name": name}}, overrides=[f"{key}={listed}"])


def test_devices_that_are_not_there_are_a_setting() -> None:
    for setting in ("train.devices=98,99", "train.accelerator=mps"):
        with pytest.raises(ConfigError, match="train.devices"):
            make_fabric(load_config(overrides=["train.accelerator=cpu", setting]).train)


@pytest.mark.parametrize("options", [{"iterations": 0}, {"iterations": "x"}, {"iterations": 10**9}, {"no": 1}])
def test_options_of_parts_are_checked(options: dict) -> None:
    with pytest.raises(ConfigError, match="iterations"):
        build_refiner("par", options)


def test_names_stay_as_they_were_typed() -> None:
    config = load_config(overrides=["data.classes=[no, yes, on, 1, 007, 1.50, 1e3, 2001-01-01, nan]"])
    names = ["no", "yes", "on", "1", "007", "1.50", "1e3", "2001-01-01", "nan"]
    assert config.data.classes == names
    assert load_config(parse_yaml(dump_yaml(config), "saved")) == config
    assert load_config(overrides=["evaluate.only=[1]", "data.masks=2012"]).evaluate.only == ["1"]
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=["data.classes=[true, no]"])
    advice = shlex.split(f"data.classes={str(caught.value).split('quotes: ')[1].rstrip('.')}")
    assert load_config(overrides=advice).data.classes == ["true"]


@pytest.mark.parametrize(
    "sign", ["|", ",", ";", ">", "&", "*", "-", "#", "/", " ", "\t", "!", "%", "@", "::", "[", "'"]
)
def test_a_sign_is_text(sign: str) -> None:
    assert load_config(overrides=shlex.split(f"data.separator={shlex.quote(sign)}")).data.separator == sign


def test_values_are_numbers_words_or_text() -> None:
    values = parse_overrides(["a=1e-4", "b=null", "c=", "d=[1, 'no']", "e=photos #2", "f=C: x", "g=*x*", 'h="1"'])
    assert values == {
        "a": 1e-4, "b": None, "c": None, "d": [1, "no"], "e": "photos #2", "f": "C: x", "g": "*x*", "h": "1",
    }  # fmt: skip


BROKEN = {
    "aliases": b"a: &a [x,x]\nb: &b [*a,*a]\ntrain: {steps: *b}\n",
    "bomb": b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*" + bytes([c - 1])] * 9)) for c in range(98, 107)),
    "latin-1": "data: {root: caf\u00e9}\n".encode("latin-1"),
    "utf-16": "data: {root: x}\n".encode("utf-16"),
    "twice": b"seed: 1\nseed: 2\n",
    "deep": b"seed: " + b"[" * 100_000,
    "deep blocks": b"- " * 100_000,
    "tag": b"seed: !!python/object/apply:os.system [id]\n",
    "two documents": b"seed: 1\n---\nseed: 2\n",
    "a list": b"- seed\n",
    "digits": b"seed: " + b"9" * 6000,
    "keys": b"".join(b"k%d: 1\n" % i for i in range(2000)),
    "a long key": b"k" * 900 + b": 1\n",
    "a key that is a list": b"? [seed]\n: 1\n",
    "control": b"seed: \x01\n",
    "NUL": b'data: {root: "\\0"}\n',
    "cut": b"train: {steps: 1\n",
    "tab": b"\tseed: 1\n",
    "large": b"#" * (LARGEST + 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_short_message(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(BROKEN[name])
    for read in (load_config, lambda p: read_table(str(p))):
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert len(str(caught.value)) < 2000 and plain(caught.value).count("\n") <= 10
        assert name in ("digits", "keys", "a long key") or "mine.yaml" in str(caught.value)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for place in (tmp_path, tmp_path / "pipe.yaml", Path("/dev/zero"), tmp_path / ("x" * 300 + ".yaml")):
        with pytest.raises(ConfigError, match=place.name):
            read_yaml(place)
        with pytest.raises(ConfigError, match=place.name):
            read_table(str(place))


def test_a_folder_does_not_hide_a_packaged_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("demo").data.source == "demo"


def test_what_is_written_reads_back_the_same() -> None:
    value = {
        "a": ["01", "1e3", "no", "~", "", "null", "2001-01-01", "a: b", "\udce9", "08", "0x1"],
        "b": 1e-05,
        "c": [1],
    }
    assert parse_yaml(to_yaml(value), "saved") == value
