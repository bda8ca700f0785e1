"""The table runner: caching, resuming, refusing, rendering."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tagmask import workflow
from tagmask.errors import ConfigError
from tagmask.reproduce import packaged_tables, read_table, reproduce
from tagmask.reproduce.render import render
from tagmask.reproduce.runner import configure

TABLE = """
title: tiny
about: two rows
set:
  - encoder.name=resnet18
  - encoder.weights=none
  - views.crop=64
  - train.steps=2
  - train.warmup=1
  - train.batch_size=4
  - train.workers=0
  - train.accelerator=cpu
  - data.source=demo
  - data.demo_images=12
  - label.cam_scales=[1.0]
  - evaluate.bootstrap=20
seeds: [0, 1]
columns:
  - {title: CAM, split: train, score: cam}
  - {title: val threshold, split: train, score: cam (val threshold)}
  - {title: val, split: val, score: cam}
  - {title: test, split: test, score: segmenter}
rows:
  - {name: first, set: ["method.head_options={hidden: 8}", method.warmup=1], label: true, printed: {test: 61.5}}
  - {name: second, set: [method.name=supervised, "method.head_options={hidden: 8}"], masks_from: first, seeds: [1]}
"""


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(TABLE, encoding="utf-8")
    return str(path)


def test_runs_resumes_and_renders(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = tmp_path / "scenes", tmp_path / "out"
    plan = reproduce(table, data, out, plan=True)
    assert [line["steps"] for line in plan["plan"]] == [2, 2, 2] and plan["hours"] >= 0
    assert not out.exists()
    summary = reproduce(table, data, out)
    assert json.loads((out / "tiny" / "table.json").read_text())["markdown"] == summary["markdown"]
    first, second = summary["rows"]
    assert first["seeds"] == [0, 1] and second["seeds"] == [1]
    assert set(first["cells"]["CAM"]["seeds"]) == {0, 1} and second["cells"]["CAM"] is None
    cell = first["cells"]["test"]
    assert cell["mean"] == pytest.approx(sum(cell["seeds"].values()) / 2) and cell["printed"] == 61.5
    assert cell["protocol"]["tags_at_test"] is False and first["cells"]["CAM"]["protocol"]["tags_at_test"] is True
    assert first["cells"]["val threshold"]["protocol"]["threshold_source"] == "best on val"
    assert "(printed 61.5)" in summary["markdown"] and "no tags" in summary["markdown"]
    assert (out / "tiny" / "second" / "seed1" / "model" / "weights.safetensors").is_file()

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("what is done must not be done again")

    monkeypatch.setattr(workflow, "train", never)
    assert reproduce(table, data, out)["markdown"] == summary["markdown"]
    assert reproduce(table, data, out, rows=["second"])["markdown"] == summary["markdown"], "other rows stay"
    with pytest.raises(ConfigError, match="other settings: train.lr differ"):
        reproduce(table, data, out, ["train.lr=0.5"])


def test_a_row_takes_the_masks_of_the_row_before_it(table: str, tmp_path: Path) -> None:
    parsed = read_table(table)
    config = configure(parsed, parsed.rows[1], 1, None, tmp_path, [])
    assert config.data.train_masks == tmp_path / "first" / "seed1" / "masks" and config.seed == 1


def test_half_finished_tables_are_rendered(table: str) -> None:
    text = render(read_table(table), {})["markdown"]
    assert "not run" in text and "(printed 61.5)" in text


@pytest.mark.parametrize(
    "change,message",
    [
        (("name: second", "name: first"), "two rows"),
        (("masks_from: first", "masks_from: third"), "no row before it"),
        (("columns:", "colums:"), "not a valid table"),
        (("score: segmenter", "score: segmentr"), "unknown score 'segmentr'.*'segmenter'"),
        (("label: true, ", ""), "writes no masks"),
        (("title: tiny", "title: [tiny"), "not a valid table"),
    ],
)
def test_broken_tables_are_refused_by_name(table: str, change: tuple[str, str], message: str) -> None:
    path = Path(table)
    path.write_text(TABLE.replace(*change), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_table(table)
    assert "tiny.yaml" in str(caught.value)


def test_a_column_of_chosen_classes(table: str, tmp_path: Path) -> None:
    path = Path(table)
    text = TABLE.replace("seeds: [0, 1]", "  - evaluate.only=[boat]\nseeds: [0]").replace(
        "rows:", "  - {title: C, split: test, score: segmenter, key: c_miou}\nrows:"
    )
    path.write_text(text, encoding="utf-8")
    parsed = read_table(table)
    assert configure(parsed, parsed.rows[0], 0, None, tmp_path, []).evaluate.only == ["boat"]
    protocol = {"threshold": None, "split": "test", "split_hash": "ab", "images": 1, "truth": "x",
                "tags_at_test": False, "seed": 0, "weights": "none", "method": "m", "encoder": "e"}  # fmt: skip
    score = {"name": "segmenter", "protocol": protocol, "miou": 0.5, "interval": None, "curve": None}
    new = {"c_miou": 0.25, "interval_c_miou": {"low": 0.1, "high": 0.4}}
    cells = []
    for found in (score | new, score):  # the second is of a version that did not know the key
        cells.append(render(parsed, {("first", 0): {"scores": [found], "minutes": 1.0}})["rows"][0]["cells"])
    assert cells[0]["C"]["mean"] == 25 and cells[0]["C"]["interval"] == [10, 40]
    assert cells[1]["C"] is None and cells[1]["test"]["mean"] == 50


def test_unknown_row_names_the_nearest(table: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'first'"):
        reproduce(table, tmp_path, tmp_path, rows=["fist"])


@pytest.mark.parametrize("name", packaged_tables())
def test_packaged_tables_give_valid_configurations(name: str, tmp_path: Path) -> None:
    table = read_table(name)
    for row in table.rows:
        assert configure(table, row, 0, tmp_path, tmp_path, []).seed == 0
