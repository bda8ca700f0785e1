"""Configuration: merging, overrides, errors that name the nearest key; the packaged files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tagmask.config import EncoderConfig, RunConfig, dump_yaml, load_config, named_configs, parse_overrides, read_yaml
from tagmask.encoders.timm_vit import VARIANTS
from tagmask.encoders.weights import LITE0, NoWeights
from tagmask.errors import ConfigError, WeightsError
from tagmask.registry import METHODS
from tagmask.reproduce import packaged_tables, read_table
from tagmask.stage_config import MasksStage, RoundsStage, stage_mapping
from tagmask.training import RunFolder
from tagmask.workflow import plan as plan_module
from tagmask.workflow.plan import Effort, as_mapping, choose
from tagmask.workflow.stages import network_config

CLASSES = [f"class{i}" for i in range(14)]
"""As many as the packaged small protocol has."""


def test_later_sources_and_overrides_win(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: {steps: 7, lr: 1.0e-3}\n", encoding="utf-8")
    config = load_config(path, {"train": {"steps": 8}}, overrides=["train.lr=1e-4", "views.scale=[0.9, 1.1]"])
    assert (config.train.steps, config.train.lr, config.views.scale) == (8, 1e-4, (0.9, 1.1))


def test_a_method_of_another_name_replaces_the_section() -> None:
    config = load_config("msrc14_baseline", {"method": {"name": "supervised"}})
    assert config.method.name == "supervised"


def test_saved_configuration_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config("msrc14", "msrc14_baseline", overrides=["seed=3", "data.root=photos"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize(
    "override,message",
    [
        ("train.lrr=1", "'train.lrr'.*'lr'"),
        ("trian.lr=1", "'trian'.*'train'"),
        ("method.hihg=0.5", "'method.hihg'.*'high'"),
        ("train.lr=fast", "'train.lr'.*'fast'"),
        ("train.lr=-1", "'train.lr'"),
        ("train.lr", "'train.lr'"),
        ("train.betas=[1", r"'train.betas=\[1'"),
        ("method.name=basline", "basline.*baseline"),
    ],
)
def test_wrong_settings_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=[override])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"list\.yaml: .*list"):
        load_config(tmp_path / "list.yaml")


def test_packaged_configurations_are_valid() -> None:
    assert {"demo", "msrc14", "msrc14_baseline", "msrc14_supervised"} <= set(named_configs())
    for name in named_configs():
        load_config(name)


def test_overrides_nest() -> None:
    assert parse_overrides(["a.b.c=1", "a.b.d=[x, 2]", "a.e=null"]) == {"a": {"b": {"c": 1, "d": ["x", 2]}, "e": None}}


@pytest.mark.parametrize("images,batch", [(1, 1), (10, 10), (300, 16), (100000, 16)])
def test_the_plan_is_a_valid_configuration_for_any_size(images: int, batch: int) -> None:
    found = {
        "classes": CLASSES,
        "counts": {"labelled": images},
        "splits": {},
        "sizes": {"width": {"median": 320}, "height": {"median": 213}},
    }
    config = load_config(as_mapping(choose(found, torch.device("cpu"))))
    vit = load_config(as_mapping(choose(found, torch.device("cpu"), {"encoder": {"name": "vit_tiny_patch16_224"}})))
    assert (config.train.optimizer, vit.train.optimizer) == ("sgd", "adamw")
    assert "encoder.name" not in {c.key for c in choose(found, torch.device("cpu"), {"encoder": {"name": "resnet18"}})}
    assert config.train.batch_size == batch and config.train.steps <= 600
    assert config.method.warmup < config.train.steps and config.views.crop == 224  # type: ignore[attr-defined]


def plan(method: dict, encoder: str = "resnet18", steps: int = 230, crop: int = 224, **sections: dict) -> dict:
    """The plan's choices by key for a method that the user sets, with the reasons left out."""
    found = {
        "classes": CLASSES,
        "counts": {"labelled": 200},
        "splits": {},
        "sizes": {"width": {"median": 320}, "height": {"median": 213}},
    }
    given = {"method": method, "encoder": {"name": encoder}, "train": {"steps": steps}, "views": {"crop": crop}}
    return {c.key: c.value for c in choose(found, torch.device("cpu"), given | sections)}


