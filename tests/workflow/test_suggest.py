"""Which photos to review: worth against a loop, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.data.review import Journal
from tagmask.errors import DataError
from tagmask.files import read_csv
from tagmask.workflow import Run, run, suggest
from tagmask.workflow.suggest import choose
from tests.workflow.conftest import BASE


def test_the_choice_equals_the_rule() -> None:
    generator = torch.Generator().manual_seed(2)
    features, doubts = torch.randn(9, 4, generator=generator), torch.rand(9, generator=generator)
    known = torch.tensor([0, 1, 0, 0, 1, 0, 0, 0, 0]).bool()
    mean = [float(features[:, d].mean()) for d in range(4)]
    rows = [[float(features[i, d]) - mean[d] for d in range(4)] for i in range(9)]

    def cosine(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
        return dot / (sum(a * a for a in rows[i]) * sum(b * b for b in rows[j])) ** 0.5

    seen, expected = [1, 4], []
    for _ in range(4):
        worth = {
            i: (float(doubts[i]) * (1 - max(cosine(i, j) for j in seen)) / 2, (1 - max(cosine(i, j) for j in seen)) / 2)
            for i in range(9)
            if i not in seen
        }
        best = max(worth, key=lambda i: worth[i][0])
        expected.append((best, pytest.approx(worth[best][1], abs=1e-5)))
        seen.append(best)
    assert choose(features, doubts, known, 4) == expected
    assert len(choose(features, doubts, known, 99)) == 7
    first = choose(features, doubts, torch.zeros(9).bool(), 1)
    assert first == [(int(doubts.argmax()), 1.0)], "nothing is known: the most doubtful"


def test_photos_are_suggested_that_nobody_reviewed(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    data = {"root": str(scenes), "train": "train.txt", "val": "val.txt"}
    run([BASE, {"data": data}], {}, [], out)
    train = [item.id for item in Run(out).collection.split("train")]
    Journal(out).add(train[0], "accept")
    words = ["review", str(out), "--suggest", "2", "--json"]
    result = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
    assert result["decisions"] == {"accept": 1, "reject": 0, "tags": 0, "mask": 0}
    named = [entry["photo"] for entry in result["suggested"]]
    assert len(set(named)) == 2 and set(named) <= set(train[1:])
    assert [row[0] for row in read_csv(out / "suggested.csv")[1:]] == named
    shown = CliRunner().invoke(app, ["review", str(out), "--suggest", "99"], catch_exceptions=False).stdout
    assert "8 photos, 1 reviewed: 1 accepted." in shown and f"\n{named[0]}  (worth " in shown
    (out / "quality.csv").unlink()
    with pytest.raises(DataError, match="--what quality"):
        suggest(out, 1)
