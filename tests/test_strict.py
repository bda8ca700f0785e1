"""Roles of settings: what may differ on a resume, when a trained run is used, and between what stamps compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from tagmask.config import EvaluateConfig, LabelConfig, RunConfig, load_config
from tagmask.errors import ConfigError
from tagmask.registry import METHODS
from tagmask.reproduce import read_table
from tagmask.strict import (
    APART,
    COMPUTED,
    LEARNED,
    LEARNED_AND_USED,
    PLACE,
    USED,
    Role,
    Strict,
    differing,
    role_of,
    settings,
    used_for,
)
from tagmask.workflow import Run, resumed
from tagmask.workflow.evaluate import OUTPUTS
from tagmask.workflow.stamp import IN_EVERY_SCORE


class Part(Strict):
    role = USED
    sharp: Annotated[bool, used_for("edges")] = True
    colour: str = "red"


class Outer(Strict):
    steps: Annotated[int, Field(ge=1)] = 3
    workers: Annotated[int | None, COMPUTED] = Field(None, ge=0)
    part: Part = Part()
    later: Annotated[Part | None, COMPUTED] = None
    free: dict[str, int] = {}


def test_settings_are_told_by_the_role_of_their_field() -> None:
    outer = Outer(later=Part())
    assert settings(outer, lambda role: role.learned) == {"steps": 3, "free": {}}
    assert settings(outer, lambda role: role.computed) == {
        "workers": None,
        "later": {"sharp": True, "colour": "red"},
    }, "a section with a role of its own is one setting"
    decides = [settings(outer, lambda role, o=o: role.decides(frozenset(o))) for o in ({"edges"}, {"other"}, set())]
    assert decides == [{"part.sharp": True, "part.colour": "red"}, {"part.colour": "red"}, {"part.colour": "red"}]


def test_differences_are_those_of_the_wanted_role() -> None:
    one, other = Outer(), Outer(steps=4, workers=2, part=Part(colour="blue"))
    assert differing(one, other, lambda role: role.learned) == ["steps"]
    assert differing(one, other, lambda role: not role.computed) == ["steps", "part.colour"]
    assert differing(one, one.model_copy(), lambda role: True) == []
    assert differing(load_config(), load_config({"method": {"name": "seam"}}), lambda role: role.used) == []


@pytest.mark.parametrize(
    "key,role",
    [
        ("steps", LEARNED),
        ("workers", COMPUTED),
        ("part.colour", USED),
        ("part.sharp", used_for("edges")),
        ("nothing", LEARNED),
        ("part.nothing", LEARNED),
        ("nothing.at.all", LEARNED),
        ("steps.more", LEARNED),
    ],
)
def test_the_role_of_a_key(key: str, role: Role) -> None:
    assert role_of(Outer(), key) == role


def leaves(part: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Fields of a model and of the models in it, by dotted key."""
    found: dict[str, Any] = {}
    for name in type(part).model_fields:
        inner = getattr(part, name)
        found |= leaves(inner, f"{prefix}{name}.") if isinstance(inner, BaseModel) else {f"{prefix}{name}": inner}
    return found


@pytest.mark.parametrize("name", METHODS.names())
def test_every_setting_has_a_role_that_says_when_it_counts(name: str) -> None:
    config = load_config({"method": {"name": name}})
    found = settings(config, lambda role: True)
    assert found.keys() == leaves(config).keys()
    known = {output for outputs in OUTPUTS.values() for output in outputs} | IN_EVERY_SCORE
    known |= {"background", "masks", "soft", "intervals"}
    for key in found:
        role = role_of(config, key)
        assert role.learned or role.used or role == APART, key
        assert role.outputs is None or role.outputs <= known, f"{key}: no score has such an output"
    assert role_of(config, "method.name") == LEARNED


def test_what_is_set_for_use_decides_no_training() -> None:
    for kind in (LabelConfig, EvaluateConfig):
        assert not [name for name, role in kind.roles().items() if role.learned]
    named = {key for key, role in RunConfig.roles().items() if role.computed}
    assert named == {"plan", "stages"}


ROLES = {
    "train.workers=1": COMPUTED,
    "train.keep=1": COMPUTED,
    "data.root=elsewhere": COMPUTED,
    "label.soft=true": used_for("soft"),
    "evaluate.bootstrap=0": used_for("intervals"),
    "stages=[classifier, masks]": APART,
    "data.masks=elsewhere": PLACE,
    "views.short_side=200": LEARNED_AND_USED,
    "train.precision=bf16": LEARNED_AND_USED,
    "label.threshold=0.2": used_for("background"),
    "label.scales=[0.5]": used_for("segmentation"),
    "label.square=224": used_for("cams", "segmentation"),
    "views.square=256": LEARNED,
    "method.cls_loss=softmax": LEARNED,
    "evaluate.only=[cat]": used_for("only"),
    "method.inference=online": USED,
    "method.momentum=0.5": LEARNED,
    "train.lr=0.5": LEARNED,
    "train.steps=7": LEARNED,
    "encoder.name=resnet34": LEARNED,
    "data.val_share=0.5": LEARNED,
    "seed=7": LEARNED,
}
"""Settings of a run of 'cosa' that are not its own, by role."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 'cosa' that has begun."""
    made = Run(tmp_path_factory.mktemp("run"), load_config({"method": {"name": "cosa"}}))
    made.folder.create(made.config)
    return made


@pytest.mark.parametrize("setting,role", ROLES.items(), ids=ROLES)
def test_what_may_be_set_later_follows_from_the_role(setting: str, role: Role, run: Run, tmp_path: Path) -> None:
    key = setting.partition("=")[0]
    assert role_of(run.config, key) == role
    named = key.replace(".", r"\.")
    if role.computed:
        assert differing(resumed(run.folder, [], {}, [setting]), run.config, lambda role: True) == [key]
    else:
        with pytest.raises(ConfigError, match=named):
            resumed(run.folder, [], {}, [setting])
    if role.used:
        assert differing(run.using([setting]).config, run.config, lambda role: True) == [key]
    else:
        with pytest.raises(ConfigError, match=named):
            run.using([setting])


@pytest.mark.parametrize(
    "setting,allowed", [("label.scales=[0.5]", True), ("evaluate.without=[cat]", True), ("train.steps=7", False)]
)
def test_a_column_sets_what_is_of_use(setting: str, allowed: bool, tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    column = f'{{title: c, split: test, score: segmenter, set: ["{setting}"]}}'
    path.write_text(f"title: t\ncolumns:\n  - {column}\nrows: [{{name: r}}]\n", encoding="utf-8")
    if allowed:
        assert read_table(str(path)).columns[0].set == [setting]
        return
    with pytest.raises(ConfigError, match="column 'c' sets train.steps"):
        read_table(str(path))
