"""``baseline``: the contract, its phases, and its gate."""

from __future__ import annotations

import pytest
import torch

from tagmask.config import load_config
from tagmask.errors import ConfigError
from tagmask.methods import build_method
from tests.methods.contract import CLASSES, MethodContract, squares, tiny

SETTINGS = {
    "name": "baseline", "warmup": 2, "head_options": {"hidden": 16}, "cam_scales": [1.0], "high": 0.5, "low": 0.3,
}  # fmt: skip


class TestBaseline(MethodContract):
    settings = SETTINGS
    terms = {"cls": {"encoder", "classifier"}, "seg": {"encoder", "decoder"}}
    idle = [{"weight_seg": 0}]


def count_encoder_calls(method: torch.nn.Module, step: int, **changes: object) -> int:
    calls = []
    method.encoder.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    method.train().losses(squares(), step)  # type: ignore[operator]
    return len(calls)


def test_warm_up_computes_the_classifier_only() -> None:
    method = build_method(tiny(SETTINGS), CLASSES)
    assert set(method.train().losses(squares(), 1).terms) == {"cls"}
    assert count_encoder_calls(method, step=1) == 1


def test_a_later_step_adds_only_the_pass_of_the_mirror_images() -> None:
    assert count_encoder_calls(build_method(tiny(SETTINGS), CLASSES), step=2) == 2
    plain = build_method(tiny(SETTINGS | {"cam_flip": False}), CLASSES)
    assert count_encoder_calls(plain, step=2) == 1


def test_weight_zero_skips_the_segmenter() -> None:
    method = build_method(tiny(SETTINGS | {"weight_seg": 0.0}), CLASSES)
    assert set(method.losses(squares(), 5).terms) == {"cls"}
    assert count_encoder_calls(method, step=5) == 1


@pytest.mark.parametrize("refine", ["none", "par", "pamr", "varm"])
def test_every_refinement_gives_labels_of_present_classes(refine: str) -> None:
    method = build_method(tiny(SETTINGS | {"refine": refine}), CLASSES)
    batch = squares()
    maps = torch.rand(4, CLASSES, 4, 4)
    labels = method.labels(batch, maps, torch.ones(4, CLASSES))
    assert labels.shape == batch.images.shape[:1] + batch.images.shape[2:]
    for image, tags in zip(labels, batch.tags, strict=True):
        allowed = {0, 255} | {int(t) + 1 for t in tags.nonzero()}
        assert set(image.unique().tolist()) <= allowed
    assert (labels[:, -4:] == 255).all(), "padding takes no part"


def test_gate_leaves_doubted_classes_out_and_ignores_what_would_be_background() -> None:
    method = build_method(tiny(SETTINGS | {"gate": 0.5, "refine": "none"}), CLASSES)
    batch = squares()
    scores = torch.full((4, CLASSES), 3.0)
    scores[0] = -3.0
    labels = method.labels(batch, torch.rand(4, CLASSES, 4, 4), scores)
    assert (labels[0] == 255).all()
    assert (labels[1] == 0).any() and (labels[1] == 2).any()


def test_unknown_head_options_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="largefov.*hiden"):
        build_method(tiny(SETTINGS | {"head_options": {"hiden": 3}}), CLASSES)


def test_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"method\.warm_up\b"):
        load_config({"method": {"name": "baseline", "warm_up": 3}})
