"""WideResNet-38: the network of the papers at all strides, and its published weights in every layout."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.config import EncoderConfig
from tagmask.encoders import build_encoder, list_encoders, norm_parameters
from tagmask.encoders.mxnet_params import read_params
from tagmask.encoders.wide_resnet38 import ResNet38, WideResNet38
from tagmask.errors import ConfigError, WeightsError

STAGES = {"b2": 3, "b3": 3, "b4": 6, "b5": 3, "b6": 1, "b7": 1}
BLOCKS = [f"{stage}_{i}" if i else stage for stage, count in STAGES.items() for i in range(count)]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("TAGMASK_WEIGHTS", raising=False)


def build(**options) -> WideResNet38:
    """The network at a sixteenth of its width, with statistics and weights as a trained network has them."""
    torch.manual_seed(0)
    config = EncoderConfig(**{"name": "wide_resnet38", "weights": "none", "output_stride": 8, **options})
    encoder = WideResNet38(config, width=4)
    if config.weights == "none":
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 1.0)
                module.bias.data.uniform_(-0.2, 0.2)
                module.running_mean.data.uniform_(-0.2, 0.2)
                module.running_var.data.uniform_(0.5, 4.0)
    return encoder.eval()


def by_hand(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Output stride 8, by functional calls on the weights, block by block as the papers' figures have them."""

    def act(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu((x - mean) / torch.sqrt(var + 1e-5) * weight + bias)

    def conv(name: str, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation)

    x = conv("conv1a", x)
    maps = []
    for name in BLOCKS[:-2]:
        stride = 2 if name in ("b2", "b3", "b4") else 1
        second = 2 if name.startswith("b5") else 1
        first = 1 if name == "b5" else second
        y = act(f"{name}.bn_branch2a", x)
        if name in ("b3", "b4", "b5"):
            maps.append(y)
        if "_" not in name:
            x = conv(f"{name}.conv_branch1", y, stride)
        y = act(f"{name}.bn_branch2b1", conv(f"{name}.conv_branch2a", y, stride, first))
        x = x + conv(f"{name}.conv_branch2b1", y, dilation=second)
    for name in ("b6", "b7"):
        y = act(f"{name}.bn_branch2a", x)
        if name == "b6":
            maps.append(y)
        x = conv(f"{name}.conv_branch1", y)
        y = act(f"{name}.bn_branch2b1", conv(f"{name}.conv_branch2a", y))
        y = act(f"{name}.bn_branch2b2", conv(f"{name}.conv_branch2b1", y, dilation=4))
        x = x + conv(f"{name}.conv_branch2b2", y)
    return [*maps, act("bn7", x)]


def test_the_network_of_the_papers():
    encoder = build().double()
    images = torch.rand(2, 3, 49, 66, dtype=torch.float64)
    with torch.no_grad():
        maps = encoder(images).maps
        expected = by_hand(encoder.body.state_dict(), (images - encoder.mean) / encoder.std)
    assert len(maps) == 5
    for ours, reference in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_computes_the_strided_network_and_what_lies_between(stride):
    """On the coarse grid's positions the dilated network gives what the one of stride 32 gives, as on ImageNet."""
    coarse, fine = build(output_stride=32).double(), build(output_stride=stride).double()
    fine.load_state_dict(coarse.state_dict())
    images = torch.rand(1, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        few, many = coarse(images).maps, fine(images).maps
    for a, b, s, t in zip(few, many, coarse.strides, fine.strides, strict=True):
        torch.testing.assert_close(b[..., :: s // t, :: s // t], a)


@pytest.mark.parametrize(
    ("given", "strides"),
    [(8, [2, 4, 8, 8, 8]), (None, [2, 4, 8, 8, 8]), (16, [2, 4, 8, 16, 16]), (32, [2, 4, 8, 16, 32])],
)
def test_maps_have_the_announced_shapes(given, strides):
    encoder = build(output_stride=given)
    assert encoder.strides == strides and encoder.channels == [8, 16, 32, 64, 256]
    for height, width in [(64, 64), (65, 97), (33, 1)]:
        with torch.no_grad():
            maps = encoder(torch.rand(1, 3, height, width)).maps
        assert [tuple(m.shape) for m in maps] == [
            (1, c, math.ceil(height / s), math.ceil(width / s)) for c, s in zip(encoder.channels, strides)
        ]


def test_size_is_that_of_the_paper():
    """Weights of all convolutions, layer by layer, and two parameters for each channel of a batch norm."""
    convolutions = 9 * 3 * 64
    norms = 2 * 4096
    inputs = 64
    for count, inner, outer in [(3, 128, 128), (3, 256, 256), (6, 512, 512), (3, 512, 1024)]:
        for i in range(count):
            convolutions += 9 * inputs * inner + 9 * inner * outer + (inputs * outer if i == 0 else 0)
            norms += 2 * (inputs + inner)
            inputs = outer
    for first, second, outer in [(512, 1024, 2048), (1024, 2048, 4096)]:
        convolutions += inputs * first + 9 * first * second + second * outer + inputs * outer
        norms += 2 * (inputs + first + second)
        inputs = outer
    with torch.device("meta"):
        body = ResNet38(64, 8)
    assert sum(p.numel() for p in body.parameters()) == convolutions + norms == 105_070_912
    shapes = {name: tuple(p.shape) for name, p in body.named_parameters()}
    assert shapes["b5.conv_branch1.weight"] == (1024, 512, 1, 1)
    assert shapes["b5_1.conv_branch2a.weight"] == (512, 1024, 3, 3)
    assert shapes["b7.conv_branch2b1.weight"] == (2048, 1024, 3, 3) and shapes["bn7.weight"] == (4096,)
    # 38 layers with weights: the classifier is the last; shortcuts do not count.
    assert sum(len(s) == 4 for n, s in shapes.items() if "branch1." not in n) + 1 == 38


def mxnet_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names and prefixes, and their classifier."""
    ends = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    result = {"arg:conv1a_weight": state["conv1a.weight"]}
    for k, end in ends.items():
        result[f"{'aux' if 'running' in k else 'arg'}:bn7_{end}"] = state[f"bn7.{k}"]
    for name in BLOCKS:
        theirs = name[1] + ("b" + name[3] if "_" in name else "a")
        branches = ["2a", "2b1", "2b2"] if name in ("b6", "b7") else ["2a", "2b1"]
        if "_" not in name:
            result[f"arg:res{theirs}_branch1_weight"] = state[f"{name}.conv_branch1.weight"]
        for branch in branches:
            result[f"arg:res{theirs}_branch{branch}_weight"] = state[f"{name}.conv_branch{branch}.weight"]
            for k, end in ends.items():
                kind = "aux" if "running" in k else "arg"
                result[f"{kind}:bn{theirs}_branch{branch}_{end}"] = state[f"{name}.bn_branch{branch}.{k}"]
    assert len(result) == sum("num_batches" not in k for k in state)
    return {**result, "arg:linear1000_weight": torch.zeros(7, 5), "arg:linear1000_bias": torch.zeros(7)}


def write_params(path: Path, state: dict[str, Tensor], generation: int) -> None:
    """MXNet's binary format: 0 with 32-bit sizes and no magic number, 1 with 64-bit sizes, 2 with storage types."""
    parts = [struct.pack("<QQQ", 0x112, 0, len(state))]
    for value in state.values():
        shape = tuple(value.shape)
        if generation == 0:
            parts.append(struct.pack(f"<I{len(shape)}I", len(shape), *shape))
        else:
            head = [struct.pack("<I", 0xF993FAC8), struct.pack("<Ii", 0xF993FAC9, 0)][generation - 1]
            parts.append(head + struct.pack(f"<I{len(shape)}q", len(shape), *shape))
        kind = {torch.float32: 0, torch.float64: 1, torch.float16: 2}[value.dtype]
        parts.append(struct.pack("<iii", 2, 0, kind) + value.numpy().tobytes())
    parts.append(struct.pack("<Q", len(state)))
    for name in state:
        parts.append(struct.pack("<Q", len(name)) + name.encode())
    path.write_bytes(b"".join(parts))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return {k: v for k, v in build().body.state_dict().items() if "num_batches" not in k}


@pytest.mark.parametrize("form", ["params0", "params1", "params2", "npz", "safetensors", "bare"])
def test_the_authors_layout(tmp_path, state, form):
    theirs = mxnet_names(state)
    path = tmp_path / f"x.{form.rstrip('012')}"
    if form.startswith("params"):
        write_params(path, theirs, int(form[-1]))
    elif form == "npz":
        np.savez(path, **{k: v.numpy() for k, v in theirs.items()})
    else:
        path = tmp_path / "x.safetensors"
        bare = form == "bare"
        save_file({k.partition(":")[2] if bare else k: v for k, v in theirs.items()}, path)
    loaded = build(weights=str(path)).body.state_dict()
    for name, value in state.items():
        assert torch.equal(loaded[name], value), name


def test_the_layout_of_pytorch_conversions(tmp_path, state):
    path = tmp_path / "x.pth"
    full = {f"module.{k}": v for k, v in state.items()} | {"module.fc8.weight": torch.zeros(20, 256, 1, 1)}
    torch.save(full, path)
    encoder = build(weights=str(path))
    assert all(torch.equal(encoder.body.state_dict()[k], v) for k, v in state.items())
    assert encoder.weights_origin.startswith("file x.pth (sha256 ")
    torch.save({**state, "f8_3.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="1 unexpected: f8_3.weight"):
        build(weights=str(path))
    torch.save({k: v for k, v in state.items() if k != "b4_5.bn_branch2b1.running_var"}, path)
    with pytest.raises(WeightsError, match="1 missing: b4_5.bn_branch2b1.running_var"):
        build(weights=str(path))


def test_reader_of_params(tmp_path):
    generator = torch.Generator().manual_seed(0)
    arrays = {
        "arg:a": torch.randn(2, 3, 4, generator=generator),
        "aux:b": torch.randn(5, generator=generator).double(),
        "c": torch.randn(1, 7, generator=generator).half(),
    }
    path = tmp_path / "x.params"
    for generation in range(3):
        write_params(path, arrays, generation)
        found = read_params(path)
        assert list(found) == list(arrays)
        for name, value in arrays.items():
            assert found[name].dtype == value.dtype and torch.equal(found[name], value)


def test_broken_params_are_named(tmp_path, state):
    path = tmp_path / "x.params"
    write_params(path, mxnet_names(state), 1)
    whole = path.read_bytes()
    sparse = whole[:24] + struct.pack("<Ii", 0xF993FAC9, 1)
    integers = whole[:24] + struct.pack("<II3i", 1, 4, 1, 0, 4)
    unnamed = struct.pack("<QQQQ", 0x112, 0, 0, 1) + struct.pack("<Q1s", 1, b"a")
    for content, fault in [
        (whole[: len(whole) // 2], "buffer"),
        (whole[:-20], "buffer"),
        (b"something else, longer than a header", "not a .params file"),
        (sparse, "sparse"),
        (integers, "MXNet's type 4"),
        (whole[:24] + struct.pack("<I3i", 0, 1, 0, 0), r"shape \(\)"),
        (whole[:24] + struct.pack("<IIq3i", 0xF993FAC8, 1, -1, 1, 0, 0), "shape"),
        (unnamed, "0 arrays, but 1 names"),
    ]:
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=rf"x.params: not readable as weights .*{fault}"):
            build(weights=str(path))


def test_auto_finds_files_and_says_what_there_is(tmp_path, state):
    with pytest.raises(WeightsError, match=r"has none for wide_resnet38.*ilsvrc-cls_rna-a1_cls1000_ep-0001.params"):
        build(weights="auto")
    write_params(tmp_path / "wide_resnet38.params", mxnet_names(state), 0)
    encoder = build(weights="auto", weights_dir=tmp_path)
    assert torch.equal(encoder.body.conv1a.weight, state["conv1a.weight"])


def test_norm_eval_freeze_and_dropout():
    encoder = build().train()
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    dropouts = [m for m in encoder.modules() if isinstance(m, nn.Dropout2d)]
    assert not any(m.training for m in norms) and all(m.training for m in dropouts)
    assert [m.p for m in dropouts] == [0.3, 0.5]
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(encoder(images).maps[3], encoder(images).maps[3])
    assert not torch.equal(encoder(images).maps[4], encoder(images).maps[4])
    assert all(m.training for m in build(norm_eval=False).train().modules() if isinstance(m, nn.BatchNorm2d))
    names = {id(p): n for n, p in encoder.named_parameters()}
    assert {names[id(p)] for p in norm_parameters(encoder)} == {n for n in names.values() if "bn" in n}
    frozen = build()
    frozen.freeze()
    assert not any(m.training for m in frozen.train().modules())


def test_trains_and_recomputes_the_same():
    results = []
    for checkpointing in (False, True):
        encoder = build(checkpointing=checkpointing).train()
        torch.manual_seed(4)
        features = encoder(torch.rand(2, 3, 32, 32))
        sum(m.square().mean() for m in features.maps).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
        results.append((features.maps[-1].detach(), encoder.body.conv1a.weight.grad))
    torch.testing.assert_close(results[0], results[1])


def test_under_autocast():
    encoder = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder(torch.rand(1, 3, 32, 32)).maps[-1].float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


def test_refusals():
    for options, fault in [
        ({"blocks": [1]}, "encoder.blocks"),
        ({"drop_path": 0.1}, "encoder.drop_path"),
        ({"output_stride": 4}, "output_stride is 4"),
    ]:
        with pytest.raises(ConfigError, match=fault):
            build(**options)
    with pytest.raises(ConfigError, match="self-attention"):
        build()(torch.rand(1, 3, 32, 32), attention=[0])


@pytest.mark.slow
def test_full_width_by_name():
    assert list_encoders("wide_resnet38") == ["wide_resnet38"]
    encoder = build_encoder(EncoderConfig(name="wide_resnet38", weights="none", output_stride=8, freeze=True))
    assert encoder.kind == "cnn" and encoder.channels == [128, 256, 512, 1024, 4096] and not encoder.has_attention
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 64, 48)).maps[-1].shape == (1, 4096, 8, 6)
