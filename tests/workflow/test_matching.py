"""Whether pretrained classes tell the tags, what is planned then, and such a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from tagmask.config import load_config, merge
from tagmask.data import fingerprint, open_data
from tagmask.errors import ConfigError
from tagmask.files import read_record
from tagmask.workflow import Run, run
from tagmask.workflow.matching import Match, leave_one_out, match, skill
from tagmask.workflow.plan import as_mapping, choose
from tagmask.workflow.suspects import suspects_of
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
    tags = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=torch.float32)
    assert skill(tags, tags) == 1 and skill(torch.zeros(4, 4), tags) == 0
    assert skill(tags[:, 2:], tags[:, 2:]) == 0, "a class of one photo, and one of all"
    # The first class is ranked second and third of four: average precision 7/12, share 1/2. The second is told.
    scores = torch.tensor([[2.0, 9, 0, 0], [1, 8, 9, 0], [3, 1, 9, 0], [0, 0, 0, 0]])
    assert skill(scores, tags) == pytest.approx(((7 / 12 - 0.5) / 0.5 + 1) / 2)


def knowing(skill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits are those of a class for each tag ('all'), or the same for all photos ('none')."""

    def logits(encoder: Any, items: Any, *_: Any) -> tuple[Tensor, Any]:
        shown = [item.tags[0] if skill == "all" and item.tags else 0 for item in items]
        return torch.eye(5)[shown] * 9, items

    monkeypatch.setattr("tagmask.workflow.matching.pooled_features", logits)
    monkeypatch.setattr("tagmask.workflow.matching.build_encoder", lambda config, classes: torch.nn.Identity())


@pytest.mark.parametrize(("photos", "skill", "why"), [(18, "all", "1.00"), (18, "none", "do not"), (12, "all", "few")])
def test_classes_are_transferred_only_where_they_tell_the_tags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: int, skill: str, why: str
) -> None:
    config = load_config(merge(TINY, {"data": {"root": str(draw(tmp_path / "data", 3, photos))}}))
    collection = open_data(config.data)
    knowing(skill, monkeypatch)
    found = match(config, collection, {"name": "test_resnet"})
    assert found.tells == (why == "1.00") and why in found.why and found.encoder == "test_resnet"


@pytest.mark.parametrize("photos", ["alike", "one without", "two tags each"])
def test_the_only_tag_of_all_photos_is_transferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: str
) -> None:
    """A photo without it has to be told from the others, and of two tags nothing tells which is which."""
    root = draw(tmp_path / "data", 2 if photos == "two tags each" else 1, 6, empty=photos == "one without")
    if photos == "two tags each":
        table = root / "tags.csv"
        names = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
        table.write_text("image,tags\n" + "".join(f"{name},class00;class01\n" for name in names))
    collection = open_data(load_config({"data": {"root": str(root)}}).data)
    knowing("all", monkeypatch)
    found = match(load_config(TINY), collection, {"name": "test_resnet"})
    assert found.tells == ("same tag" in found.why) == (photos == "alike")


@pytest.mark.parametrize("encoder", [{"name": "resnet18", "weights": "nowhere.pth"}, {"name": "vit_tiny_patch16_224"}])
def test_classes_that_cannot_be_read_are_not_transferred(tmp_path: Path, encoder: dict[str, str]) -> None:
    collection = open_data(load_config({"data": {"root": str(draw(tmp_path / "data", 2, 4))}}).data)
    found = match(load_config({"encoder": encoder}), collection, encoder)
    assert not found.tells and "cannot be read" in found.why


def planned(root: Path, effort: Any, tells: bool = True, **given: Any) -> Any:
    """The configuration of a run of resnet18, whose classes tell the tags or not."""
    found = fingerprint(open_data(load_config({"data": {"root": str(root)}}).data))
    base = load_config(given)
    choices = choose(found, torch.device("cpu"), given, base, effort, Match("resnet18", tells, "as seen"))
    assert [choice.why for choice in choices if choice.key == "method.name"] == ["as seen"]
    return load_config({"method": {"name": base.method.name}}, as_mapping(choices), given)


def test_the_plan_of_a_match(tmp_path: Path) -> None:
    root = draw(tmp_path / "data", 3, 12)
    assert planned(root, "standard", tells=False).method.name == "baseline"
    config = planned(root, "standard")
    assert (config.method.name, config.encoder.name, config.encoder.output_stride) == ("class_transfer", "resnet18", 32)
    assert config.stages.rounds.count == 2 and config.stages.masks.source == "cams" and config.stages.masks.crf == "afa"
    assert config.label.refine == "none"
    learner = config.stages.segmenter
    assert learner.train["steps"] == 230 and config.train.steps < 50 and learner.train["ema"] > 0.9
    assert learner.encoder["output_stride"] == 16 and "weights" not in learner.encoder


def test_what_the_user_sets_holds_for_the_segmenters_of_a_match(tmp_path: Path) -> None:
    encoder = {"name": "resnet34", "output_stride": 8, "norm_eval": False}
    train = {"steps": 50, "ema": 0.5, "warmup": 7}
    config = planned(draw(tmp_path / "data", 3, 12), "standard", train=train, encoder=encoder)
    assert config.encoder.name == "resnet34" and config.train.steps == 50
    segmenter = config.stages.segmenter
    assert encoder.items() <= segmenter.encoder.items()
    assert all(segmenter.train.get(key, value) == value for key, value in train.items())


