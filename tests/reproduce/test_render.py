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
rows:
  - {name: staged, stages: true, set: [method.warmup=1, "stages={classifier: {}, masks: {}, segmenter: {}}"]}
  - {name: retrained, set: [method.name=supervised], masks_from: staged}
"""
)
PROTOCOL = {
    "split": "test", "split_hash": "ab", "images": 1, "truth": "x", "tags_at_test": False, "seed": 0, "weights": "none",
    "method": "m", "encoder": "e", "version": "0.1.0",
}  # fmt: skip


def test_seeds_that_learn_from_their_own_masks_are_made_alike(tmp_path: Path) -> None:
    path, out = tmp_path / "staged.yaml", tmp_path / "out"
    path.write_text(STAGED, encoding="utf-8")
    summary = reproduce(str(path), tmp_path / "scenes", out)
    cells = [row["cells"]["test"] for row in summary["rows"]]
    assert [sorted(cell["seeds"]) for cell in cells] == [[0, 1], [0, 1]]
    assert [cell["mark"] for cell in cells] == ["", ""] and [cell["seeds_differ"] for cell in cells] == [[], []]
    for name in ("table.md", "table.json"):
        text = (out / "staged" / name).read_text(encoding="utf-8")
        assert "from masks (baseline on resnet18, CAMs, " in text or name == "table.json"
        assert str(tmp_path) not in text and "seed0" not in text


def rendered(tmp_path: Path, column: dict[str, Any], *results: dict[str, Any]) -> dict[str, Any]:
    rows = [f"row{i}" for i in range(len(results))]
    content = {
        "title": "t",
        "columns": [{"title": "c", "split": "test", **column}],
        "rows": [{"name": r} for r in rows],
    }
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    found = {(row, 0): {"scores": [result], "minutes": 1.0} for row, result in zip(rows, results)}
    return render(read_table(str(path)), found)


def test_folders_in_results_of_earlier_versions_are_not_published(tmp_path: Path) -> None:
    of_masks = [PROTOCOL | {"supervision": f"masks of /home/me/{row}/seed0/masks"} for row in "ab"]
    scores = [{"name": "segmenter", "protocol": protocol, "miou": 0.5} for protocol in of_masks]
    summary = rendered(tmp_path, {"score": "segmenter"}, *scores)
    assert summary["notes"] == {"c": []} and "/home/me" not in str(summary)


@pytest.mark.parametrize(
    "key,made",
    [
        ("top1", (False, 0.2, "fixed")),
        ("gt_known", (True, 0.2, "fixed")),
        ("max_box_acc", (True, 0.07, "best on this split (oracle)")),
        ("top5_class", (False, None, "none")),
    ],
)
def test_columns_of_boxes_have_their_own_stamps(tmp_path: Path, key: str, made: tuple[bool, float | None, str]) -> None:
    stamp = PROTOCOL | {"threshold": 0.2, "threshold_source": "fixed", "merge": "sum"}
    entry = {"name": "localization", "protocol": stamp, key: 0.9, "best_threshold": 0.07}
    (row,) = rendered(tmp_path, {"score": "localization", "key": key}, entry)["rows"]
    protocol = row["cells"]["c"]["protocol"]
    assert (protocol["tags_at_test"], protocol["threshold"], protocol["threshold_source"]) == made


@pytest.mark.parametrize(
    "column,field,marked",
    [
        ({"score": "cam"}, "only", False),
        ({"score": "cam", "key": "c_miou"}, "only", True),
        ({"score": "cam", "key": "c_miou"}, "without", False),
        ({"score": "cam", "key": "miou_without"}, "without", True),
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
    def entry(value: Any) -> dict[str, Any]:
        values = dict.fromkeys(("miou", "c_miou", "miou_without", "mean", "max_box_acc", "gt_known"), 0.5)
        curve = {"peak": {"threshold": 0.2, "miou": 0.5}}
        stamp = PROTOCOL | ({field: value} if value is not None else {})
        return {"name": column["score"], "protocol": stamp, "curve": curve} | values

    one, other = (10, 20) if field == "bins" else (["cat"], ["cat", "dog"])
    summary = rendered(tmp_path, column, entry(one), entry(one), entry(other), entry(None))
    marks = [row["cells"]["c"]["mark"] for row in summary["rows"]]
    assert marks == ["", "", "a" if marked else "", ""]


def test_truths_of_other_folders_have_a_letter_and_counts_of_other_photos_none(tmp_path: Path) -> None:
    truths = ["voc:A (3), B (2)", "voc:B (3), A (2)", "voc:A"]
    scores = [{"name": "cam", "protocol": PROTOCOL | {"truth": t}, "miou": 0.5} for t in truths]
    summary = rendered(tmp_path, {"score": "cam"}, *scores)
    assert [row["cells"]["c"]["mark"] for row in summary["rows"]] == ["", "a", "b"], "the same photos, other masks"
    for seed, score in enumerate(scores):
        score["protocol"] |= {"seed": seed, "split_hash": str(seed)}
    summary = rendered(tmp_path, {"score": "cam"}, *scores)
    assert [row["cells"]["c"]["mark"] for row in summary["rows"]] == ["", "", "a"]


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
    made = json.loads(json.dumps(entry).replace('"HERE"', '{"low": 0.4, "high": 0.625}'))
    summary = rendered(tmp_path, column, {"name": column["score"], "protocol": PROTOCOL} | made)
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
    entry = {"scores": [{"name": "cam", "protocol": PROTOCOL, "miou": 0.56}], "minutes": 1.0}
    text = render(table, {(row.name, 0): entry for row in table.rows})["markdown"]
    assert "| 56.0 (printed 63.09) |" in text
    assert "| row63.09 | c | 63.09 | 56.0 | -7.1 | – | +7.13 | +0.0 |" in text
    assert "| row60.5 | c | 60.5 | 56.0 | -4.5 | – | +4.54 | +0.0 |" in text


def test_spreads_of_earlier_versions_were_summed_too(tmp_path: Path) -> None:
    entries = [{"name": "spread", "protocol": PROTOCOL | {"merge": merge}, "mean": 0.4} for merge in ("mean", "sum")]
    assert rendered(tmp_path, {"score": "spread", "key": "mean"}, *entries)["notes"] == {"c": []}


def test_a_table_says_which_machine_made_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    columns = [{"title": "c", "split": "test", "score": "segmenter"}]
    content = {"title": "t", "columns": columns, "rows": [{"name": n} for n in ("both", "slow", "old", "missing")]}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    laptop = {"processor": "Some CPU", "cores": 2, "gpus": [], "versions": {"torch": "2.15.0"}}
    server = {"processor": "Other CPU", "cores": 16, "gpus": ["H200", "H200"], "versions": {"torch": "2.11.0"}}

    def result(environment: dict[str, Any] | None) -> dict[str, Any]:
        score = {"name": "segmenter", "miou": 0.5, "protocol": PROTOCOL}
        return {"scores": [score], "minutes": 1.0, **({"environment": environment} if environment else {})}

    made = {("both", 0): server, ("both", 1): server, ("both", 2): laptop, ("slow", 0): laptop, ("old", 0): None}
    summary = render(read_table(str(path)), {key: result(environment) for key, environment in made.items()})
    assert summary["markdown"].splitlines()[-3:] == [
        "- Trained on 16 cores (Other CPU), 2 × H200, torch 2.11.0: both (seed 0, 1)",
        "- Trained on 2 cores (Some CPU), torch 2.15.0: both (seed 2), slow",
        "- Trained on a machine that was not recorded: old",
    ]
