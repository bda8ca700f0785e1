"""Configurations of stages and the plan that is shown before they run."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tagmask.config import RunConfig, load_config
from tagmask.errors import ConfigError
from tagmask.training import RunFolder
from tagmask.workflow import prepare, run, train
from tagmask.workflow.stages import (
    PNG_EXTRA,
    check_stages,
    disk_plan,
    network_config,
    print_disk_plan,
    save_stages,
    walk_settings,
)


def test_disk_that_the_plan_names_is_enough_and_not_far_off(config: RunConfig, staged: Path) -> None:
    found = prepare(config)[1]
    rows = {row["stage"]: row for row in disk_plan(config, RunFolder(staged), found)}
    assert list(rows) == ["classifier", "cams", "affinity", "masks", "segmenter"]
    for name, folder in (("cams", "seeds"), ("masks", "masks")):
        written = sum(p.stat().st_size for p in (staged / folder).glob("*.png"))
        assert 0 < written <= rows[name]["bytes"]
    for name in ("affinity", "segmenter"):
        written = sum(p.stat().st_size for p in (staged / name).rglob("*") if p.suffix in (".ckpt", ".safetensors"))
        assert rows[name]["bytes"] == pytest.approx(written, rel=0.02), name


def test_the_plan_goes_by_the_mean_photo_and_the_checkpoint_that_is_being_written(
    config: RunConfig, staged: Path
) -> None:
    found = prepare(config)[1]
    images = found["splits"]["train"]["labelled"]
    # As of photos most of which are small: the median says nothing about the few large ones, which fill the disk.
    found["sizes"] |= {"pixels": 90000}
    found["sizes"]["height"] |= {"max": 900}
    rows = {row["stage"]: row for row in disk_plan(config, RunFolder(staged), found)}
    assert rows["cams"]["bytes"] == rows["masks"]["bytes"] == images * (90000 + 900 + PNG_EXTRA)
    longer = load_config(config.model_dump(mode="json"), overrides=["train.steps=9", "train.keep=2"])
    (few, *_), (many, *_) = (disk_plan(c, RunFolder(staged), found) for c in (config, longer))
    assert "up to 2 checkpoints" in few["makes"] and "up to 3 checkpoints" in many["makes"]
    checkpoint = next((staged / "checkpoints").glob("*.ckpt")).stat().st_size
    assert many["bytes"] - few["bytes"] == pytest.approx(checkpoint, rel=0.02)


def test_soft_maps_are_announced(config: RunConfig, staged: Path) -> None:
    found = prepare(config)[1]
    asked = load_config(config.model_dump(mode="json"), overrides=["stages.cams.soft=true"])
    rows = [disk_plan(c, RunFolder(staged), found)[1] for c in (config, asked)]
    tags = sum(found["tags"].values()) / found["counts"]["labelled"]
    images = found["splits"]["train"]["labelled"]
    assert rows[1]["bytes"] - rows[0]["bytes"] == pytest.approx(2 * 64 * 80 * tags * images, abs=2)
    assert "soft maps" in rows[1]["makes"] and "soft" not in rows[0]["makes"]


@pytest.mark.parametrize(
    "overrides,largest,less",
    [
        (["train.keep=3"], "classifier", "set train.keep=1, or "),
        (["stages.segmenter.train={keep: 4}"], "segmenter", "set stages.segmenter.train.keep=1, or "),
        (["stages.masks.soft=true"], "masks", "set stages.masks.soft=false, or "),
        ([], "masks", ""),
    ],
)
def test_a_full_disk_names_what_the_largest_stage_can_do_without(
    overrides: list[str], largest: str, less: str, config: RunConfig, staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepare(config)[1]
    base: dict[str, Any] = {"train": {"keep": 1, "steps": 9}, "stages": {"affinity": {"train": {"steps": 1}}}}
    values = config.model_dump(mode="json")
    if largest == "masks":
        values["stages"] |= {"cams": None, "affinity": None, "masks": {}}
        base["stages"] = {}
        found["splits"]["train"]["labelled"] = 10**6
    asked = load_config(values, base, overrides=overrides)
    rows = disk_plan(asked, RunFolder(staged), found)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1))
    console = Console(file=io.StringIO(), width=300)
    print_disk_plan(rows, console)
    wanted = f"That may not fit, and '{largest}' takes most: {less}write elsewhere (--out)."
    assert wanted in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_stage_takes_what_it_does_not_set_from_the_run(config: RunConfig) -> None:
    folder = RunFolder("out")
    values = config.model_dump(mode="json")
    own = {"configs": ["deeplab_v2"], "train": {"steps": 7}, "method": {"head": "aspp", "head_options": {}}}
    made = network_config(load_config(values, {"stages": {"segmenter": own}}), "segmenter", folder)
    assert made.encoder.name == "resnet101" and made.encoder.output_stride == 8 and made.encoder.weights == "auto"
    assert made.train.steps == 7 and made.train.lr == 2.5e-4 and made.views.crop == 321
    assert made.data.train_masks == Path("out/masks") and made.data.seed == config.seed
    values["encoder"]["output_stride"] = 8
    other = load_config(values, overrides=["stages.segmenter.encoder.name=resnet34"])
    encoder = network_config(other, "segmenter", folder).encoder
    assert encoder.output_stride == 16, "another encoder has its own defaults"
    assert encoder.weights == "none", "but an untrained run stays untrained"
    affinity = network_config(config, "affinity", folder)
    assert affinity.method.name == "irn" and affinity.train == config.train and affinity.encoder == config.encoder


@pytest.mark.parametrize(
    "stages,message",
    [
        (["classifier", "afinity"], "afinity.*affinity"),
        (["cams", "classifier"], "in this order: classifier, cams, affinity, masks, segmenter"),
        (["classifier", "affinity"], "add it"),
        (["classifier", "segmenter"], "add it"),
        (["classifier", {"cams": {"hihg": 1}}], "hihg.*high"),
        (["classifier", {"cams": {"high": 0.1, "low": 0.2}}], "stricter"),
        (["classifier", "cams", {"affinity": {"method": {"name": "baseline"}}}], "affinity_net or irn"),
        (["classifier", "masks", {"segmenter": {"method": {"name": "baseline"}}}], "only 'supervised'"),
        (
            ["classifier", "masks", {"segmenter": {"encoder": {"name": "resnet26", "weights": "classifier"}}}],
            "'resnet18'",
        ),
        (["classifier", "cams", {"affinity": {"train": {"steps": 2, "warmup": 2}}}], "Stage 'affinity'.*train.warmup"),
        (
            ["classifier", "masks", {"segmenter": {"encoder": {"layout": "v1", "weights": "classifier"}}}],
            "weights=auto",
        ),
        (["classifier", {"masks": {"crf": "pas"}}], "psa"),
        (["classifier", {"masks": {"walk": {"beta": 3}}}], "no stage 'affinity'"),
        (["classifier", "cams", "affinity", {"masks": {"walk": {"radius": 3}}}], "walk_radius, beta"),
        (["classifier", "cams", "affinity", {"masks": {"threshold": 0.2}}], "leave one of the two out"),
    ],
)
def test_wrong_stages_name_what_is_wrong(stages: list[Any], message: str, config: RunConfig) -> None:
    values = config.model_dump(mode="json") | {"stages": stages}
    with pytest.raises(ConfigError, match=message):
        check_stages(load_config(values), RunFolder("out"))


def test_methods_without_cams_and_several_processes_are_refused(config: RunConfig) -> None:
    values = config.model_dump(mode="json")
    with pytest.raises(ConfigError, match="no CAMs"):
        check_stages(load_config(values, {"method": {"name": "supervised"}}), RunFolder("out"))
    with pytest.raises(ConfigError, match="train.devices=1"):
        check_stages(load_config(values, overrides=["train.devices=2"]), RunFolder("out"))


def test_settings_of_a_stage_are_overridden_by_name() -> None:
    stages = ["classifier", {"cams": {"high": 0.35}}, {"affinity": {"method": {"name": "affinity_net"}}}, "masks"]
    made = load_config({"stages": stages}, overrides=["stages.masks.walk.beta=4", "stages.affinity.train.steps=9"])
    assert made.stages is not None and made.stages.named() == ["classifier", "cams", "affinity", "masks"]
    assert made.stages.cams is not None and made.stages.cams.high == 0.35
    assert made.stages.affinity is not None and made.stages.affinity.train == {"steps": 9}
    settings = walk_settings(network_config(made, "affinity", RunFolder("out")), made.stages.masks)  # type: ignore[arg-type]
    assert settings == {"walk_radius": 5, "beta": 4, "walk_steps": 256, "background_power": 16}
    assert load_config(made.model_dump(mode="json")) == made
    assert load_config().stages is None


def test_stages_that_come_to_a_trained_run_are_planned(config: RunConfig, tmp_path: Path) -> None:
    out, alone = tmp_path / "run", config.model_copy(update={"stages": None})
    train(alone, out)
    stages = ["stages=[classifier, cams, affinity, masks, segmenter]"]
    shown = run([], {}, stages, out, resume=True, dry_run=True)
    assert shown["plan"] and all(key.startswith("stages.") for key in shown["plan"]), "the rest is as it was"
    assert shown["config"]["stages"]["segmenter"]["encoder"] == {"weights": "classifier"}
    assert {k: v for k, v in shown["config"].items() if k != "stages"} == alone.model_dump(
        mode="json", exclude={"stages"}
    )
    save_stages(RunFolder(out), load_config(shown["config"]))
    again = run([], {}, ["stages.masks.crf=psa"], out, resume=True, dry_run=True)
    assert again["plan"] == {} and again["config"]["stages"]["segmenter"]["encoder"] == {"weights": "classifier"}
