"""Quality without truth and doubtful tags, from run folders to files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.config import EncoderConfig, RunConfig, load_config
from tagmask.encoders import Encoder
from tagmask.errors import ConfigError, DataError
from tagmask.evaluate.quality import PhotoQuality
from tagmask.files import read_csv, read_json
from tagmask.types import Features
from tagmask.workflow import Run, report
from tagmask.workflow.opened import open_collection
from tagmask.workflow.quality import HEADER, Quality, classes_in, doubtful, read_rows, write_rows
from tagmask.workflow.stages import Stages
from tagmask.workflow.suspects import check_tags, find_suspects, summary, suspects_of


@pytest.fixture()
def run(classifier: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(classifier, tmp_path / "run"))


def rows_of(folder: Path) -> list[dict[str, str]]:
    header, *rows = read_csv(folder / "quality.csv")
    return [dict(zip(header, row)) for row in rows]


def test_evaluate_writes_a_row_a_photo_and_the_correlation_with_the_truth(run: Path) -> None:
    words = ["evaluate", str(run), "--what", "quality", "--json", "--split"]
    (result,) = json.loads(CliRunner().invoke(app, [*words, "train"]).stdout)
    items = {item.id: item for item in Run(run).collection.split("train")}
    assert result["images"] == len(items) and -1 <= (result["correlation"]["photos"] or 0) <= 1
    rows = rows_of(run)
    assert {row["photo"] for row in rows} == set(items) and {row["split"] for row in rows} == {"train"}
    doubts = [float(row["doubt"]) for row in rows]
    assert doubts == sorted(doubts, reverse=True) and all(0 <= d <= 1 for d in doubts)
    assert [row["photo"] for row in rows] == result["doubtful"]
    for row in rows:
        known = [float(row[name]) for name in ("larger", "sure", "match")]
        assert float(row["doubt"]) == pytest.approx(1 - sum(known) / 3, abs=2e-4)
    CliRunner().invoke(app, [*words, "val"])
    assert {row["split"] for row in rows_of(run)} == {"train", "val"}, "rows of other splits are kept"
    assert set(read_json(run / "metrics.json")["quality"]) == {"train", "val"}
    shown = CliRunner().invoke(app, [*words[:4], "--split", "val"]).output
    assert "most doubtful" in shown and result["doubtful"][0] not in shown


def test_quality_needs_no_truth(run: Path) -> None:
    opened = Run(run)
    bare = [replace(item, mask=None) for item in opened.collection.items]
    opened.collection = replace(opened.collection, items=bare)
    found = Quality(opened, opened)
    found.look_at(["val"])
    result = found.finish()["val"]
    assert result["estimate"] is not None and result["correlation"] == dict.fromkeys(("photos", "shown", "classes"))
    assert result["precision"] is None or 0 <= result["precision"] <= 1
    assert all(row["iou"] == "" for row in rows_of(run))


def test_masks_of_stages_are_compared_with_the_last_segmenter(staged: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(staged, tmp_path / "staged"))
    opened = Run(folder)
    last = Stages(opened).last
    found = Quality(opened, last)
    found.look_at(["train"])
    result = found.finish()["train"]
    assert all(float(row["other"]) <= 1 for row in rows_of(folder)), "the segmenter is the other source"
    assert read_json(last.folder.metrics_file)["quality"]["train"] == result
    panels = doubtful(opened)
    assert [panel.id for panel in panels] == result["doubtful"][:8]
    page = report(opened).read_text()
    assert page.index('id="quality"') < page.index("<h2>Data</h2>") and panels[0].id in page


def test_rows_guard_against_formulas_and_doubt_that_is_unknown_comes_last(tmp_path: Path) -> None:
    photos = [
        PhotoQuality("unknown", "val", {}),
        PhotoQuality("=good", "val", {"larger": 0.9}, 0.9, None, True, [0], [1]),
        PhotoQuality("bad", "val", {"larger": 0.2}, iou=0.1),
    ]
    write_rows(tmp_path / "quality.csv", photos, ["cat", "dog"])
    text = (tmp_path / "quality.csv").read_text().splitlines()
    assert text[0] == ",".join(HEADER) and "'=good" in text[2]
    assert [row["photo"] for row in rows_of(tmp_path)] == ["bad", "=good", "unknown"]
    assert rows_of(tmp_path)[1]["missing"] == "cat" and rows_of(tmp_path)[1]["unexpected"] == "dog"


@pytest.mark.parametrize("text", ["a,b\na,b\n", f"{','.join(HEADER)}\na,val,much{',' * 7}\n"])
def test_a_changed_file_is_named(tmp_path: Path, text: str) -> None:
    for name, read in (("quality.csv", read_rows), ("suspects.csv", summary)):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


def test_small_regions_are_not_found() -> None:
    labels = torch.zeros(10, 20, dtype=torch.uint8)
    labels[0, :2], labels[1, :1], labels[2, :] = 1, 2, 255
    assert classes_in(labels, 3, share=0.01) == [0]


class Colour(Encoder):
    """Features that are the mean colour of patches of eight pixels."""

    def __init__(self) -> None:
        super().__init__("cnn", (0, 0, 0), (1, 1, 1))
        self.body = nn.Conv2d(3, 3, 1)

    def extract(self, x: Tensor, *indices: set[int]) -> Features:
        return Features(maps=[nn.functional.avg_pool2d(x, 8)])


def coloured(root: Path, photos: int = 60, wrong: int = 7) -> None:
    """Photos of one colour each, tagged with it, but for one whose tag is that of another colour."""
    lines = ["image,tags"]
    generator = torch.Generator().manual_seed(0)
    for i in range(photos):
        colour = [40, 40, 40]
        colour[i % 3] = 220
        noise = torch.randint(-20, 20, (3,), generator=generator).tolist()
        Image.new("RGB", (16, 16), tuple(c + n for c, n in zip(colour, noise))).save(root / f"{i}.png")
        lines.append(f"{i}.png,{['red', 'green', 'blue'][(i + (i == wrong)) % 3]}")
    (root / "tags.csv").write_text("\n".join(lines) + "\n")


def test_a_wrong_tag_and_the_one_that_is_missing_are_listed_first(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    coloured(tmp_path / "photos")
    collection = open_collection(load_config({"data": {"root": str(tmp_path / "photos")}}))
    file = tmp_path / "suspects.csv"
    found = find_suspects(collection, Colour(), 0, file)
    header, *rows = read_csv(file)
    assert header[:3] == ["photo", "class", "tag"] and len(rows) == len(found)
    assert {tuple(row[:3]) for row in rows[:2]} == {("7", "blue", "given"), ("7", "green", "missing")}


def test_random_weights_accuse_nobody(run: Path, config: RunConfig, tmp_path: Path) -> None:
    assert suspects_of(Run(run)) is None and not (run / "suspects.csv").exists()
    random = config.model_copy(update={"encoder": EncoderConfig(name="resnet18", weights="none")})
    with pytest.raises(ConfigError, match=r"encoder\.weights"):
        check_tags(Run(run).collection, random, tmp_path / "suspects.csv")
