"""The room of methods: which are the defaults of stages, and what lies where."""

from __future__ import annotations

import pytest

from tagmask.errors import ConfigError
from tagmask.methods import Method, default_method
from tagmask.methods.common.walk_base import WalkConfig
from tagmask.registry import METHODS
from tagmask.stage_config import CamsStage


@pytest.mark.parametrize("stage", ["classifier", "affinity", "segmenter"])
def test_a_stage_has_one_default_method(stage: str) -> None:
    assert METHODS.get(default_method(stage)).default_for == stage
    with pytest.raises(ConfigError, match="'nonsense'"):
        default_method("nonsense")


def test_a_subclass_is_not_the_default_of_its_stage() -> None:
    kind = METHODS.get(default_method("classifier"))
    assert type("Other", (kind,), {}).default_for is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_is_a_file_of_its_own_and_has_what_it_says(name: str) -> None:
    kind: type[Method] = METHODS.get(name)
    assert kind.__module__ == f"tagmask.methods.{name}"
    assert kind.has_cams == (kind.cam_maps is not Method.cam_maps)
    assert kind.has_segmenter == (kind.segment is not Method.segment)
    assert {"cam_scales", "cam_flip", "flip_merge"} <= kind.config_class.model_fields.keys() or not kind.has_cams


@pytest.mark.parametrize(
    "kind", [k for k in (METHODS.get(name).config_class for name in METHODS.names()) if issubclass(k, WalkConfig)]
)
def test_labels_that_a_walk_asks_for_are_settings_of_stage_cams(kind: type[WalkConfig]) -> None:
    asked = kind.stage_labels()
    assert CamsStage.model_validate(asked).model_dump(include=set(asked)) == asked
