"""``cosa``: the assignment network, the one that is used, auxiliary maps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tagmask.cam import multi_scale
from tagmask.errors import ConfigError
from tagmask.methods import build_method
from tagmask.methods.common.ema import Teacher
from tests.methods.contract import CLASSES, ENCODERS, tiny
from tests.methods.cosa_parts import PARTS, SETTINGS, build, two_views


def test_assignment_network_is_no_part_of_the_training() -> None:
    method = build()
    assert method.assignment is not None
    assert not any(p.requires_grad for p in method.assignment.parameters())
    trained = {id(p) for group in method.param_groups(1.0) for p in group["params"]}
    assert not trained & {id(p) for p in method.assignment.parameters()}
    method.losses(two_views(), 5).total.backward()
    assert all(p.grad is None for p in method.assignment.parameters())


def test_average_of_parameters_and_buffers() -> None:
    source = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    teacher = Teacher({"all": source})
    average = teacher["all"]
    first = {name: value.clone() for name, value in average.state_dict().items()}
    source(torch.randn(8, 3) * 4)
    with torch.no_grad():
        for p in source.parameters():
            p.add_(torch.randn_like(p))
    for _ in range(2):
        teacher.follow({"all": source}, 0.75)
    for name, value in average.state_dict().items():
        new = source.state_dict()[name]
        if value.is_floating_point():
            once = 0.75 * first[name] + 0.25 * new
            torch.testing.assert_close(value, 0.75 * once + 0.25 * new)
            assert not torch.equal(value, first[name]), name
        else:
            assert value.item() == new.item() == 1, "counts are copied"
    assert not any(p.requires_grad for p in average.parameters()) and not teacher.train().training


def test_after_step_moves_all_four_parts() -> None:
    method = build()
    before = copy.deepcopy(method.assignment)
    assert before is not None
    with torch.no_grad():
        for part in method.online:
            for value in part.state_dict().values():
                if value.dtype != torch.bool:
                    value.add_(1)
    method.after_step(0)
    for name in PARTS:
        old = before[name].state_dict()
        for key, value in method.assignment[name].state_dict().items():  # type: ignore[index]
            if value.is_floating_point():
                torch.testing.assert_close(value, old[key] + 0.1, atol=1e-5, rtol=1e-5)
            elif value.dtype != torch.bool:
                assert value == old[key] + 1


def test_start_of_the_assignment_network() -> None:
    copied, independent = build(), build(start="independent")
    for name in PARTS:
        mine, theirs = copied.assignment[name].state_dict(), getattr(copied, name).state_dict()  # type: ignore[index]
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    for name in PARTS:
        part = independent.assignment[name]  # type: ignore[index]
        same = all(torch.equal(v, getattr(independent, name).state_dict()[k]) for k, v in part.state_dict().items())
        assert same == (name == "encoder"), "the encoder starts from the pretrained weights"
        assert not any(p.requires_grad for p in part.parameters())


@pytest.mark.parametrize("inference", ["assignment", "online"])
def test_network_that_is_used(inference: str) -> None:
    method = build(inference=inference, start="independent").eval()
    other = build(inference="online" if inference == "assignment" else "assignment", start="independent").eval()
    other.load_state_dict(method.state_dict())
    images = two_views().images
    network = method.assigner if inference == "assignment" else method.online
    torch.testing.assert_close(
        method.class_scores(images), network.classifier(network.encoder(images).maps[-1]).sigmoid()
    )
    for name in ("cams", "segment", "class_scores"):
        assert not torch.equal(getattr(method, name)(images), getattr(other, name)(images)), name


def test_ensemble_is_the_mean_of_both_cams() -> None:
    method, images = build(ensemble=True).eval(), two_views().images
    network = method.used
    parts = [
        multi_scale(lambda x: network.classifier.cam(network.encoder(x).maps[-1]), images, [1.0, 0.5], True),
        multi_scale(lambda x: network.auxiliary.cam(network.encoder(x).maps[-2]), images, [1.0, 0.5], True),
    ]
    torch.testing.assert_close(method.cams(images, scales=[1.0, 0.5]), (parts[0] + parts[1]) / 2)


# ---- the auxiliary map


def test_a_vit_gives_its_third_block_from_last() -> None:
    method = build("vit")
    assert method.encoder.blocks == [3, 5] and len(method.encoder.channels) == 2  # type: ignore[comparison-overlap]
    features = method.encoder(two_views().images)
    assert len(features.maps) == 2 and not torch.equal(*features.maps)
    torch.manual_seed(0)
    config = tiny(SETTINGS, ENCODERS["vit"])
    config.encoder.blocks = [-4, -1]
    chosen = build_method(config, CLASSES)
    assert chosen.encoder.blocks == [2, 5]  # type: ignore[comparison-overlap]


def test_one_block_that_is_named_is_not_replaced() -> None:
    for block in (-1, 3):
        config = tiny(SETTINGS, ENCODERS["vit"])
        config.encoder.blocks = [block]
        with pytest.raises(ConfigError, match=rf"encoder\.blocks.*\b{block % 6}\b"):
            build_method(config, CLASSES)


def test_auxiliary_cams_keep_their_finer_grid() -> None:
    method, batch = build("swin"), two_views()
    weak = method._weak_view(batch, auxiliary=True, segments=True)
    assert weak.auxiliary is not None and weak.auxiliary.shape[-2:] == weak.cams.shape[-2:] == (4, 4)
    assert method.encoder(batch.images).maps[-1].shape[-2:] == (2, 2)
    assert method._weak_view(batch, auxiliary=False, segments=False).cams.shape[-2:] == (2, 2)


@pytest.mark.parametrize("encoder", ["cnn", "vit"])
def test_a_map_that_is_not_there_is_refused(encoder: str) -> None:
    with pytest.raises(ConfigError, match=r"method\.auxiliary_map=-9.*encoder\.blocks"):
        build(encoder, auxiliary_map=-9)
