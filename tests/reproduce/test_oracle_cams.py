"""benchmarks/oracle_cams.py: what guides the CAMs, and that it runs, resumes and compares."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tagmask.data import write_demo
from tagmask.errors import ConfigError, DataError
from tagmask.methods import build_method
from tagmask.registry import METHODS
from tests.methods.contract import CLASSES, SIZE, squares, tiny

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "oracle_cams.py"
SET = [
    "data.source=auto", "encoder.name=test_resnet", "encoder.weights=none", "views.crop=64",
    "train.steps=3", "train.batch_size=4", "train.workers=0", "train.warmup=1", "method.warmup=1",
    "train.accelerator=cpu", "label.cam_scales=[1.0]", "evaluate.bootstrap=0", "evaluate.without=[]",
]  # fmt: skip


@pytest.fixture
def oracle() -> Iterator[ModuleType]:
    METHODS.names()
    spec = importlib.util.spec_from_file_location("oracle_cams", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["oracle_cams"] = module
    spec.loader.exec_module(module)
    yield module
    for name in ("cosa_truth", "cosa_noise"):
        METHODS._parts.pop(name, None)
    del sys.modules["oracle_cams"]


def build(name: str) -> Any:
    torch.manual_seed(0)
    return build_method(tiny({"name": name, "warmup": 0, "head_options": {"hidden": 16}}), CLASSES)


def test_the_guides(oracle: ModuleType) -> None:
    batch = squares(masks=True)
    assert batch.masks is not None
    logits = torch.randn(4, CLASSES + 1, 8, 8)
    truth = build("cosa_truth").guide(batch, logits)
    assert truth.shape == (4, CLASSES + 1, SIZE, SIZE)
    known = batch.masks != 255
    assert torch.equal(truth.argmax(1)[known], batch.masks.long()[known]) and (~known).any()
    large = torch.nn.functional.interpolate(logits, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    void = (~known)[:, None].expand_as(truth)
    assert torch.equal(truth[void], large[void]), "where the truth is void the segmentation guides"
    noise = build("cosa_noise").guide(batch, logits)
    drawn = noise.argmax(1)
    for i in range(4):
        allowed = {0, *(1 + batch.tags[i].nonzero().flatten()).tolist()}
        assert set(drawn[i].unique().tolist()) == allowed, "the background and the tags, and all of them"
    assert not torch.equal(drawn, build("cosa_noise").guide(batch, logits).argmax(1)), "drawn anew"
    assert METHODS.get("cosa_truth").reads_masks
    assert not METHODS.get("cosa_noise").reads_masks and not METHODS.get("cosa").reads_masks


def test_runs_and_is_not_run_again(oracle: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_demo(tmp_path / "scenes", images=12, size=(64, 64))
    words = ["--data", str(tmp_path / "scenes"), "--out", str(tmp_path / "out"), "--set", *SET]
    oracle.main([*words, "--guides", "truth", "none"])
    table = json.loads((tmp_path / "out" / "oracle.json").read_text())
    assert [row["guide"] for row in table] == ["truth", "none"]
    terms = {}
    for guide in ("truth", "none"):
        log = (tmp_path / "out" / guide / "seed0" / "log.jsonl").read_text().splitlines()
        terms[guide] = set([json.loads(line) for line in log if "losses" in line][-1]["losses"])
    assert terms["truth"] - terms["none"] == {"s2c"} and "csc" not in terms["truth"]
    assert table[0]["seeds"]["seed0"]["stamp"]["run"]["supervision"] == "true masks"
    assert table[1]["seeds"]["seed0"]["stamp"]["run"]["supervision"] == "tags"
    before = (tmp_path / "out" / "truth" / "seed0" / "log.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    oracle.main([*words, "--guides", "truth"])
    assert (tmp_path / "out" / "truth" / "seed0" / "log.jsonl").stat().st_mtime_ns == before
    assert "| none |" in capsys.readouterr().out, "what is finished stays in the table"
    # Neither are results of other settings taken, of guides that were asked for or that only stand in the table.
    for guide, refused in (("truth", "truth"), ("spl", "none")):
        with pytest.raises(ConfigError, match=rf"{refused}.seed0.*train\.lr"):
            oracle.main([*words, "train.lr=0.5", "--guides", guide])
    with pytest.raises(ConfigError, match=r"truth.seed0.*method\.weight_s2c"):
        oracle.main([*words, "--weight", "0.7", "--guides", "none"])
    write_demo(tmp_path / "others", images=6, size=(64, 64))
    with pytest.raises(DataError, match="others.*scene_"):
        oracle.main(["--data", str(tmp_path / "others"), *words[2:], "--guides", "truth"])
    assert not (tmp_path / "out" / "spl").exists()
    (tmp_path / "out" / "truth" / "seed0" / "result.json").unlink()
    with pytest.raises(ConfigError, match=r"truth.seed0.*train\.lr"):
        oracle.main([*words, "train.lr=0.5", "--guides", "truth"])