def test_the_plan_does_as_much_as_the_effort_says() -> None:
    found = {
        "counts": {"labelled": 200},
        "splits": {},
        "classes": CLASSES,
        "sizes": {"width": {"median": 320}, "height": {"median": 213}},
    }
    given = {"encoder": {"name": "resnet18", "weights": "none"}}

    def planned(effort: Effort, **sections: Any) -> RunConfig:
        settings = given | sections
        return load_config(as_mapping(choose(found, torch.device("cpu"), settings, effort=effort)), settings)

    quick, standard, best = (planned(effort) for effort in ("quick", "standard", "best"))  # type: ignore[arg-type]
    assert quick.stages is None and quick.label.scales == [1.0] and quick.label.crf == "afa"
    assert standard.stages is not None and best.stages is not None
    assert standard.stages.named() == best.stages.named() == ["classifier", "masks", "segmenter", "rounds"]
    assert standard.stages.masks == MasksStage(source="segmenter") and len(standard.label.scales) > 1
    assert standard.stages.rounds == RoundsStage(count=2) and best.stages.rounds == RoundsStage(count=3)
    assert best.train.steps > standard.train.steps == quick.train.steps
    staged = planned("standard", method={"name": "rcm_mam"})
    assert staged.stages is not None and staged.stages.masks == MasksStage(crf="afa"), "it has CAMs alone"
    assert planned("standard", method={"name": "supervised"}).stages is None
    own = planned("standard", stages=["classifier", "masks"])
    assert own.stages is not None and own.stages.named() == ["classifier", "masks"]


def test_the_plan_takes_an_encoder_whose_weights_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "counts": {"labelled": 200},
        "splits": {},
        "classes": CLASSES,
        "sizes": {"width": {"median": 320}, "height": {"median": 213}},
    }
    error: type[WeightsError] = NoWeights

    def find(config: EncoderConfig) -> None:
        if config.name == "resnet50":
            raise error("resnet50")

    monkeypatch.setattr(plan_module, "find_weights", find)
    monkeypatch.setattr(plan_module, "fast_bf16", lambda device: True)

    def encoder(**given: Any) -> str | None:
        return {c.key: c.value for c in choose(found, torch.device("cpu"), given)}.get("encoder.name")

    assert encoder() == "tf_efficientnet_lite0" and encoder(encoder={"name": "resnet18"}) is None
    assert encoder(encoder={"weights": "mine.pth"}) == "resnet50"
    error = WeightsError
    with pytest.raises(WeightsError):  # a damaged file is said
        encoder()


def test_the_plan_trains_transformers_with_adamw_and_takes_one_threshold_from_the_user() -> None:
    for encoder in (*VARIANTS, "deit_small_patch16_224", "mit_b1"):
        assert plan({}, encoder)["train.optimizer"] == "adamw", encoder
    assert load_config({"method": {"high": 0.3}}).method.low == 0.35, "refused when it is built, once all is planned"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["baseline", "afa", "tscd", "cosa"])
def test_the_plan_agrees_with_the_packaged_small_protocol(name: str) -> None:
    packaged = load_config("msrc14", f"msrc14_{name}").method.model_dump()
    planned = {key[7:]: value for key, value in plan({"name": name}, "resnet50").items() if key.startswith("method.")}
    assert planned.keys() >= {"warmup", "pooling", "gate", "head", "head_options"}
    unused = {"weight_aux", "weight_aff"} if planned.get("affinity") == "none" else set()
    for key in planned.keys() - unused:
        value = planned[key]
        wanted = packaged[key]
        if isinstance(value, dict):
            wanted = {k: wanted[k] for k in value}
        # The packaged momentum is 0.97, the plan's a seventh of the steps: 0.9696.
        assert value == (pytest.approx(wanted, abs=1e-3) if isinstance(value, float) else wanted), key


