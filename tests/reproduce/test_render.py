"""What a table says of how its cells were made: nothing where seeds only lie in other folders, each key's own stamp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tagmask.reproduce import read_table, reproduce
from tagmask.reproduce.render import render
from tests.reproduce.tiny_table import SET

STAGED = (
    f"""
title: staged
{SET}"""
    + """\
  - "method.head_options={hidden: 8}"
seeds: [0, 1]
columns:
  - {title: test, split: test, score: segmenter}
  - {title: masks, split: train, score: masks}
rows:
  - {name: staged, stages: true, set: [method.warmup=1, "stages={classifier: {}, cams: {crf: none},
     affinity: {method: {radius: 3}}, masks: {walk: {walk_steps: 4}}, segmenter: {}}"]}
  - {name: retrained, set: [method.name=supervised], masks_from: staged}
"""
)
LAPTOP = {"processor": "Some CPU", "cores": 2, "gpus": [], "versions": {"torch": "2.15.0"}}
SERVER = {"processor": "Other CPU", "cores": 16, "gpus": ["H200", "H200"], "versions": {"torch": "2.11.0"}}
RUN = {
    "method": "m", "encoder": "e", "weights": "none", "digest": "d", "supervision": "tags", "masks": None, "seed": 0,
    "settings": {"train.lr": 0.1},
}  # fmt: skip
STAMP = {
    "split": "test", "ids": "abcdef", "images": 1, "left_out": 0, "truth": "voc:A", "tags": False, "threshold": None,
    "threshold_from": None, "settings": {}, "run": RUN, "version": "0.1.0",
}  # fmt: skip


def stamped(run: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    """A stamp, with some of its entries changed, and some of those of its run."""
    return STAMP | changed | {"run": RUN | (run or {})}


def result(name: str, stamp: dict[str, Any], environment: dict[str, Any] = LAPTOP, **values: Any) -> dict[str, Any]:
    """A result.json of one score."""
    score = {"name": name, "stamp": stamp, "set": [], "curve": None, **values}
    return {"scores": [score], "minutes": 1.0, "environment": environment}


def rendered(tmp_path: Path, column: dict[str, Any], *results: dict[str, Any]) -> dict[str, Any]:
    """A table of one column and a row a result, which has the seed of its stamp."""
    rows = [{"name": f"row{i}"} for i in range(len(results))]
    content = {"title": "t", "columns": [{"title": "c", "split": "test", **column}], "rows": rows}
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    seeds = [found["scores"][0]["stamp"]["run"]["seed"] for found in results]
    found = {(row["name"], seed): each for row, seed, each in zip(rows, seeds, results)}
    return render(read_table(str(path)), found)


def marks(summary: dict[str, Any]) -> list[str]:
    return [row["cells"]["c"]["mark"] for row in summary["rows"]]


def test_seeds_that_learn_from_their_own_masks_are_made_alike(scenes: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "staged.yaml", tmp_path / "out"
    path.write_text(STAGED, encoding="utf-8")
    summary = reproduce(str(path), scenes, out)
    cells = [row["cells"]["test"] for row in summary["rows"]] + [summary["rows"][0]["cells"]["masks"]]
    assert [sorted(cell["seeds"]) for cell in cells] == [[0, 1]] * 3
    assert [cell["mark"] for cell in cells] == [""] * 3 and [cell["seeds_differ"] for cell in cells] == [[]] * 3
    masks = cells[1]["stamp"]["run"]["masks"]
    assert (masks["method"], masks["encoder"], masks["source"]) == ("baseline", "test_resnet", "cam")
    assert masks["stage"]["name"] == "masks" and masks["stage"]["affinity"] == "irn"
    for name in ("table.md", "table.json"):
        text = (out / "staged" / name).read_text(encoding="utf-8")
        assert str(tmp_path) not in text and "seed0" not in text, "folders are nobody else's"


@pytest.mark.parametrize(
    "changed,told",
    [
        ({}, None),
        ({"version": "0.2.0"}, None),
        ({"run": {"method": "other", "encoder": "other", "digest": "x", "settings": {"train.lr": 0.2}}}, None),
        ({"run": {"supervision": "masks"}}, "supervision: masks / tags"),
        ({"run": {"weights": "imagenet"}}, "weights: imagenet / none"),
        ({"run": {"masks": {"settings": {"label.high": 0.5}}}}, "masks.settings.label.high: 0.5 / None"),
        ({"ids": "cd", "images": 2}, "ids: cd / abcdef; images: 2 / 1"),
        ({"ids": "cd", "images": 2, "run": {"seed": 1}}, None),
        ({"truth": "voc:B", "ids": "cd", "run": {"seed": 1}}, "truth: voc:B / voc:A"),
        ({"tags": True}, "tags: True / False"),
        ({"left_out": 3}, "left_out: 3 / 0"),
        ({"settings": {"label.scales": [2.0]}}, "settings.label.scales: [2.0] / None"),
        ({"settings": {"method.own": 2}}, "settings.method.own: 2 / None"),
        ({"settings": {"method.own": 2}, "run": {"method": "other"}}, None),
        ({"threshold": 0.4, "threshold_from": "val"}, "threshold: 0.4 / None; threshold_from: val / None"),
    ],
)
def test_cells_that_were_made_otherwise_say_so(tmp_path: Path, changed: dict[str, Any], told: str | None) -> None:
    column, one = {"score": "segmenter"}, result("segmenter", stamped(), miou=0.5)
    summary = rendered(tmp_path, column, one, result("segmenter", stamped(**changed), miou=0.5))
    assert marks(summary) == ["", "a" if told else ""]
    lines = [line for line in summary["markdown"].splitlines() if line.startswith("- Not made as")]
    assert [line.partition("c (a): ")[2] for line in lines] == ([told] if told else [])


@pytest.mark.parametrize("source,marked", [("fixed", True), ("training", False), ("val", False), ("this split", False)])
def test_thresholds_that_were_searched_are_each_runs_own(tmp_path: Path, source: str, marked: bool) -> None:
    both = [stamped(tags=True, threshold=value, threshold_from=source) for value in (0.3, 0.4)]
    summary = rendered(tmp_path, {"score": "cam"}, *(result("cam", stamp, miou=0.5) for stamp in both))
    assert marks(summary) == ["", "a" if marked else ""]
    assert summary["rows"][1]["cells"]["c"]["thresholds"] == {0: 0.4}


def test_thresholds_of_label_files_are_each_runs_own_where_training_found_them(tmp_path: Path) -> None:
    def marked(source: str) -> list[str]:
        made = [{"label.threshold": value, "label.threshold_from": source} for value in (0.3, 0.4)]
        scored = [stamped(threshold=s["label.threshold"], threshold_from=source, settings=s) for s in made]
        learned = [stamped({"masks": {"settings": s}}) for s in made]
        found = []
        for stamps in (scored, learned):
            summary = rendered(tmp_path, {"score": "masks"}, *(result("masks", stamp, miou=0.5) for stamp in stamps))
            found.append(marks(summary)[1])
        return found

    assert marked("training") == ["", ""] and marked("fixed") == ["a", "a"]


def test_seeds_that_differ_are_told(table: str) -> None:
    results = {
        ("first", seed): result("segmenter", stamped({"seed": seed}, settings={"label.scales": scales}), miou=0.5)
        for seed, scales in enumerate(([1.0], [2.0]))
    }
    text = render(read_table(table), results)["markdown"]
    assert "among seeds, settings.label.scales: [1.0] / [2.0]" in text
    assert "| first | test | 61.5 | 50.0 ± 0.0 | -11.5 | – |" in text


@pytest.mark.parametrize(
    "key,made",
    [
        ("top1", (False, 0.2, "fixed")),
        ("gt_known", (True, 0.2, "fixed")),
        ("max_box_acc", (True, 0.07, "this split")),
        ("top5_class", (False, None, None)),
    ],
)
def test_columns_of_boxes_have_their_own_stamps(
    tmp_path: Path, key: str, made: tuple[bool, float | None, str | None]
) -> None:
    stamp = stamped(threshold=0.2, threshold_from="fixed")
    entry = result("localization", stamp, best_threshold=0.07, **{key: 0.9})
    (row,) = rendered(tmp_path, {"score": "localization", "key": key}, entry)["rows"]
    found = row["cells"]["c"]["stamp"]
    assert (found["tags"], found["threshold"], found["threshold_from"]) == made


@pytest.mark.parametrize(
    "column,field,marked",
    [
        ({"score": "cam"}, "only", False),
        ({"score": "cam", "key": "c_miou"}, "only", True),
        ({"score": "cam", "key": "c_miou"}, "without", False),
        ({"score": "cam", "key": "miou_without"}, "without", True),
        ({"score": "cam"}, "boundary", False),
        ({"score": "cam", "key": "boundary_iou"}, "boundary", True),
        ({"score": "cam"}, "bins", False),
        ({"score": "cam", "key": "peak"}, "bins", True),
        ({"score": "cam (val threshold)"}, "bins", True),
        ({"score": "spread", "key": "mean"}, "bins", True),
        ({"score": "localization", "key": "max_box_acc"}, "bins", True),
        ({"score": "localization", "key": "gt_known"}, "bins", False),
    ],
)
def test_rows_scored_over_other_classes_or_thresholds_have_a_letter(
    tmp_path: Path, column: dict[str, Any], field: str, marked: bool
) -> None:
    keys = ("miou", "c_miou", "miou_without", "boundary_iou", "mean", "max_box_acc", "gt_known")
    values = dict.fromkeys(keys, 0.5) | {"curve": {"peak": {"threshold": 0.2, "miou": 0.5}}}
    settings = [{f"evaluate.{field}": value} for value in (1, 1, 2)]
    made = [result(column["score"], stamped(settings=each), **values) for each in settings]
    assert marks(rendered(tmp_path, column, *made)) == ["", "", "a" if marked else ""]


@pytest.mark.parametrize("seeds,expected", [((0, 0, 0), ["", "a", "b"]), ((0, 1, 2), ["", "", "a"])])
def test_truths_of_other_folders_have_a_letter_and_counts_of_other_photos_none(
    tmp_path: Path, seeds: tuple[int, ...], expected: list[str]
) -> None:
    """The masks of the same photos may not lie elsewhere; another seed may hold out photos of other folders."""
    truths = ["voc:A (3), B (2)", "voc:B (3), A (2)", "voc:A"]
    stamps = [stamped({"seed": seed}, truth=truth, ids=str(seed)) for seed, truth in zip(seeds, truths)]
    made = [result("cam", stamp, miou=0.5) for stamp in stamps]
    assert marks(rendered(tmp_path, {"score": "cam"}, *made)) == expected


@pytest.mark.parametrize(
    "column,entry,interval",
    [
        ({"score": "cam", "key": "peak"}, {"curve": {"peak": {"miou": 0.5, "interval": "HERE"}}}, True),
        ({"score": "cam", "key": "peak_c_miou"}, {"curve": {"peak": {"c_miou": 0.5, "interval_c_miou": "HERE"}}}, True),
        ({"score": "cam", "key": "peak_recall"}, {"curve": {"peak": {"recall": 0.5, "interval": "HERE"}}}, False),
        ({"score": "cam", "key": "peak_recall"}, {"curve": {"peak": {"recall": 0.5, "interval_recall": "HERE"}}}, True),
        ({"score": "cam", "key": "recall"}, {"recall": 0.5, "interval_recall": "HERE"}, True),
        ({"score": "spread", "key": "std"}, {"std": 0.5, "intervals": {"std": "HERE"}}, True),
        ({"score": "spread", "key": "mean"}, {"mean": 0.5}, False),
        ({"score": "localization", "key": "top1"}, {"top1": 0.5, "intervals": {"top1": "HERE"}}, True),
        ({"score": "localization", "key": "top1"}, {"top1": 0.5, "intervals": {"top5": "HERE"}}, False),
        ({"score": "localization", "key": "top1"}, {"top1": 0.5}, False),
    ],
)
def test_peaks_and_boxes_have_intervals(
    tmp_path: Path, column: dict[str, Any], entry: dict[str, Any], interval: bool
) -> None:
    values = json.loads(json.dumps(entry).replace('"HERE"', '{"low": 0.4, "high": 0.625}'))
    summary = rendered(tmp_path, column, result(column["score"], stamped(), **values))
    assert summary["rows"][0]["cells"]["c"]["interval"] == ([40, 62.5] if interval else None)
    assert ("[40.0, 62.5]" in summary["markdown"]) == interval


def test_printed_values_have_the_papers_decimals(tmp_path: Path) -> None:
    content = {
        "title": "t",
        "columns": [{"title": "c", "split": "test", "score": "cam"}],
        "rows": [{"name": f"row{value}", "printed": {"c": value}} for value in (55.96, 63.09, 60.5)],
    }
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    table = read_table(str(tmp_path / "t.yaml"))
    assert "(printed 55.96)" in render(table, {})["markdown"], "not run"
    text = render(table, {(row.name, 0): result("cam", stamped(), miou=0.56) for row in table.rows})["markdown"]
    assert "| 56.0 (printed 63.09) |" in text
    assert "| row63.09 | c | 63.09 | 56.0 | -7.1 | – | +7.13 | +0.0 |" in text
    assert "| row60.5 | c | 60.5 | 56.0 | -4.5 | – | +4.54 | +0.0 |" in text


def test_a_column_of_chosen_classes(tmp_path: Path) -> None:
    values = {"miou": 0.5, "c_miou": 0.25, "interval_c_miou": {"low": 0.1, "high": 0.4}}
    column = {"score": "segmenter", "key": "c_miou"}
    (row,) = rendered(tmp_path, column, result("segmenter", stamped(), **values))["rows"]
    assert row["cells"]["c"]["mean"] == 25 and row["cells"]["c"]["interval"] == [10, 40]
    (row,) = rendered(tmp_path, column, result("segmenter", stamped(), **values | {"c_miou": None}))["rows"]
    assert row["cells"]["c"] is None, "no class was chosen"


def test_a_table_says_which_machine_made_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    columns = [{"title": "c", "split": "test", "score": "segmenter"}]
    content = {"title": "t", "columns": columns, "rows": [{"name": n} for n in ("both", "slow", "missing")]}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    made = {("both", 0): SERVER, ("both", 1): SERVER, ("both", 2): LAPTOP, ("slow", 0): LAPTOP}
    results = {key: result("segmenter", stamped(), where, miou=0.5) for key, where in made.items()}
    assert render(read_table(str(path)), results)["markdown"].splitlines()[-2:] == [
        "- Trained on 16 cores (Other CPU), 2 × H200, torch 2.11.0: both (seed 0, 1)",
        "- Trained on 2 cores (Some CPU), torch 2.15.0: both (seed 2), slow",
    ]
