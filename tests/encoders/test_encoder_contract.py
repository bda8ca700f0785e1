"""Every encoder, one list of promises. A new encoder joins with a line in ENCODERS."""

from __future__ import annotations

import math

import pytest
import torch

from tagmask.config import EncoderConfig
from tagmask.encoders import Encoder, build_encoder, list_encoders, norm_parameters
from tagmask.errors import ConfigError
from tests.encoders import small_swin

ENCODERS = [
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
    "test_vit",
    small_swin.NAME,
    "mit_b0",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "resnet18",
            "resnet50",
            "tf_efficientnet_lite0",
            "convnext_atto",
            "vit_tiny_patch16_224",
            "swin_tiny_patch4_window7_224",
        )
    ),
]


def build(name: str, **options) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(name=name, weights="none", **options))


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request) -> Encoder:
    return build(request.param)


def test_maps_have_the_announced_shapes_at_any_size(encoder):
    encoder.eval()
    with torch.no_grad():
        for height, width in [(64, 64), (65, 97), (33, 1)]:
            maps = encoder(torch.rand(2, 3, height, width)).maps
            expected = [
                (2, c, math.ceil(height / s), math.ceil(width / s)) for c, s in zip(encoder.channels, encoder.strides)
            ]
            assert [tuple(m.shape) for m in maps] == expected
            assert all(m.isfinite().all() for m in maps)
    assert encoder.strides == sorted(encoder.strides)


def test_channels_last_gives_the_same(encoder):
    encoder.eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        plain = encoder(images).maps[-1]
        other = encoder(images.to(memory_format=torch.channels_last)).maps[-1]
    torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-4)


def test_trains_under_bf16_autocast(encoder):
    encoder.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(torch.rand(2, 3, 64, 64))
        sum(m.float().square().mean() for m in features.maps).backward()
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
    encoder.zero_grad()


def test_every_parameter_is_used(encoder):
    """Unused parameters break training on several devices."""
    encoder.train()
    features = encoder(torch.rand(2, 3, 64, 64))
    outputs = features.maps + ([features.class_token] if features.class_token is not None else [])
    sum(m.square().mean() for m in outputs).backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []
    encoder.zero_grad()


def test_normalises_inside(encoder):
    """Mean-coloured images are zeros to the network; two standard deviations shift every pixel by two."""
    seen = []
    extract = encoder.extract
    encoder.extract = lambda x, *rest: seen.append(x) or extract(x, *rest)
    try:
        encoder.eval()
        with torch.no_grad():
            encoder((encoder.mean + 2 * encoder.std).expand(1, 3, 32, 32))
    finally:
        del encoder.extract
    torch.testing.assert_close(seen[0], torch.full((1, 3, 32, 32), 2.0))
    assert encoder.mean.shape == encoder.std.shape == (1, 3, 1, 1)


@pytest.mark.parametrize("name", ENCODERS)
def test_freeze_and_checkpointing(name):
    frozen = build(name, freeze=True, drop_path=0.0)
    frozen.train()
    assert not any(m.training for m in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    images = torch.rand(1, 3, 64, 64)
    plain, recomputed = build(name), build(name, checkpointing=True)
    results = []
    for encoder in (plain, recomputed):
        encoder.train()
        last = encoder(images).maps[-1]
        last.square().mean().backward()
        results.append((last.detach(), next(p.grad for p in encoder.parameters() if p.grad is not None)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_the_first_layers_may_be_frozen():
    encoder = build("resnet18", freeze_to=4)
    learns = {name.split(".")[1] for name, p in encoder.named_parameters() if p.requires_grad}
    assert learns == {"layer2", "layer3", "layer4"}
    for wrong in (3, encoder.strides[-1] * 2):
        with pytest.raises(ConfigError, match=r"encoder\.freeze_to\b"):
            build("resnet18", freeze_to=wrong)


def test_own_mean_and_std():
    encoder = build("resnet18", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    torch.testing.assert_close(encoder.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(encoder.std.flatten(), torch.tensor([0.5, 0.6, 0.7]))
    assert encoder.weights_origin == "none (random)"


def test_norm_parameters_finds_exactly_the_norms():
    encoder = build("resnet18")
    names = {id(p): n for n, p in encoder.named_parameters()}
    found = {names[id(p)] for p in norm_parameters(encoder)}
    assert found == {n for n in names.values() if ".bn" in n or "downsample.1" in n}
    vit = build("test_vit")
    names = {id(p): n for n, p in vit.named_parameters()}
    assert {names[id(p)] for p in norm_parameters(vit)} == {n for n in names.values() if "norm" in n}


def test_drop_path_is_set():
    encoder = build("test_vit", drop_path=0.3).train()
    images = torch.rand(1, 3, 64, 64)
    outputs = torch.stack([encoder(images).maps[-1] for _ in range(4)])
    assert outputs.std(dim=0).max() > 0
    encoder.eval()
    assert torch.equal(encoder(images).maps[-1], encoder(images).maps[-1])


def test_names():
    assert {"resnet50", "vit_small_patch16_224", "swin_tiny_patch4_window7_224"} <= set(list_encoders())
    narrow = list_encoders("resnet1?")
    assert "resnet18" in narrow and "resnet50" not in narrow and narrow == sorted(narrow)
    assert "vit_small_patch16_224.dino" in list_encoders("vit_*.dino")
    with pytest.raises(ConfigError, match="'resnet5O'.*'resnet50'"):
        build("resnet5O")
    with pytest.raises(ConfigError, match="'vit_small_patch16_224'.*'dina'.*dino"):
        build("vit_small_patch16_224.dina")
    with pytest.raises(ConfigError, match="'mixer_s32_224'.*'mlp_mixer'"):
        build("mixer_s32_224")
