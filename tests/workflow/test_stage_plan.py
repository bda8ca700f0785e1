"""Configurations of stages and the plan that is shown before they run."""

from __future__ import annotations

import io
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tagmask.config import RunConfig, load_config
from tagmask.errors import ConfigError
from tagmask.methods import Method, build_method
from tagmask.training import RunFolder
from tagmask.workflow import Run, run
from tagmask.workflow.disk import PNG_EXTRA, disk_plan, print_disk_plan
from tagmask.workflow.stages import Stages, network_config, stage_configs, walk_settings

Networks = list[tuple[str, Method]]


@pytest.fixture(scope="module")
def networks(config: RunConfig, staged: Path) -> Networks:
    """Names and networks of the staged run, as before it was trained."""
    opened = Run(staged, config)
    configs = {"classifier": config, **Stages(opened).configs}
    return [(name, build_method(own, len(opened.collection.classes))) for name, own in configs.items()]


def planned(
    config: RunConfig, folder: Path, networks: Networks, found: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The disk plan of a configuration, of the data in the run folder or of other findings in it."""
    opened = Run(folder, config)
    if found is not None:
        opened.fingerprint = found
    stages = Stages(opened)
    return disk_plan(opened, stages, [(n, net) for n, net in networks if n in ("classifier", *stages.configs)])


def test_disk_that_the_plan_names_is_enough_and_not_far_off(
    config: RunConfig, staged: Path, networks: Networks
) -> None:
    rows = {row["stage"]: row for row in planned(config, staged, networks)}
    assert list(rows) == ["classifier", "cams", "affinity", "masks", "segmenter"]
    for name, folder in (("cams", "seeds"), ("masks", "masks")):
        written = sum(p.stat().st_size for p in (staged / folder).glob("*.png"))
        assert 0 < written <= rows[name]["bytes"]
    for name in ("affinity", "segmenter"):
        written = sum(p.stat().st_size for p in (staged / name).rglob("*") if p.suffix in (".ckpt", ".safetensors"))
        assert rows[name]["bytes"] == pytest.approx(written, rel=0.02), name


def test_the_plan_goes_by_the_mean_photo_and_the_checkpoint_that_is_being_written(
    config: RunConfig, staged: Path, networks: Networks
) -> None:
    found = deepcopy(Run(staged).fingerprint)
    images = found["splits"]["train"]["labelled"]
    # As of photos most of which are small: the median says nothing about the few large ones, which fill the disk.
    found["sizes"] |= {"pixels": 90000}
    found["sizes"]["height"] |= {"max": 900}
    rows = {row["stage"]: row for row in planned(config, staged, networks, found)}
    assert rows["cams"]["bytes"] == rows["masks"]["bytes"] == images * (90000 + 900 + PNG_EXTRA)
    longer = load_config(config.model_dump(mode="json"), overrides=["train.steps=9", "train.keep=2"])
    few, many = (planned(c, staged, networks, found)[0] for c in (config, longer))
    assert "up to 2 checkpoints" in few["makes"] and "up to 3 checkpoints" in many["makes"]
    checkpoint = next((staged / "checkpoints").glob("*.ckpt")).stat().st_size
    assert many["bytes"] - few["bytes"] == pytest.approx(checkpoint, rel=0.02)


def test_networks_that_are_trained_take_nothing_more(config: RunConfig, staged: Path) -> None:
    rows = {row["stage"]: row["bytes"] for row in planned(config, staged, list(Stages(Run(staged, config)).networks()))}
    assert {name for name, size in rows.items() if not size} == {"classifier", "affinity", "segmenter"}


def test_soft_maps_are_announced(config: RunConfig, staged: Path, networks: Networks) -> None:
    found = Run(staged).fingerprint
    asked = load_config(config.model_dump(mode="json"), overrides=["stages.cams.soft=true"])
    rows = [planned(c, staged, networks)[1] for c in (config, asked)]
    tags = sum(found["tags"].values()) / found["counts"]["labelled"]
    images = found["splits"]["train"]["labelled"]
    assert rows[1]["bytes"] - rows[0]["bytes"] == pytest.approx(2 * 64 * 80 * tags * images, abs=2)
    assert "soft maps" in rows[1]["makes"] and "soft" not in rows[0]["makes"]


@pytest.mark.parametrize(
    "overrides,largest,less",
    [
        (["train.keep=3"], "classifier", "train.keep=1"),
        (["stages.segmenter.train={keep: 4}"], "segmenter", "stages.segmenter.train.keep=1"),
        (["stages.masks.soft=true"], "masks", "stages.masks.soft=false"),
        ([], "masks", None),
    ],
)
def test_a_full_disk_names_what_the_largest_stage_can_do_without(
    overrides: list[str],
    largest: str,
    less: str | None,
    config: RunConfig,
    staged: Path,
    networks: Networks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = deepcopy(Run(staged).fingerprint)
    base: dict[str, Any] = {"train": {"keep": 1, "steps": 9}, "stages": {"affinity": {"train": {"steps": 1}}}}
    values = config.model_dump(mode="json")
    if largest == "masks":
        values["stages"] |= {"cams": None, "affinity": None, "masks": {}}
        base["stages"] = {}
        found["splits"]["train"]["labelled"] = 10**6
    rows = planned(load_config(values, base, overrides=overrides), staged, networks, found)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1))
    console = Console(file=io.StringIO(), width=300)
    print_disk_plan(rows, console)
    last = console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]
    assert f"'{largest}'" in last and "--out" in last
    assert (f"set {less}" in last) if less else ("set " not in last)


def test_a_stage_takes_what_it_does_not_set_from_the_run(config: RunConfig) -> None:
    folder = RunFolder("out")
    values = config.model_dump(mode="json")
    own = {"configs": ["deeplab_v2"], "train": {"steps": 7}, "method": {"head": "aspp", "head_options": {}}}
    made = network_config(load_config(values, {"stages": {"segmenter": own}}), "segmenter", folder)
    assert (
        made.encoder.name == "resnet101.tv_in1k" and made.encoder.output_stride == 8 and made.encoder.weights == "auto"
    )
    assert made.train.steps == 7 and made.train.lr == 2.5e-4 and made.views.crop == 321
    assert made.data.train_masks == Path("out/masks") and made.data.seed == config.seed
    values["encoder"]["output_stride"] = 8
    tagged = load_config(values, overrides=[f"stages.segmenter.encoder.name={config.encoder.name}.tv_in1k"])
    assert network_config(tagged, "segmenter", folder).encoder.output_stride == 8, "the same network"
    other = load_config(values, overrides=["stages.segmenter.encoder.name=resnet34"])
    encoder = network_config(other, "segmenter", folder).encoder
    assert encoder.output_stride == 16, "another encoder has its own defaults"
    assert encoder.weights == "none", "but an untrained run stays untrained"
    affinity = network_config(config, "affinity", folder)
    assert affinity.method.name == "irn" and affinity.train == config.train and affinity.encoder == config.encoder


@pytest.mark.parametrize(
    "stages,named",
    [
        (["classifier", "afinity"], "'afinity'.*'affinity'"),
        (["cams", "classifier"], "stages: .*classifier, cams, affinity, masks, segmenter"),
        (["classifier", "affinity"], "'affinity'.*'cams'"),
        (["classifier", "segmenter"], "'segmenter'.*'masks'"),
        (["classifier", {"cams": {"hihg": 1}}], r"stages\.cams\.hihg.*'high'"),
        (["classifier", {"cams": {"high": 0.1, "low": 0.2}}], r"stages\.cams"),
        (
            ["classifier", "cams", {"affinity": {"method": {"name": "baseline"}}}],
            r"stages\.affinity\.method\.name.*affinity_net or irn",
        ),
        (
            ["classifier", "masks", {"segmenter": {"method": {"name": "baseline"}}}],
            r"stages\.segmenter\.method\.name.*supervised",
        ),
        (
            ["classifier", "masks", {"segmenter": {"encoder": {"name": "resnet26", "weights": "classifier"}}}],
            r"stages\.segmenter\.encoder\.weights.*'test_resnet'",
        ),
        (
            ["classifier", "cams", {"affinity": {"train": {"steps": 2, "warmup": 2}}}],
            r"stages\.affinity\.train\.steps.*train\.warmup",
        ),
        (
            ["classifier", "masks", {"segmenter": {"encoder": {"layout": "v1", "weights": "classifier"}}}],
            r"stages\.segmenter\.encoder\.weights=auto",
        ),
        (["classifier", {"masks": {"crf": "pas"}}], "'pas'.*psa"),
        (["classifier", {"masks": {"walk": {"beta": 3}}}], r"stages\.masks\.walk: .*'affinity'"),
        (
            ["classifier", "cams", "affinity", {"masks": {"walk": {"radius": 3}}}],
            r"stages\.masks\.walk\.radius.*walk_radius, beta",
        ),
        (["classifier", "cams", "affinity", {"masks": {"threshold": 0.2}}], r"stages\.masks\.threshold"),
    ],
)
def test_wrong_stages_name_what_is_wrong(stages: list[Any], named: str, config: RunConfig) -> None:
    values = config.model_dump(mode="json") | {"stages": stages}
    with pytest.raises(ConfigError, match=named):
        stage_configs(load_config(values), RunFolder("out"))


def test_methods_without_cams_and_several_processes_are_refused(config: RunConfig) -> None:
    values = config.model_dump(mode="json")
    with pytest.raises(ConfigError, match="'supervised'"):
        stage_configs(load_config(values, {"method": {"name": "supervised"}}), RunFolder("out"))
    with pytest.raises(ConfigError, match=r"train\.devices=1"):
        stage_configs(load_config(values, overrides=["train.devices=2"]), RunFolder("out"))


def test_settings_of_a_stage_are_overridden_by_name() -> None:
    stages = ["classifier", {"cams": {"high": 0.35}}, {"affinity": {"method": {"name": "affinity_net"}}}, "masks"]
    made = load_config({"stages": stages}, overrides=["stages.masks.walk.beta=4", "stages.affinity.train.steps=9"])
    assert made.stages is not None and made.stages.named() == ["classifier", "cams", "affinity", "masks"]
    assert made.stages.cams is not None and made.stages.cams.high == 0.35
    assert made.stages.affinity is not None and made.stages.affinity.train == {"steps": 9}
    settings = walk_settings(network_config(made, "affinity", RunFolder("out")), made.stages.masks.walk)  # type: ignore[union-attr]
    assert settings == {"walk_radius": 5, "beta": 4, "walk_steps": 256, "background_power": 16}
    assert load_config(made.model_dump(mode="json")) == made
    assert load_config().stages is None


def test_stages_that_come_to_a_trained_run_are_planned(config: RunConfig, classifier: Path, tmp_path: Path) -> None:
    out, alone = Path(shutil.copytree(classifier, tmp_path / "run")), config.model_copy(update={"stages": None})
    RunFolder(out).save(alone)
    stages = ["stages=[classifier, cams, affinity, masks, segmenter]"]
    shown = run([], {}, stages, out, resume=True, dry_run=True)
    assert shown["plan"] and all(key.startswith("stages.") for key in shown["plan"]), "the rest is as it was"
    assert shown["config"]["stages"]["segmenter"]["encoder"] == {"weights": "classifier"}
    own = alone.model_dump(mode="json", exclude={"stages"})
    assert {key: value for key, value in shown["config"].items() if key != "stages"} == own
    RunFolder(out).save(load_config(shown["config"]))
    again = run([], {}, ["stages.masks.crf=psa"], out, resume=True, dry_run=True)
    assert again["plan"] == {} and again["config"]["stages"]["segmenter"]["encoder"] == {"weights": "classifier"}