def test_the_plan_fits_method_encoder_and_schedule() -> None:
    assert plan({"name": "tscd"})["method.affinity"] == "none"
    assert "method.affinity" not in plan({"name": "tscd"}, "vit_tiny_patch16_224")
    assert "method.affinity" not in plan({"name": "tscd", "affinity": "attention"}), "the user's word counts"
    assert plan({"name": "tscd"}, crop=448).keys().isdisjoint({"method.affine", "method.affinity_radius"})
    cosa = plan({"name": "cosa"}, steps=4600)
    assert cosa["train.ema"] is None and cosa["method.momentum"] == pytest.approx(1 - 7 / 4600, abs=1e-4)
    assert (cosa["method.warmup"], cosa["method.queue"], cosa["method.threshold_start"]) == (1000, 200, 0.2)
    assert plan({"name": "cosa"}, steps=1)["method.warmup"] == 0
    short = load_config(as_mapping([]), {"train": {"steps": 1, "warmup": plan({}, steps=1)["train.warmup"]}})
    assert short.train.warmup < short.train.steps
    assert cosa["method.weight_cls_aux"] == cosa["method.weight_csc"] == 0
    apart, both = plan({"name": "cosa", "weight_csc": 0.1}), plan({"name": "cosa", "ensemble": True})
    assert apart["method.weight_cls_aux"] == both["method.weight_cls_aux"] == 1, "they need its CAMs"
    assert "method.weight_csc" not in apart
    assert (
        both["method.weight_csc"] == 0 and plan({"name": "cosa", "weight_cls_aux": 0.0})["method.weight_c2s_aux"] == 0
    )
    released = plan({"name": "cosa", "variant": "release"})
    assert "method.weight_c2s" not in released and "method.momentum" in released, "a variant's own values stay"
    assert "method.weight_equ" not in plan({"name": "tscd", "variant": "release"})
    assert "method.head_options" not in plan({"name": "baseline", "head": "segformer"})
    assert not {k for k in plan({"name": "supervised"}) if k.startswith("method.")} - {
        "method.head",
        "method.head_options",
        "method.loss_stride",
    }


@pytest.mark.parametrize("name", [n for n in named_configs() if n.endswith(("_voc", "_coco", "_cub"))])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_run_leaves_published_configurations_as_they_are(name: str, device: str, monkeypatch: Any) -> None:
    """With photos like VOC's; other values than the file's would not be those of the paper."""
    monkeypatch.setattr("tagmask.workflow.plan.fast_bf16", lambda _: True)
    sizes = {"width": {"median": 500}, "height": {"median": 375}}
    found = {"classes": CLASSES, "counts": {"labelled": 10582}, "splits": {}, "sizes": sizes}
    wanted, given = load_config(name), read_yaml(name)
    made = load_config(as_mapping(choose(found, torch.device(device), given)), given)
    assert made == wanted
    folder = RunFolder("out")
    for stage in ("affinity", "segmenter") if wanted.stages else ():
        network = network_config(made, stage, folder)
        assert network == network_config(wanted, stage, folder) and network.train.ema is None
    open_again = load_config(as_mapping(choose(found, torch.device(device), given | {"plan": True})), given)
    assert open_again != wanted, "or this shows nothing"


def encoders(values: Any, key: str = "") -> Iterator[dict[str, Any]]:
    """All sections of a configuration that describe an encoder."""
    if isinstance(values, dict):
        if key in ("encoder", "cnn") and "name" in values:
            yield values
        for inner, value in values.items():
            yield from encoders(value, inner)
    elif isinstance(values, list):
        for value in values:
            yield from encoders(value)


def named_weights() -> Iterator[tuple[str, str]]:
    """Where an encoder is named in packaged configurations and the papers' tables, and its name."""
    for config in named_configs():
        yield from ((config, encoder["name"]) for encoder in encoders(read_yaml(config)))
        if config.endswith(("_voc", "_coco", "_cub")):  # the defaults of the method, too
            yield from ((config, encoder["name"]) for encoder in encoders(load_config(config).model_dump()))
    for name in packaged_tables():
        table = read_table(name)
        words = [word for part in (table, *table.rows) for word in part.set]
        yield from ((name, word.partition("=")[2]) for word in words if ".name=" in word and "method.name=" not in word)


def test_published_configurations_say_which_weights() -> None:
    """The small protocol's ResNet-50 starts from a file of no tag, and EfficientNet-lite0's weights are a package."""
    named = list(named_weights())
    assert len(named) > 30
    for place, name in named:
        if timm.is_model(name.partition(".")[0]) and not place.startswith("msrc14") and name != LITE0:
            assert timm.is_model_pretrained(name) and "." in name, f"{place}: {name}"


