"""README.md and docs/python.md say nothing that does not work: their examples run, their names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.config import named_configs
from tagmask.data.review import Journal
from tagmask.registry import HEADS, METHODS
from tests.cli.calls import TINY, call

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
TRAIN = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")


def python(text: str) -> list[str]:
    """The page's Python blocks."""
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as README's reader has it: photos and tags.csv word for word, new photos, one photo."""
    (table,) = re.findall(r"```\n(image,tags\n.*?)```", README, flags=re.S)
    (tmp_path / "tags.csv").write_text(table)
    names = [f"photos/{line.split(',')[0]}" for line in table.splitlines()[1:]]
    generator = np.random.default_rng(0)
    for name in [*names, "photos/untagged.jpg", "holiday/sea.jpg", "photo.jpg"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_run_as_typed(place: Path) -> None:
    lines = [shlex.split(line, comments=True)[1:] for line in README.splitlines() if line.startswith("tagmask ")]
    assert [words[0] for words in lines] == ["demo", "check", "run", "predict", "view", "run"]
    for words in lines[1:4]:  # demo and view have tests of their own
        call(*words, *(TINY if words[0] == "run" else []))
    Journal("runs/first").add("beach", "accept")
    call(*lines[5])
    folder = re.findall(r"^\| `([\w./]+)` \|", README, flags=re.M)
    files = {"report.html", "metrics.json", "quality.csv", "suspects.csv"}
    assert {"masks/", "predictions/", "segmenter/model/", *files} == set(folder)
    unmade = {"suspects.csv"}  # which needs pretrained weights
    assert all((place / "runs/first" / name).exists() for name in {*folder} - unmade)
    assert sorted(p.stem for p in (place / "runs/first/masks").glob("*.png")) == ["beach", "empty", "garden"]
    assert (place / "runs/first/predictions/untagged.png").exists() and (place / "holiday_masks/sea.png").exists()
    for code in [*python(README), *python(PYTHON)[:2]]:
        (place / "mask.png").unlink(missing_ok=True)
        exec(code, names := {})  # noqa: S102
        assert "segmenter" not in names or (place / "mask.png").exists()
    assert (place / "runs/second/model").is_dir()


def test_the_operators_example_runs() -> None:
    (code,) = [block for block in python(PYTHON) if "random_walk" in block]
    names: dict = {}
    exec(code, names)  # noqa: S102
    assert names["refined"].shape == names["sharp"].shape == (1, 3, 96, 128) and names["walked"].shape == (3, 24, 32)


def test_parts_that_work_alone_exist() -> None:
    rows = re.findall(r"^\| `(tagmask\.\w+)` \| (.*) \|", PYTHON, flags=re.M)
    assert len(rows) == 4
    for package, parts in rows:
        home = __import__(package, fromlist=["_"])
        assert all(hasattr(home, name) for name in re.findall(r"`(\w+)`", parts)), package


def test_methods_heads_and_configurations_exist() -> None:
    listed = set(re.findall(r"\[`(\w+)`\]\(docs/methods", README))
    assert set(METHODS.names()) - listed <= {"supervised"} and listed <= set(METHODS.names())
    heads = re.search(r"head is one of ([^(]*)", TRAIN)
    assert heads is not None and set(re.findall(r"`(\w+)`", heads.group(1))) == set(HEADS.names())
    assert {"deeplab_v2", "deeplab_largefov", "upernet_swin", "tscd_voc"} <= set(named_configs())
