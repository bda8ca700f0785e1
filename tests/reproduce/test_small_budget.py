"""``reproduce --budget small``: tables of long schedules in hundreds of steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tagmask.methods import build_method
from tagmask.reproduce import read_table, reproduce
from tagmask.reproduce.configure import configure
from tagmask.reproduce.runner import look_at
from tagmask.training import RunFolder
from tagmask.workflow.stages import stage_configs
from tagmask.workflow.timing import bare
from tagmask.workflow.train import check_schedule
from tests.reproduce.tiny_table import TABLE


def test_a_small_budget_keeps_what_makes_a_row(scenes: Path, tmp_path: Path) -> None:
    found = look_at(scenes, [])
    table = read_table("tscd/table3")
    full = [configure(table, row, 0, scenes, tmp_path, []) for row in table.rows]
    small = [
        configure(table, row, 0, scenes, tmp_path, ["train.batch_size=4"], encoder="resnet18", found=found)
        for row in table.rows
    ]
    assert {c.train.steps for c in full} == {20000} and {c.train.steps for c in small} == {230}
    assert all(c.encoder.name == "mit_b1" for c in full) and all(c.encoder.drop_path == 0 for c in small)
    for a, b in zip(full, small):
        assert b.encoder.name == "resnet18" and b.data.train is None and b.train.batch_size == 4
        switches = [(c.method.refine, c.method.weight_scd > 0) for c in (a, b)]  # type: ignore[attr-defined]
        assert switches[0] == switches[1]
        assert a.label == b.label, "scored as the paper scores"
    assert small[-1].method.affinity == "none", "no attention to learn affinities from"  # type: ignore[attr-defined]
    encoders = read_table("tscd/table4")
    names = [configure(encoders, r, 0, scenes, tmp_path, [], encoder="resnet50").encoder.name for r in encoders.rows]
    assert names == ["resnet101.tv_in1k"] * 2 + ["wide_resnet38"] * 2 + ["resnet50"] * 2


@pytest.mark.parametrize("name", ["tscd/table5", "rcm_mam/table3", "eca/table6b", "crt/table1", "cosa/table1"])
def test_small_budgets_of_the_papers_tables_can_be_built(name: str, scenes: Path, tmp_path: Path) -> None:
    found, table = look_at(scenes, []), read_table(name)
    for row in table.rows:
        words = ["method.guide.encoder.name=resnet18"] if name.startswith("eca") else []
        encoder = "deit_tiny_patch16_224" if name.startswith("crt") else "resnet18"
        config = bare(configure(table, row, 0, scenes, tmp_path, words, encoder=encoder, found=found))
        assert config.train.steps == 230 and config.encoder.name == encoder and config.data.train is None
        assert config.views.crop == (224 if name.startswith("crt") else 96), "96 fits the photos; the table sets 224"
        check_schedule(config)
        with torch.device("meta"):
            build_method(config, 20)
        for stage in stage_configs(config, RunFolder(tmp_path / "none")).values():
            assert stage.train.steps < 1000


def test_local_views_keep_their_share_of_the_crop(scenes: Path, tmp_path: Path) -> None:
    found, table = look_at(scenes, []), read_table("eca/table6b")
    sizes = [configure(table, r, 0, scenes, tmp_path, [], found=found).views.local.size for r in table.rows]
    assert sizes == [18, 24, 48, 72], "of 96 pixels, as 96, 128, 256 and 384 of 512"
    own = configure(table, table.rows[0], 0, scenes, tmp_path, ["views.local.size=20"], found=found)
    assert own.views.local.size == 20


def test_a_small_budget_scores_as_the_table_does(table: str, scenes: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("evaluate: {bins: 50, without: [boat]}\nlabel: {threshold: 0.37}\n")
    Path(table).write_text(TABLE.replace("title: tiny", f"title: tiny\nconfigs: ['{own}']"), encoding="utf-8")
    parsed = read_table(table)
    full, small = (
        configure(parsed, parsed.rows[0], 0, scenes, tmp_path, [], found=found) for found in (None, look_at(scenes, []))
    )
    assert small.evaluate.bins == 50 and small.evaluate.without == ["boat"] and small.evaluate == full.evaluate
    assert small.label.threshold == full.label.threshold == 0.37


def test_a_small_budget_runs(scenes: Path, tmp_path: Path) -> None:
    words = ["train.steps=3", "train.batch_size=2", "train.workers=0", "train.accelerator=cpu", "encoder.weights=none",
             "method.warmup=1", "train.warmup=1", "label.scales=[1.0]", "label.flip=false",
             "evaluate.bootstrap=0"]  # fmt: skip
    summary = reproduce(
        "tscd/table5", scenes, tmp_path / "out", words, rows=["none", "par"], encoder="test_resnet", budget="small"
    )
    text = (tmp_path / "out" / "tscd" / "table5-small" / "table.md").read_text()
    assert summary["budget"] == "small" and "(small budget)" in text and "compare what rows gain" in text
    made = {row["row"]: row["cells"]["segmenter, val"] for row in summary["rows"]}
    gain = made["par"]["mean"] - made["none"]["mean"]
    assert f"| {made['par']['difference']:+.1f} | – | +7.7 | {gain:+.1f} |" in text, "54.9 - 47.2 in the paper"
