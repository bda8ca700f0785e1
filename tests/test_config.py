"""Configuration: merging, overrides, errors that name the nearest key; the packaged files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagmask.config import dump_yaml, load_config, named_configs, parse_overrides
from tagmask.errors import ConfigError
from tagmask.workflow.plan import as_mapping, choose


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
        ("train.lr", "key.subkey=value"),
        ("train.betas=[1", "not valid YAML"),
        ("method.name=basline", "basline.*baseline"),
    ],
)
def test_wrong_settings_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=[override])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"list\.yaml: a configuration is a mapping"):
        load_config(tmp_path / "list.yaml")


def test_packaged_configurations_are_valid() -> None:
    assert {"demo", "msrc14", "msrc14_baseline", "msrc14_supervised"} <= set(named_configs())
    for name in named_configs():
        load_config(name)


def test_overrides_nest() -> None:
    assert parse_overrides(["a.b.c=1", "a.b.d=[x, 2]", "a.e=null"]) == {"a": {"b": {"c": 1, "d": ["x", 2]}, "e": None}}


@pytest.mark.parametrize("images,batch", [(1, 1), (10, 10), (300, 16), (100000, 16)])
def test_the_plan_is_a_valid_configuration_for_any_size(images: int, batch: int) -> None:
    import torch

    found = {
        "counts": {"labelled": images},
        "splits": {},
        "sizes": {"width": {"median": 320}, "height": {"median": 213}},
    }
    config = load_config(as_mapping(choose(found, torch.device("cpu"))))
    vit = load_config(as_mapping(choose(found, torch.device("cpu"), "vit_tiny_patch16_224")))
    assert (config.train.optimizer, vit.train.optimizer) == ("sgd", "adamw")
    assert vit.encoder.name == "vit_tiny_patch16_224"
    assert config.train.batch_size == batch and config.train.steps <= 600
    assert config.method.warmup < config.train.steps and config.views.crop == 224  # type: ignore[attr-defined]
