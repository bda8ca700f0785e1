"""Output strides, the two ResNet layouts, and batch norm in evaluation mode."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

from tagmask.config import EncoderConfig
from tagmask.encoders import build_encoder
from tagmask.encoders.resnet_layout import V1_EPS
from tagmask.errors import ConfigError
from tests.encoders import small_swin

BOTTLENECKS = "resnet26"
"""A ResNet-50 of two bottlenecks a stage."""


def build(**options):
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(**{"name": BOTTLENECKS, "weights": "none", **options})).eval()


def randomise_norms(encoder: nn.Module) -> None:
    """Statistics and weights as a trained network has them; fresh ones are blind to several mistakes."""
    generator = torch.Generator().manual_seed(1)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in [
                (module.weight, 0.5, 1.0),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ]:
                tensor.data.uniform_(low, high, generator=generator)


def v1_by_hand(state: dict, x: torch.Tensor) -> list[torch.Tensor]:
    """ResNet of He et al., 2016, Table 1, by functional calls on its weights; stride in the first 1x1."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1.001e-5) * weight + bias

    x = F.relu(norm("bn1", F.conv2d(x, state["conv1.weight"], stride=2, padding=3)))
    maps = [x]
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage in range(1, 5):
        for block in range(2):
            name = f"layer{stage}.{block}"
            stride = 2 if block == 0 and stage > 1 else 1
            y = F.relu(norm(f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride)))
            y = F.relu(norm(f"{name}.bn2", F.conv2d(y, state[f"{name}.conv2.weight"], padding=1)))
            y = norm(f"{name}.bn3", F.conv2d(y, state[f"{name}.conv3.weight"]))
            if block == 0:
                x = norm(f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride))
            x = F.relu(x + y)
        maps.append(x)
    return maps


def test_v1_is_the_network_of_the_paper():
    encoder = build(layout="v1", output_stride=32).double()
    randomise_norms(encoder)
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        maps = encoder(x).maps
        expected = v1_by_hand(encoder.body.state_dict(), (x - encoder.mean) / encoder.std)
    for ours, reference in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(encoder.mean.flatten().float(), torch.tensor([0.485, 0.458, 0.408]))


@pytest.mark.parametrize("layout", ["default", "v1"])
@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_computes_the_strided_network_and_what_lies_between(layout, stride):
    """On the positions of the coarse grid, the dilated network gives what the one of stride 32 gives."""
    coarse = build(layout=layout, output_stride=32).double()
    randomise_norms(coarse)
    fine = build(layout=layout, output_stride=stride).double()
    fine.load_state_dict(coarse.state_dict())
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected, maps = coarse(images).maps, fine(images).maps
    assert fine.strides[-1] == stride
    step = 32 // stride
    torch.testing.assert_close(maps[-1][..., ::step, ::step], expected[-1])
    step = 16 // min(stride, 16)
    torch.testing.assert_close(maps[-2][..., ::step, ::step], expected[-2])


@pytest.mark.parametrize("layout", ["default", "v1"])
def test_without_dilation_the_last_stage_only_loses_its_stride(layout):
    """Torchvision's network of the same weights, with stage 4 at stride 1; v1 has its strides in the first 1x1."""
    encoder = build(layout=layout, output_stride=16, dilate=False).double()
    randomise_norms(encoder)
    encoder.load_state_dict(encoder.state_dict())  # which sets the layout anew
    dilations = {m.dilation for m in encoder.modules() if isinstance(m, nn.Conv2d)}
    assert dilations == {(1, 1)} and encoder.strides == [2, 4, 8, 16, 16]
    other = ResNet(Bottleneck, [2, 2, 2, 2]).double().eval()
    other.load_state_dict(encoder.body.state_dict(), strict=False)
    for block in other.modules():
        if isinstance(block, Bottleneck) and layout == "v1":
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
        elif isinstance(block, nn.BatchNorm2d):
            block.eps = V1_EPS if layout == "v1" else 1e-5
    first = other.layer4[0]
    first.conv1.stride = first.conv2.stride = first.downsample[0].stride = (1, 1)
    images = torch.rand(1, 3, 128, 128, dtype=torch.float64)
    maps = encoder(images).maps
    with torch.no_grad():
        x = other.maxpool(other.relu(other.bn1(other.conv1((images - encoder.mean) / encoder.std))))
        for stage, ours in zip((other.layer1, other.layer2, other.layer3, other.layer4), maps[1:], strict=True):
            x = stage(x)
            torch.testing.assert_close(ours, x)
    assert maps[-1].shape == maps[-2].shape[:1] + (2048, 8, 8)
    (reach,) = torch.autograd.grad(maps[-1][0, :, 4, 4].sum(), maps[-2])
    seen = reach[0].abs().sum(0) > 0
    assert seen[2:7, 2:7].all() and seen.sum() == 25, "two 3x3 convolutions see two positions to each side"


def test_only_resnets_can_do_without_dilation():
    assert build(name="resnet18", output_stride=8, dilate=False).strides[-1] == 8
    for name in ("test_efficientnet", "test_convnext", "test_vit", small_swin.NAME, "mit_b0", "wide_resnet38"):
        with pytest.raises(ConfigError, match=r"encoder\.dilate\b"):
            build(name=name, dilate=False)


def test_v1_norms_and_refusals():
    norms = [m for m in build(layout="v1").modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.eps == V1_EPS for m in norms)
    for name in ("resnet18", "test_efficientnet", "test_vit", small_swin.NAME, "mit_b0", "wide_resnet38"):
        with pytest.raises(ConfigError, match=r"encoder\.layout"):
            build(name=name, layout="v1")


def test_the_layout_comes_with_the_weights():
    images = torch.rand(1, 3, 64, 64)
    for layout, other in (("v1", "auto"), ("default", "v1")):
        source = build(layout=layout, output_stride=8)
        randomise_norms(source)
        for encoder in (loaded := build(layout=other, output_stride=8), deepcopy(loaded)):
            encoder.load_state_dict(source.state_dict())
            with torch.no_grad():
                assert torch.equal(encoder(images).maps[-1], source(images).maps[-1])


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_output_strides(name):
    for stride in (8, 16, 32):
        encoder = build(name=name, output_stride=stride)
        with torch.no_grad():
            assert encoder(torch.rand(1, 3, 64, 64)).maps[-1].shape[-1] == 64 // stride
    assert build(name=name, output_stride=None).strides[-1] == 32


def test_output_stride_refusals():
    with pytest.raises(ConfigError, match=r"'densenet121'.*encoder\.output_stride"):
        build(name="densenet121", output_stride=16)
    with pytest.raises(ConfigError, match=r"encoder\.output_stride is 4"):
        build(output_stride=4)
    with pytest.raises(ConfigError, match=r"encoder\.blocks"):
        build(blocks=[1])


def test_norm_eval_keeps_statistics():
    images = torch.rand(2, 3, 64, 64)
    for norm_eval, same in ((True, True), (False, False)):
        encoder = build(name="resnet18", norm_eval=norm_eval).train()
        before = encoder.body.bn1.running_mean.clone()
        encoder(images)
        assert torch.equal(encoder.body.bn1.running_mean, before) is same
        assert encoder.training and encoder.body.training
        assert encoder.body.bn1.weight.requires_grad


def test_attention_is_refused():
    with pytest.raises(ConfigError, match="self-attention"):
        build(name="resnet18")(torch.rand(1, 3, 32, 32), attention=[-1])
