"""What a table says of how its cells were made: nothing where seeds only lie in other folders, each key's own stamp."""

from __future__ import annotations

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


def test_spreads_of_earlier_versions_were_summed_too(tmp_path: Path) -> None:
    entries = [{"name": "spread", "protocol": PROTOCOL | {"merge": merge}, "mean": 0.4} for merge in ("mean", "sum")]
    assert rendered(tmp_path, {"score": "spread", "key": "mean"}, *entries)["notes"] == {"c": []}