@pytest.mark.parametrize("name,segmenter", [("rcm_mam_voc", "deeplab_largefov"), ("crt_voc", "deeplab_v2")])
def test_the_segmenter_of_stages_is_trained_as_alone(name: str, segmenter: str) -> None:
    made, alone = network_config(load_config(name), "segmenter", RunFolder("out")), load_config(segmenter)
    assert (made.views, made.train, made.method, made.encoder) == (
        alone.views, alone.train, alone.method, alone.encoder
    )  # fmt: skip
    assert (made.label.scales, made.label.flip, made.label.merge) == (
        alone.label.scales, alone.label.flip, alone.label.merge
    )  # fmt: skip
    assert made.label.crf == ("deeplab" if name == "crt_voc" else "none")


def staged(given: dict) -> RunConfig:
    """What ``tagmask run`` makes of the user's settings: the plan under them."""
    found = {
        "classes": CLASSES,
        "counts": {"labelled": 276},
        "splits": {},
        "sizes": {side: {"median": 250} for side in ("width", "height")},
    }
    named = {"method": {"name": given["method"]["name"]}}
    return load_config(named, as_mapping(choose(found, torch.device("cpu"), given)), given)


@pytest.mark.parametrize("name", [name for name in METHODS.names() if f"msrc14_stages_{name}" in named_configs()])
@pytest.mark.parametrize("listed", [True, False])
def test_the_plan_of_stages_agrees_with_the_packaged_ones(name: str, listed: bool, tmp_path: Path) -> None:
    stages = ["classifier", "cams", {"affinity": {"method": {"name": name}}}, "masks", "segmenter"]
    given = {"method": {"name": "rcm_mam"}, "stages": stages if listed else stage_mapping(stages)}
    made, packaged = staged(given), load_config("msrc14", "msrc14_rcm_mam", f"msrc14_stages_{name}")
    assert made.stages is not None and packaged.stages is not None
    if name == "affinity_net":
        assert made.stages.cams == packaged.stages.cams
    ours, theirs = (network_config(c, "affinity", RunFolder(tmp_path)) for c in (made, packaged))
    assert ours.method == theirs.method and ours.encoder.freeze == theirs.encoder.freeze == (name == "irn")
    for key in ("steps", "lr", "head_lr", "ema", "optimizer"):
        assert getattr(ours.train, key) == getattr(theirs.train, key), key
    assert made.stages.segmenter.encoder["weights"] == packaged.stages.segmenter.encoder["weights"] == "classifier"  # type: ignore[union-attr]


def test_the_plan_of_stages_fits_what_the_user_sets(tmp_path: Path) -> None:
    def affinity(change: dict, method: str = "irn", **others: object) -> RunConfig:
        stages = {"classifier": {}, "cams": {}, "affinity": {"method": {"name": method}} | change}
        return network_config(staged({"method": {"name": "rcm_mam"}, "stages": stages} | others), "affinity", folder)

    folder = RunFolder(tmp_path)
    learning = affinity({"encoder": {"freeze": False}})
    assert (learning.train.lr, learning.encoder.freeze) == (0.01, False), "the branch's rate is not the encoder's"
    scratch = affinity({}, encoder={"weights": "none"})
    assert not scratch.encoder.freeze and scratch.train.lr == 0.01, "a random encoder has to learn"
    assert affinity({}, train={"lr": 0.003}).train.lr == 0.003
    assert affinity({"train": {"steps": 10580}}, "affinity_net").method.walk_steps == 256  # type: ignore[attr-defined]
    assert affinity({}, train={"steps": 20}).train.steps == 20
    given = {"method": {"name": "rcm_mam"}, "stages": {"classifier": {}, "masks": {}, "segmenter": {}}}
    given["stages"]["segmenter"] = {"encoder": {"name": "resnet34"}}
    assert "weights" not in staged(given).stages.segmenter.encoder, "another encoder starts from its own"  # type: ignore[union-attr]
    given["stages"] = {"classifier": {}, "cams": {"soft": True}, "affinity": {"method": {"name": "affinity_net"}}}
    assert staged(given).stages.cams.rule == "power", "one setting of a stage leaves the others to the plan"  # type: ignore[union-attr]
    given["stages"]["cams"] = {"rule": "constant"}
    assert staged(given).stages.cams.confidence == 0.7  # type: ignore[union-attr]


@pytest.mark.parametrize("key,value", [("train.workers", -1), ("train.workers", "many"), ("train.devices", [1])])
def test_a_key_of_several_types_is_named_without_them(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"Configuration key '{key}': Input should be") as raised:
        load_config(overrides=[f"{key}={value}"])
    assert all(line.startswith(f"Configuration key '{key}':") for line in str(raised.value).splitlines())
