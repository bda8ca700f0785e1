"""Whether pretrained classes tell the tags, what is planned then, and such a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tagmask.config import load_config, merge
from tagmask.data import fingerprint, open_data
from tagmask.errors import ConfigError
from tagmask.files import read_record
from tagmask.workflow import run
from tagmask.workflow.matching import Match, leave_one_out, match, skill
from tagmask.workflow.plan import as_mapping, choose
from tests.methods.class_loops import shares
from tests.workflow.drawn import draw

TINY = {
    "encoder": {"name": "test_resnet", "output_stride": 32},
    "views": {"crop": 32},
    "train": {"workers": 0, "accelerator": "cpu", "channels_last": False, "steps": 2, "batch_size": 4},
    "evaluate": {"bootstrap": 0},
}


def test_each_photo_is_left_out_in_turn() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(6, 4, generator=generator).softmax(1)
    tags = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0], [1, 0], [0, 1]], dtype=torch.float32)
    expected = []
    for n in range(6):
        others = [i for i in range(6) if i != n]
        rows = shares(probabilities[others], tags[others])
        expected.append([sum(w * float(p) for w, p in zip(row, probabilities[n])) for row in rows])
    torch.testing.assert_close(leave_one_out(probabilities, tags), torch.tensor(expected))


def test_the_skill_is_0_by_chance_and_1_without_a_fault() -> None:
    tags = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]], dtype=torch.float32)
    assert skill(tags, tags) == 1 and skill(torch.zeros(4, 4), tags) == 0
    assert skill(tags[:, 2:], tags[:, 2:]) == 0, "a class that all photos or none have"
    # The first class is ranked second of four: average precision 1/2, share 1/4. The second is told.
    scores = torch.tensor([[2.0, 9, 0, 0], [3, 8, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    assert skill(scores, tags) == pytest.approx(((0.5 - 0.25) / 0.75 + 1) / 2)


@pytest.mark.parametrize("knows", [True, False])
def test_classes_are_transferred_only_where_they_tell_the_tags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knows: bool
) -> None:
    """The network's logits are those of a class for each tag, or the same for all photos."""
    config = load_config(merge(TINY, {"data": {"root": str(draw(tmp_path / "data", 3, 12))}}))
    collection = open_data(config.data)

    def logits(encoder: Any, items: Any, console: Any) -> tuple[Tensor, Any]:
        return torch.stack([torch.eye(5)[item.tags[0] if knows else 0] * 9 for item in items]), items

    monkeypatch.setattr("tagmask.workflow.matching.pooled_features", logits)
    monkeypatch.setattr("tagmask.workflow.matching.build_encoder", lambda config, classes: torch.nn.Identity())
    found = match(config, collection, {"name": "test_resnet"})
    assert found == (Match("test_resnet", pytest.approx(1)) if knows else None)


def test_without_weights_or_with_random_ones_nothing_is_transferred(tmp_path: Path) -> None:
    collection = open_data(load_config({"data": {"root": str(draw(tmp_path / "data", 2, 4))}}).data)
    for encoder in (
        {"weights": "none"},
        {"name": "resnet18", "weights": "nowhere.pth"},
        {"name": "vit_tiny_patch16_224"},
    ):
        config = load_config({"encoder": encoder})
        assert match(config, collection, encoder) is None


def test_the_plan_of_a_match(tmp_path: Path) -> None:
    found = fingerprint(open_data(load_config({"data": {"root": str(draw(tmp_path / "data", 3, 12))}}).data))

    def planned(effort: Any, **given: Any) -> Any:
        base = load_config(given)
        choices = choose(found, torch.device("cpu"), given, base, effort, Match("resnet18", 0.9))
        return load_config({"method": {"name": base.method.name}}, as_mapping(choices), given)

    config = planned("standard")
    assert (config.method.name, config.encoder.name, config.encoder.output_stride) == ("class_transfer", "resnet18", 32)
    assert config.stages.rounds.count == 2 and config.stages.masks.source == "cams" and config.stages.masks.crf == "irn"
    learner = config.stages.segmenter
    assert learner.train["steps"] == 230 and config.train.steps < 50 and learner.train["ema"] > 0.9
    assert learner.encoder["output_stride"] == 16 and "weights" not in learner.encoder
    assert planned("quick").stages.rounds is None
    asked = planned("standard", train={"steps": 50}, encoder={"name": "resnet34", "output_stride": 8})
    assert asked.train.steps == asked.stages.segmenter.train.get("steps", 50) == 50
    assert asked.encoder.name == "resnet34" and asked.stages.segmenter.encoder["output_stride"] == 8


def test_a_run_by_transferred_classes(tmp_path: Path) -> None:
    data = {"root": str(draw(tmp_path / "data", 3, 12))}
    given = merge(TINY, {"data": data, "method": {"name": "class_transfer"}, "encoder": {"weights": "none"}})
    result = run([given], {}, [], tmp_path / "run", effort="standard")
    assert result["masks"]["written"] == 12 and result["model"].endswith("segmenter/model")
    note = read_record(tmp_path / "run" / "round1" / "masks" / "classes.json")
    assert note["stage"]["crf"] == "irn" and note["source"] == "cam"
    about = read_record(tmp_path / "run" / "model" / "classes.json")
    assert about["supervision"] == "tags"
    assert {"round 1", "round 2", "final masks"} <= result["minutes"].keys()


def test_no_segmenter_starts_from_an_encoder_that_learns_nothing(tmp_path: Path) -> None:
    data = {"root": str(draw(tmp_path / "data", 3, 6))}
    stages = {"masks": {}, "segmenter": {"encoder": {"weights": "classifier"}}}
    given = merge(TINY, {"data": data, "method": {"name": "class_transfer"}, "encoder": {"weights": "none"}})
    with pytest.raises(ConfigError, match=r"encoder\.weights=auto"):
        run([given, {"stages": stages}], {}, [], tmp_path / "run", dry_run=True)
