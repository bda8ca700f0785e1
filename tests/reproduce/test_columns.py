"""Columns by class, of a share of another row, and of cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from tagmask.errors import ConfigError, DataError
from tagmask.label import Inference
from tagmask.methods.baseline import Baseline
from tagmask.reproduce import measure, read_table, reproduce
from tagmask.reproduce.render import render
from tagmask.workflow import Run, timing
from tests.methods.contract import gpu
from tests.reproduce.test_cost import TIME, Clock
from tests.reproduce.test_render import result, stamped
from tests.reproduce.tiny_table import SET

TABLE = f"""
title: columns
{SET}columns:
  - {{title: classes, split: test, score: segmenter, key: per_class}}
  - {{title: share, split: test, score: segmenter, key: relative, reference: supervised}}
  - {{title: images/s, split: test, score: segmenter, key: fps}}
  - {{title: twice, split: test, score: segmenter, key: fps, set: ["label.scales=[1.0, 2.0]"]}}
  - {{title: CAMs/s, split: val, score: cam, key: fps}}
  - {{title: training, split: train, score: training, key: fps}}
  - {{title: GiB, split: train, score: training, key: memory}}
rows:
  - name: weak
    set: ["method.head_options={{hidden: 8}}", method.warmup=1]
    printed: {{classes: {{mean: 50.5, background: 80.1, boat: 21}}, share: 88.0, images/s: 9.6}}
  - {{name: crf, run_of: weak, set: [label.crf=afa]}}
  - {{name: supervised, set: [method.name=supervised, "method.head_options={{hidden: 8}}"]}}
