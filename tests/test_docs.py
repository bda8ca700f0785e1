"""The commands that the methods' pages print can be typed: they parse, and their settings and data resolve."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

from tagmask.cli import app, common
from tagmask.config import load_config, parse_overrides
from tagmask.reproduce import read_table
from tagmask.workflow.opened import open_collection
from tagmask.workflow.train import check_schedule

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
SHELL = {"", "bash", "sh", "console"}


def commands(page: Path) -> list[str]:
    """Lines of the page's shell blocks that begin with 'tagmask', continued lines joined, comments cut off."""
    text = page.read_text(encoding="utf-8")
    blocks = [body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.S | re.M) if kind in SHELL]
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [line for line in lines if line.startswith("tagmask ")]


LINES = [pytest.param(line, id=f"{page.stem}-{i}") for page in PAGES for i, line in enumerate(commands(page))]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the data that the pages name: own photos with a table of tags, and two in VOC's layout."""
    root = tmp_path_factory.mktemp("places")
    table = "image,tags\n" + "".join(f"{i}.jpg,{name}\n" for i, name in enumerate(["cat", "dog", "cat", "dog"]))
    for folder in ("photos", "msrc/JPEGImages", "VOCdevkit/VOC2012/JPEGImages"):
        (root / folder).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8)).save(root / folder / f"{i}.jpg")
    (root / "tags.csv").write_text(table)
    (root / "photos" / "tags.csv").write_text(table)
    for folder in ("msrc", "VOCdevkit/VOC2012"):
        (root / folder / "tags.csv").write_text(table)
        lists = root / folder / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        for name, ids in {"train": "0\n", "train_aug": "0\n1\n", "val": "2\n3\n"}.items():
            (lists / f"{name}.txt").write_text(ids)
    return root


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """Verb and parameters, by the command line's own parser."""
    _, verb, *words = shlex.split(line, comments=True)
    command = get_command(app).commands[verb]  # type: ignore[attr-defined]
    with command.make_context(verb, words) as context:
        return verb, context.params


def test_commands_are_found_and_parsed(tmp_path: Path) -> None:
    assert len(PAGES) > 6 and len(LINES) > 20
    page = tmp_path / "page.md"
    page.write_text("```\ntagmask train a \\\n    b=1  # why\nother\n```\n\n```python\ntagmask train\n```\n")
    assert commands(page) == ["tagmask train a b=1  # why"]
    assert parsed(commands(page)[0])[1]["words"] == ["a", "b=1"]
    with pytest.raises(Exception, match="No such option"):  # typer brings its own click, or not
        parsed("tagmask train photos --tgas tags.csv")


@pytest.mark.parametrize("line", LINES)
def test_command_can_be_typed(line: str, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(places)
    verb, given = parsed(line)
    if verb in ("train", "run"):
        keys = ("words", "tags", "masks", "method", "encoder", "weights", "seed")
        values, overrides = common.settings(*(given[key] for key in keys))
        config = common.build(given["configs"], values, overrides)
        if "data" in values:
            assert open_collection(config).split("train")
        if verb == "train":  # 'run' plans the schedule
            check_schedule(config)
            small = [name for name in given["configs"] or () if name.startswith("msrc14_")]
            assert not small or given["configs"][0] == "msrc14", "what is fixed for every method lies in msrc14"
    elif verb == "reproduce":
        table = read_table(given["table"])
        for row in (row for row in table.rows if row.run_of is None):
            load_config(*table.configs, *row.configs, overrides=[*table.set, *row.set, *(given["overrides"] or ())])
    else:
        parse_overrides(w for w in given.get("words") or () if "=" in w)


def test_no_placeholder_is_left() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        found = re.findall(r"\b[A-Z]{4,}(?:TABLE|SMALL|SEED)\b|TODO|FIXME", page.read_text(encoding="utf-8"))
        assert not found, f"{page}: {found}"