def test_cams_are_of_photos_as_large_as_the_network_knows_them(tmp_path: Path) -> None:
    found = fingerprint(open_data(load_config({"data": {"root": str(draw(tmp_path / "data", 3, 12))}}).data))
    for short, views, seen in ((112, {}, 112), (800, {}, 291), (800, {"crop": 64, "short_side": 448}, 448)):
        found["sizes"] = {"width": {"median": 1200}, "height": {"median": short}}
        given = {"method": {"name": "class_transfer"}, "views": views}
        plan = {choice.key: choice.value for choice in choose(found, torch.device("cpu"), given)}
        assert plan["label.cam_scales"] == [round(224 / seen, 2), round(336 / seen, 2)]


def test_networks_of_a_users_stages_have_finer_maps_than_the_classes(tmp_path: Path) -> None:
    found = fingerprint(open_data(load_config({"data": {"root": str(draw(tmp_path / "data", 3, 12))}}).data))
    stages: dict[str, Any] = {"cams": {}, "affinity": {}, "masks": {}, "segmenter": {}}
    given = {"method": {"name": "class_transfer"}, "stages": stages}
    config = load_config(as_mapping(choose(found, torch.device("cpu"), given, effort="quick")), given)
    assert config.encoder.output_stride == 32 and config.stages is not None and config.label.refine == "par"
    for stage in (config.stages.affinity, config.stages.segmenter):
        assert stage is not None and stage.encoder["output_stride"] == 16
    stages["segmenter"] = {"configs": ["msrc14_learner"]}
    keys = {choice.key for choice in choose(found, torch.device("cpu"), given, effort="quick")}
    assert "stages.affinity.encoder.output_stride" in keys and "stages.segmenter.encoder.output_stride" not in keys


@pytest.mark.parametrize(
    ("effort", "words", "method"),
    [
        (None, [], "class_transfer"),
        (None, ["train.ema=0.5"], "class_transfer"),
        ("quick", [], "baseline"),
        (None, ["method.gate=0.2"], "baseline"),
    ],
)
def test_run_looks_at_pretrained_classes_where_nothing_else_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effort: Any, words: list[str], method: str
) -> None:
    knowing("all", monkeypatch)
    monkeypatch.setattr("tagmask.workflow.stages.Stages.networks", lambda stages: [])  # there are no weights of it
    given = merge(TINY, {"data": {"root": str(draw(tmp_path / "data", 3, 24))}})
    result = run([given], {}, words, tmp_path / "run", dry_run=True, effort=effort)
    assert result["config"]["method"]["name"] == method
    assert (result["config"]["stages"] is None) == (effort == "quick")


def test_a_run_by_transferred_classes(tmp_path: Path) -> None:
    data = {"root": str(draw(tmp_path / "data", 3, 12))}
    given = merge(TINY, {"data": data, "method": {"name": "class_transfer"}, "encoder": {"weights": "none"}})
    result = run([given], {}, [], tmp_path / "run", effort="standard")
    assert result["masks"]["written"] == 12 and result["model"].endswith("segmenter/model")
    note = read_record(tmp_path / "run" / "round1" / "masks" / "classes.json")
    assert note["stage"]["crf"] == "afa" and note["source"] == "cam"
    about = read_record(tmp_path / "run" / "model" / "classes.json")
    assert about["supervision"] == "tags"
    assert {"round 1", "round 2", "final masks"} <= result["minutes"].keys()


def test_no_segmenter_starts_from_an_encoder_that_learns_nothing(tmp_path: Path) -> None:
    data = {"root": str(draw(tmp_path / "data", 3, 6))}
    stages = {"masks": {}, "segmenter": {"encoder": {"weights": "classifier"}}}
    given = merge(TINY, {"data": data, "method": {"name": "class_transfer"}, "encoder": {"weights": "none"}})
    with pytest.raises(ConfigError, match=r"encoder\.weights=auto"):
        run([given, {"stages": stages}], {}, [], tmp_path / "run", dry_run=True)


def test_stages_that_come_later_are_refused(tmp_path: Path) -> None:
    data = {"root": str(draw(tmp_path / "data", 3, 6))}
    given = merge(TINY, {"data": data, "method": {"name": "class_transfer"}, "encoder": {"weights": "none"}})
    run([given], {}, [], tmp_path / "run")
    with pytest.raises(ConfigError, match="--out"):
        run([{"stages": {"masks": {}, "segmenter": {}}}], {}, [], tmp_path / "run", resume=True)


def test_wrong_tags_of_such_a_run_are_found_by_features_not_by_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = timm.create_model("test_resnet")
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    data, encoder = {"root": str(draw(tmp_path / "data", 3, 6))}, {"weights": str(tmp_path / "net.safetensors")}
    config = load_config(TINY, {"data": data, "encoder": encoder, "method": {"name": "class_transfer"}})
    seen: list[int] = []
    monkeypatch.setattr(
        "tagmask.workflow.suspects.find_suspects", lambda data, encoder, *_: seen.append(encoder.channels[-1])
    )
    opened = Run(tmp_path / "run", config)
    opened.begin()
    assert opened.untrained.encoder.channels[-1] == 1000
    suspects_of(opened)
    assert seen == [network.num_features]
