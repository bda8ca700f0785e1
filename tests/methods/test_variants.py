"""Variants over configurations that spell out their values, and phases that would never begin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tagmask.config import load_config, named_configs
from tagmask.errors import ConfigError
from tagmask.registry import METHODS
from tagmask.workflow.train import check_schedule
from tests.methods.contract import tiny


def presets(name: str) -> dict[str, dict[str, Any]]:
    """Of the method of a packaged configuration."""
    return getattr(METHODS.get(load_config(name).method.name).config_class, "presets", {})


def has(values: Mapping[str, Any], preset: Mapping[str, Any]) -> bool:
    return all(
        has(values[key], wanted) if isinstance(wanted, Mapping) else values[key] == wanted
        for key, wanted in preset.items()
    )


RELEASED = [name for name in named_configs() if "release" in presets(name)]


@pytest.mark.parametrize("name", RELEASED)
def test_release_over_a_packaged_configuration_is_the_release(name: str) -> None:
    preset = presets(name)["release"]
    before = load_config(name).method.model_dump(mode="json")
    after = load_config(name, overrides=["method.variant=release"]).method.model_dump(mode="json")
    assert not has(before, preset) and has(after, preset)
    differing = {key for key in before if before[key] != after[key]}
    assert differing <= set(preset) | {"variant"}, "and nothing else changes"


def test_mirror_images_are_merged_as_released() -> None:
    released = {"crt_voc": "sum", "tscd_voc": "max", "eca_voc": "max", "cosa_voc": "max"}
    merged = {name: load_config(name, overrides=["method.variant=release"]).method for name in released}
    assert {name: method.flip_merge for name, method in merged.items()} == released  # type: ignore[attr-defined]
    summed = [load_config(name).method.flip_merge for name in ("rcm_mam_voc", "seam_voc")]  # type: ignore[attr-defined]
    assert summed == ["sum", "sum"], "as their code family"


def test_what_is_set_with_the_variant_or_later_stays() -> None:
    kept = ["method.weight_csc=0.3", "method.variant=release"]
    for overrides in (kept, kept[::-1]):
        method = load_config("cosa_voc", overrides=overrides).method
        assert method.weight_csc == 0.3 and method.balanced is True  # type: ignore[attr-defined]
    own = {"method": {"name": "cosa", "variant": "release", "weight_csc": 0.3, "energy": {"weight": 2e-7}}}
    method = load_config(own, overrides=["method.variant=release"]).method
    assert method.weight_csc == 0.3, "the same variant once more changes nothing"  # type: ignore[attr-defined]
    later = load_config(own, {"method": {"weight_c2s": 0.7}}).method
    assert later.weight_c2s == 0.7 and later.weight_c2s_aux == 0.05  # type: ignore[attr-defined]
    spelled = {"method": {"name": "cosa", "energy": {"weight": 2e-7, "gradient": "exact"}}}
    energy = load_config(spelled, overrides=["method.variant=release"]).method.energy  # type: ignore[attr-defined]
    assert (energy.weight, energy.gradient) == (2e-7, "release"), "of a part, only what the variant has"
    with pytest.raises(ConfigError, match=r"method\.variant"):
        load_config("cosa_voc", overrides=["method.variant=relaese"])


def test_small_protocols_keep_their_weights() -> None:
    cosa, tscd = (load_config("msrc14", f"msrc14_{name}").method for name in ("cosa", "tscd"))
    assert (cosa.weight_c2s, cosa.weight_cls_aux, cosa.weight_c2s_aux, cosa.threshold) == (1, 0, 0, "dynamic")  # type: ignore[attr-defined]
    assert (cosa.cam_scales, cosa.weight_csc, tscd.weight_equ) == ([1.0], 0.0, 0.02)  # type: ignore[attr-defined]
    assert cosa.balanced and tscd.centered  # type: ignore[attr-defined]


def test_fields_that_are_no_phases_are_left_alone() -> None:
    check_schedule(tiny({"name": "cosa", "warmup": 1, "threshold_start": 0.5, "start": "copy"}))
    check_schedule(tiny({"name": "eca", "warmup": 1, "affinity_warmup": None}))


@pytest.mark.parametrize(
    "method",
    [
        {"name": "eca", "start_seg": 9, "weight_seg": 0.0},
        {"name": "eca", "affinity_warmup": 9, "weight_seg": 0.0},
        {"name": "eca", "start_aff": 9, "affinity": "none"},
        {"name": "eca", "start_region": 9, "weight_region": 0},
        {"name": "afa", "affinity_warmup": 9, "weight_seg": 0},
        {"name": "cosa", "s2c_warmup": 9, "weight_s2c": 0.0},
        {"name": "rcm_mam", "attention_warmup": 9, "weight_mam": 0},
        {"name": "rcm_mam", "attention_warmup": 9, "attention": "none"},
    ],
)
def test_a_phase_goes_by_what_waits_for_it(method: dict[str, Any]) -> None:
    early = {"warmup": 1} | ({"affinity_warmup": 1} if method["name"] == "afa" else {})
    check_schedule(tiny(early | method))
