"""The pages keep their word: commands can be typed, links lead somewhere, figures are those of the CSV files."""

from __future__ import annotations

import csv
import re
import shlex
import tarfile
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
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TABLES = sorted((ROOT / "docs" / "results").glob("*.csv"))
SHELL = {"", "bash", "sh", "console"}


def commands(page: Path) -> list[str]:
    """Lines of the page's shell blocks that begin with 'tagmask', continued lines joined, comments cut off."""
    text = page.read_text(encoding="utf-8")
    blocks = [body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.S | re.M) if kind in SHELL]
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [line for line in lines if line.startswith("tagmask ")]


LINES = [
    pytest.param(line, id=f"{page.relative_to(ROOT).with_suffix('').as_posix()}-{i}")
    for page in PAGES
    for i, line in enumerate(commands(page))
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the data that the pages name: own photos with tags and masks, two in VOC's layout, one in CUB's."""
    root = tmp_path_factory.mktemp("places")
    table = "image,tags\n" + "".join(f"{i}.jpg,{name}\n" for i, name in enumerate(["cat", "dog", "cat", "dog"]))
    for folder in ("photos", "msrc/JPEGImages", "VOCdevkit/VOC2012/JPEGImages"):
        (root / folder).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8)).save(root / folder / f"{i}.jpg")
    (root / "tags.csv").write_text(table)
    (root / "tags_acted.csv").write_text(table)
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "photos" / "tags.csv").write_text(table)
    (root / "shards").mkdir()
    with tarfile.open(root / "shards" / "0.tar", "w") as tar:
        for i, name in enumerate(["cat", "dog", "cat", "dog"]):
            tar.add(root / "photos" / f"{i}.jpg", f"{i}.jpg")
            (root / "cls").write_text(name)
            tar.add(root / "cls", f"{i}.cls")
    (root / "masks").mkdir()
    for i in range(4):
        Image.new("L", (8, 8), 1).save(root / "masks" / f"{i}.png")
    for folder in ("msrc", "VOCdevkit/VOC2012"):
        (root / folder / "tags.csv").write_text(table)
        lists = root / folder / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        for name, ids in {"train": "0\n", "train_aug": "0\n1\n", "val": "2\n3\n"}.items():
            (lists / f"{name}.txt").write_text(ids)
    birds = root / "CUB_200_2011"
    (birds / "images" / "001.Albatross").mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (8, 8)).save(birds / "images" / "001.Albatross" / f"{i}.jpg")
    ids = range(1, 5)
    (birds / "classes.txt").write_text("1 001.Albatross\n")
    (birds / "images.txt").write_text("".join(f"{i} 001.Albatross/{i - 1}.jpg\n" for i in ids))
    (birds / "image_class_labels.txt").write_text("".join(f"{i} 1\n" for i in ids))
    (birds / "train_test_split.txt").write_text("".join(f"{i} {i % 2}\n" for i in ids))
    (birds / "bounding_boxes.txt").write_text("".join(f"{i} 1 1 4 4\n" for i in ids))
    return root


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """Verb and parameters, by the command line's own parser."""
    _, verb, *words = shlex.split(line.replace("$TAGMASK_MSRC", "msrc"), comments=True)
    command = get_command(app).commands[verb]  # type: ignore[attr-defined]
    while hasattr(command, "commands"):  # 'convert' has verbs of its own
        command = command.commands[words.pop(0)]
    with command.make_context(verb, words) as context:
        return verb, context.params


def test_commands_are_found_and_parsed(tmp_path: Path) -> None:
    assert len(PAGES) > 15 and len(LINES) > 80
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
        config = load_config(*(given["configs"] or ()), values, overrides=overrides)
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
    for page in PAGES:
        found = re.findall(r"\b[A-Z]{4,}(?:TABLE|SMALL|SEED)\b|TODO|FIXME", page.read_text(encoding="utf-8"))
        assert not found, f"{page}: {found}"


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """Names of the page's headings, as links call them: lower case, no punctuation, dashes for blanks."""
    titles = re.findall(r"^#+ (.*)", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def cells(path: Path) -> list[dict[str, str]]:
    """Lines of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("path", [p for p in TABLES if p.stem != "msrc14_seeds"], ids=lambda path: path.stem)
def test_tables_are_whole(path: Path) -> None:
    rows = read_table(path.stem.replace("msrc14_", "msrc14/")).rows
    for cell in cells(path):
        where = f"{cell['row']}, {cell['column']}"
        assert cell["row"] in {row.name for row in rows}, where
        assert float(cell["low"]) <= float(cell["high"]) and float(cell["mean"]) <= 100, where
        seeds = cell["seeds"].split()
        assert len(seeds) == int(cell["n_seeds"]) and bool(cell["std"]) == (len(seeds) > 1), where
        assert (
            float(cell["minutes"]) > 0 and cell["machine"] and re.search(r"\d (images|photos), ", cell["protocol"])
        ), where


def test_single_seeds_have_the_tables_means() -> None:
    found: dict[tuple[str, str, str], list[float]] = {}
    for line in cells(ROOT / "docs" / "results" / "msrc14_seeds.csv"):
        found.setdefault((line["table"], line["row"], line["column"]), []).append(float(line["value"]))
    for (table, row, column), values in found.items():
        known = {(c["row"], c["column"]): c for c in cells(ROOT / "docs" / "results" / f"{table}.csv")}[row, column]
        assert len(values) in (1, int(known["n_seeds"])), (table, row, column)  # of some only the first is kept
        if len(values) > 1:
            assert abs(sum(values) / len(values) - float(known["mean"])) < 0.1, (table, row, column)
        else:
            assert float(known["low"]) < values[0] < float(known["high"]), (table, row, column)


def test_results_are_those_of_the_tables() -> None:
    """A line of the page's table names its table and row; its figures, seeds and minutes stand in that CSV file."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    lines = re.findall(r"^(\|.*`msrc14/(\w+) --rows ([\w.+-]+)`.*)", text, flags=re.M)
    assert len(lines) > 10
    for line, table, row in lines:
        known = {(c["row"], c["column"]): c for c in cells(ROOT / "docs" / "results" / f"msrc14_{table}.csv")}
        cell = known[row, "segmenter, test"]
        spread = f" ± {cell['std']}" if cell["std"] else ""
        figures = [part.strip() for part in line.split("|")]
        assert f"{cell['mean']}{spread} [{cell['low']}, {cell['high']}]" in figures, line
        assert cell["n_seeds"] in figures and any(part.startswith(f"{cell['minutes']}, ") for part in figures), line
        assert "no tags" in cell["protocol"] and "no" in figures, line