not_built:
  - {{name: other, why: another's, printed: {{classes: {{boat: 30}}, share: 90.1}}}}
"""


@pytest.fixture
def columns(tmp_path: Path) -> str:
    path = tmp_path / "columns.yaml"
    path.write_text(TABLE, encoding="utf-8")
    return str(path)


def test_a_table_of_classes_shares_and_costs(
    columns: str, scenes: Path, tmp_path: Path, forbid_training: Callable[[], None]
) -> None:
    out = tmp_path / "out"
    assert all(line["scoring_hours"] > 0 for line in reproduce(columns, scenes, out, plan=True)["plan"])
    summary = reproduce(columns, scenes, out)
    weak, crf, supervised, other = (row["cells"] for row in summary["rows"])
    saved = {
        name: json.loads((out / "columns" / name / "seed0" / "result.json").read_text())["scores"]
        for name in ("weak", "crf", "supervised")
    }
    scores = {name: next(s for s in entries if s["name"] == "segmenter") for name, entries in saved.items()}
    for name, cells in (("weak", weak), ("crf", crf), ("supervised", supervised)):
        assert cells["classes"]["mean"] == pytest.approx(100 * scores[name]["miou"])
        for known, values in scores[name]["per_class"].items():
            found = cells["classes"]["classes"][known]
            assert ("mean" in found) == (values["iou"] is not None)
            assert "mean" not in found or found["mean"] == pytest.approx(100 * values["iou"])
        share = 100 * scores[name]["miou"] / scores["supervised"]["miou"]
        assert cells["share"]["mean"] == pytest.approx(share)
    assert other["classes"]["classes"] == {"boat": {"printed": 30}} and other["share"] == {"printed": 90.1}
    speeds = [cells["images/s"]["mean"] for cells in (weak, crf, supervised)]
    assert all(speed > 0 for speed in speeds) and crf["CAMs/s"]["mean"] > 0 and supervised["CAMs/s"] is None
    assert weak["training"]["mean"] > 0 and crf["training"] is None
    assert (weak["GiB"] is None) == (not torch.cuda.is_available())
    stamps = [cells["images/s"]["stamp"] for cells in (weak, crf)]
    assert [stamp["settings"]["label.crf"] for stamp in stamps] == ["none", "afa"]
    assert weak["twice"]["stamp"]["settings"]["label.scales"] == [1.0, 2.0]
    text = summary["markdown"]
    assert "photos of 80 x 64, one at a time" in text and "a step of 4 crops of 64" in text
    assert "- share: share of row 'supervised': test" in text
    assert "### classes, by class\n\n| class | weak | crf | supervised | other |\n" in text
    line = next(line for line in text.splitlines() if line.startswith("| boat |"))
    assert "(printed 21" in line and line.endswith("| (printed 30.0) |")
    forbid_training()
    assert reproduce(columns, scenes, out)["markdown"] == text, "nothing is measured again"
    (out / "columns" / "supervised" / "seed0" / "result.json").unlink()
    parsed, left = read_table(columns), {("weak", 0): {**result("segmenter", stamped()), "scores": saved["weak"]}}
    assert render(parsed, left)["rows"][0]["cells"]["share"] == {"printed": 88}, "of a row that is not there"


def test_a_share_is_of_the_mean_over_the_references_seeds(columns: str) -> None:
    values = {("weak", 0): 0.3, ("weak", 1): 0.5, ("supervised", 0): 0.7, ("supervised", 1): 0.9}
    results = {
        key: result(
            "segmenter", stamped({"seed": key[1]}), miou=value, interval={"low": 0.1, "high": 0.9}, per_class={}
        )
        for key, value in values.items()
    }
    share = render(read_table(columns), results)["rows"][0]["cells"]["share"]
    assert share["seeds"] == {0: pytest.approx(37.5), 1: pytest.approx(62.5)} and share["mean"] == pytest.approx(50)
    assert share["interval"] is None, "that of the mIoU says nothing of the reference's"


@pytest.mark.parametrize(
    "change,message",
    [
        (("reference: supervised", "reference: supervise"), "column 'share'.*'supervise'"),
        ((", reference: supervised", ""), "column 'share'.*reference"),
        (("key: per_class}", "key: per_class, reference: weak}"), "column 'classes'.*reference"),
        (("score: cam, key: fps", "score: refined, key: fps"), "column 'CAMs/s'.*'fps'"),
        (("score: training, key: memory", "score: training, key: miou"), "column 'GiB'.*'miou'"),
        (("share: 88.0", "share: {boat: 88.0}"), "row 'weak'.*'share'"),
        (("classes: {boat: 30}", "classes: 30"), "row 'other'.*'classes'"),
    ],
)
def test_broken_columns_are_refused_by_name(columns: str, change: tuple[str, str], message: str) -> None:
    text = Path(columns).read_text()
    assert change[0] in text
    Path(columns).write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_table(columns)


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of a table of one row."""
    home = tmp_path_factory.mktemp("one")
    content: dict[str, Any] = yaml.safe_load(TABLE)
    content |= {"columns": [{"title": "c", "split": "test", "score": "segmenter"}], "rows": content["rows"][:1]}
    content["rows"][0].pop("printed")
    content.pop("not_built")
    (home / "one.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    reproduce(str(home / "one.yaml"), scenes, home / "out")
    return home / "out" / "one" / "weak" / "seed0"


def test_speed_is_of_the_pass_after_the_warm_up(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, run = Clock(), Run(trained)
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(measure, "PHOTOS", 3)
    seen: list[float] = []

    def logits(inference: Inference, *photos: Any) -> Any:
        """At first ten times as long."""
        seen.append(clock.now)
        clock.now += TIME * (10 if len(seen) <= 3 else 1)
        return real(inference, *photos)

    real = Inference.logits
    monkeypatch.setattr(Inference, "logits", logits)
    found = measure.measure(run, "train", "segmenter")
    assert len(seen) == 6 and found["fps"] == pytest.approx(1 / TIME) and found["name"] == "segmenter (cost)"
    assert found["stamp"]["images"] == 3 and found["stamp"]["measured"]["of"].startswith("3 photos of 80 x 64")
    clock.slow(monkeypatch, Baseline, "losses")
    assert measure.measure(run, "train", "training")["fps"] == pytest.approx(4 / TIME)
    with pytest.raises(DataError, match="'list:none'"):
        measure.measure(run, "list:none", "segmenter")


def test_memory_is_what_was_taken_over_what_was_there(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, by a stand-in for torch's counters: 5 GiB were taken before, 8 at the peak."""
    counts = {"memory_allocated": 5 * measure.GIB, "max_memory_allocated": 8 * measure.GIB}
    stand_in = {name: lambda device, value=value: value for name, value in counts.items()}
    cuda = SimpleNamespace(reset_peak_memory_stats=lambda device: None, **stand_in)
    with monkeypatch.context() as patch:
        patch.setattr(measure.torch, "cuda", cuda)
        assert measure._peak(lambda: 2.0, torch.device("cuda")) == (2.0, 3.0)
    assert measure._peak(lambda: 2.0, torch.device("cpu")) == (2.0, None)


@gpu
def test_memory_on_a_gpu(trained: Path) -> None:
    run = Run(trained).using(["train.accelerator=gpu"])
    weights = sum(t.numel() * t.element_size() for t in run.method.state_dict().values()) / measure.GIB
    found = {score: measure.measure(run, "train", score) for score in ("segmenter", "cam", "training")}
    assert found["segmenter"]["memory"] > weights and found["training"]["memory"] > found["cam"]["memory"] > weights
