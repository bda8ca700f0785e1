"""Heads against slow loops written from their equations, and what all of them promise."""

from __future__ import annotations

import math

import pytest
import torch

from tagmask.config import EncoderConfig, read_yaml
from tagmask.encoders import build_encoder
from tagmask.errors import ConfigError
from tagmask.heads import ASPP, Classifier, Compact, LargeFOV, SegFormer, UPerNet
from tagmask.registry import HEADS
from tagmask.types import Features
from tests.encoders import small_swin

SMALL = {
    "compact": {"hidden": 16},
    "largefov": {"hidden": 16},
    "aspp": {},
    "segformer": {"embed": 16},
    "upernet": {"embed": 16},
}
"""Options under which a head is cheap; a new head joins here."""

CHANNELS, STRIDES = [6, 8, 10, 12, 14], [2, 4, 8, 16, 16]


def features(batch=2, size=64, dtype=torch.float32, seed=0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(
        maps=[
            torch.randn(batch, c, size // s, size // s, generator=generator, dtype=dtype)
            for c, s in zip(CHANNELS, STRIDES)
        ]
    )


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.5, generator=generator)
    return module


def conv_loop(x, weight, bias, dilation=1):
    """A 'same' convolution of one image (D,h,w), point by point."""
    outputs, inputs, size, _ = weight.shape
    _, height, width = x.shape
    out = torch.zeros(outputs, height, width, dtype=x.dtype)
    reach = size // 2
    for o in range(outputs):
        for i in range(height):
            for j in range(width):
                total = bias[o].clone() if bias is not None else x.new_zeros(())
                for di in range(-reach, reach + 1):
                    for dj in range(-reach, reach + 1):
                        y, z = i + di * dilation, j + dj * dilation
                        if 0 <= y < height and 0 <= z < width:
                            total = total + (weight[o, :, di + reach, dj + reach] * x[:, y, z]).sum()
                out[o, i, j] = total
    return out


def bilinear_loop(x, height, width):
    """Bilinear resize of (D,h,w), corners not aligned."""
    _, h, w = x.shape
    out = torch.zeros(x.shape[0], height, width, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
            z = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
            top, left = math.floor(y), math.floor(z)
            low, right = min(top + 1, h - 1), min(left + 1, w - 1)
            a, b = y - top, z - left
            out[:, i, j] = (1 - a) * ((1 - b) * x[:, top, left] + b * x[:, top, right]) + a * (
                (1 - b) * x[:, low, left] + b * x[:, low, right]
            )
    return out


def group_norm_loop(x, groups, weight, bias, eps=1e-5):
    out = torch.zeros_like(x)
    size = x.shape[0] // groups
    for g in range(groups):
        part = x[g * size : (g + 1) * size]
        mean = part.sum() / part.numel()
        var = ((part - mean) ** 2).sum() / part.numel()
        for c in range(g * size, (g + 1) * size):
            out[c] = (x[c] - mean) / torch.sqrt(var + eps) * weight[c] + bias[c]
    return out


def test_largefov_matches_loops():
    head = randomise(LargeFOV(CHANNELS, STRIDES, 3, dilation=2, hidden=4)).double().eval()
    given = features(batch=1, size=96, dtype=torch.float64)
    with torch.no_grad():
        x = conv_loop(given.maps[-1][0], head.conv1.weight, head.conv1.bias, 2).clamp(min=0)
        x = conv_loop(x, head.conv2.weight, head.conv2.bias, 2).clamp(min=0)
        x = conv_loop(x, head.out.weight, head.out.bias)
        torch.testing.assert_close(head(given)[0], x)


def test_the_deeplab_variant_of_largefov_matches_loops():
    head = randomise(LargeFOV(CHANNELS, STRIDES, 3, dilation=2, hidden=4, variant="deeplab")).double().eval()
    given = features(batch=1, size=96, dtype=torch.float64)
    with torch.no_grad():
        x = conv_loop(given.maps[-1][0], head.conv1.weight, head.conv1.bias, 2).clamp(min=0)
        x = conv_loop(x, head.conv2.weight, head.conv2.bias).clamp(min=0)
        x = conv_loop(x, head.out.weight, head.out.bias)
        torch.testing.assert_close(head(given)[0], x)


def published(name: str) -> tuple[str, dict]:
    """Head and options of a packaged configuration."""
    method = read_yaml(name)["method"]
    return method["head"], method.get("head_options", {})


@pytest.mark.parametrize(
    ("configs", "channels", "expected"),
    [
        # four 1x1 to 256; 1x1 of the 1,024 joined, without bias; scale and shift of batch norm; 1x1 to 21
        (
            ("tscd_voc", "tscd_coco", "eca_voc", "eca_coco", "afa_voc"),
            [64, 128, 320, 512],
            (64 + 128 + 320 + 512) * 256 + 4 * 256 + 1024 * 256 + 2 * 256 + 256 * 21 + 21,
        ),
        # a 3x3 to 1,024 and two 1x1 of 1,024
        (("deeplab_largefov",), [4096], 9 * 4096 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 21 + 21),
        # two 3x3 to 512 and a 1x1
        (("cosa_voc",), [768, 768], 9 * 768 * 512 + 512 + 9 * 512 * 512 + 512 + 512 * 21 + 21),
        # four 3x3 to 21
        (("deeplab_v2",), [2048], 4 * (9 * 2048 * 21 + 21)),
    ],
)
def test_published_heads_have_the_papers_parameters(configs, channels, expected):
    for config in configs:
        name, options = published(config)
        with torch.device("meta"):
            head = HEADS.get(name)(channels, [8] * len(channels), 21, **options)
        assert sum(p.numel() for p in head.parameters()) == expected, config


def test_segformer_matches_loops():
    head = randomise(SegFormer(CHANNELS, STRIDES, 3, embed=8)).double().eval()
    given = features(batch=1, size=32, dtype=torch.float64)
    with torch.no_grad():
        parts = [bilinear_loop(conv_loop(m[0], p.weight, p.bias), 8, 8) for m, p in zip(given.maps[1:], head.project)]
        x = conv_loop(torch.cat(parts), head.fuse.weight, None)
        x = group_norm_loop(x, 8, head.norm.weight, head.norm.bias).clamp(min=0)
        x = conv_loop(x, head.out.weight, head.out.bias)
        torch.testing.assert_close(head(given)[0], x)


def test_segformer_with_batch_norm_matches_loops():
    """In training each channel is normed over images and positions; in use by the running statistics of that."""
    head = randomise(SegFormer(CHANNELS, STRIDES, 3, embed=8, dropout=0.0, norm="batch")).double().train()
    given = features(batch=2, size=32, dtype=torch.float64)
    with torch.no_grad():
        fused = []
        for i in range(2):
            maps = zip(given.maps[1:], head.project)
            parts = [bilinear_loop(conv_loop(m[i], p.weight, p.bias), 8, 8) for m, p in maps]
            fused.append(conv_loop(torch.cat(parts), head.fuse.weight, None))

        def expected(x, mean, var):
            x = (x - mean) / (var + 1e-5).sqrt() * head.norm.weight[:, None, None] + head.norm.bias[:, None, None]
            return conv_loop(x.clamp(min=0), head.out.weight, head.out.bias)

        both = torch.stack(fused)
        mean = both.sum((0, 2, 3)) / 128
        square = ((both - mean[:, None, None]) ** 2).sum((0, 2, 3))
        logits = head(given)
        for i, x in enumerate(fused):
            torch.testing.assert_close(logits[i], expected(x, mean[:, None, None], square[:, None, None] / 128))
        used = 0.1 * mean[:, None, None], 0.9 + 0.1 * square[:, None, None] / 127
        torch.testing.assert_close(head.eval()(given)[0], expected(fused[0], *used))


def test_aspp_matches_loops():
    head = randomise(ASPP(CHANNELS, STRIDES, 3, dilations=(2, 4, 12))).double().eval()
    given = features(batch=1, size=96, dtype=torch.float64)
    with torch.no_grad():
        sums = torch.zeros(3, 6, 6, dtype=torch.float64)
        for branch, dilation in zip(head.branches, (1, 2, 6), strict=True):  # the last map's stride is 16, not 8
            sums += conv_loop(given.maps[-1][0], branch.weight, branch.bias, dilation)
        torch.testing.assert_close(head(given)[0], sums)


def pooled_loop(x, bins):
    """Means of (D,h,w) over bins x bins cells; a cell begins at the floor and ends at the ceiling of its share."""
    _, height, width = x.shape
    out = torch.zeros(x.shape[0], bins, bins, dtype=x.dtype)
    for i in range(bins):
        for j in range(bins):
            rows = range(math.floor(i * height / bins), math.ceil((i + 1) * height / bins))
            columns = range(math.floor(j * width / bins), math.ceil((j + 1) * width / bins))
            for y in rows:
                for z in columns:
                    out[:, i, j] += x[:, y, z] / (len(rows) * len(columns))
    return out


def test_upernet_matches_loops():
    head = randomise(UPerNet(CHANNELS, STRIDES, 3, embed=16, bins=(1, 3))).double().eval()
    given = features(batch=1, size=32, dtype=torch.float64)

    def layer_loop(part, x):
        x = conv_loop(x, part[0].weight, None)
        return group_norm_loop(x, 2, part[1].weight, part[1].bias).clamp(min=0)

    with torch.no_grad():
        maps = [m[0] for m in given.maps[1:]]
        parts = [maps[-1]]
        for bins, project in zip((1, 3), head.pooled):
            parts.append(bilinear_loop(layer_loop(project, pooled_loop(maps[-1], bins)), 2, 2))
        level = layer_loop(head.context, torch.cat(parts))
        joined = {3: level}
        for i in (2, 1, 0):
            _, height, width = maps[i].shape
            level = layer_loop(head.lateral[i], maps[i]) + bilinear_loop(level, height, width)
            joined[i] = layer_loop(head.smooth[i], level)
        grid = maps[0].shape[1:]
        x = layer_loop(head.fuse, torch.cat([bilinear_loop(joined[i], *grid) for i in range(4)]))
        torch.testing.assert_close(head(given)[0], conv_loop(x, head.out.weight, head.out.bias))


@pytest.mark.parametrize("skip", [None, 4, 16])
def test_compact_matches_loops(skip):
    options = {"hidden": 16, "dilation": 2, "skip": skip, "skip_channels": 8}
    head = randomise(Compact(CHANNELS, STRIDES, 3, **options)).double().eval()
    given = features(batch=1, size=64, dtype=torch.float64)

    def layer_loop(part, x, dilation=1):
        x = conv_loop(x, part[0].weight, None, dilation)
        groups = part[1].num_groups
        return group_norm_loop(x, groups, part[1].weight, part[1].bias).clamp(min=0)

    with torch.no_grad():
        maps = [m[0] for m in given.maps]
        x = layer_loop(head.context, layer_loop(head.reduce, maps[-1]), dilation=2)
        if skip:
            finer = maps[1] if skip == 4 else maps[4]  # the last of those of a stride
            finer = layer_loop(head.project, finer)
            x = layer_loop(head.join, torch.cat([bilinear_loop(x, *finer.shape[1:]), finer]))
        torch.testing.assert_close(head(given)[0], conv_loop(x, head.out.weight, head.out.bias))


def test_wrong_options_are_refused():
    with pytest.raises(ConfigError, match="skip=3"):
        Compact(CHANNELS, STRIDES, 3, skip=3)
    with pytest.raises(ConfigError, match="dilations"):
        ASPP(CHANNELS, STRIDES, 3, dilations=())
    with pytest.raises(ConfigError, match="bins"):
        UPerNet(CHANNELS, STRIDES, 3, bins=(0, 1))
    with pytest.raises(ConfigError, match="norm"):
        SegFormer(CHANNELS, STRIDES, 3, norm="layer")
    with pytest.raises(ConfigError, match="variant"):
        LargeFOV(CHANNELS, STRIDES, 3, variant="three")


@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_classifier_matches_loops(pooling):
    """CoSA, equation 1: Z = G W, where G is the feature map F pooled over its positions."""
    head = randomise(Classifier(5, 3, pooling)).double()
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        cam, scores, shared = head.cam(x), head(x), head(x, head.cam(x))
        for b in range(2):
            for c in range(3):
                score = 0.0
                for d in range(5):
                    values = [float(x[b, d, i, j]) for i in range(4) for j in range(6)]
                    pooled = max(values) if pooling == "max" else sum(values) / len(values)
                    score += float(head.conv.weight[c, d, 0, 0]) * pooled
                for i in range(4):
                    for j in range(6):
                        value = sum(head.conv.weight[c, d, 0, 0] * x[b, d, i, j] for d in range(5))
                        torch.testing.assert_close(cam[b, c, i, j], value)
                for found in (scores, shared):
                    torch.testing.assert_close(float(found[b, c]), score)


def test_classifier_details():
    assert [n for n, _ in Classifier(4, 2).named_parameters()] == ["conv.weight"]
    torch.manual_seed(0)
    assert abs(Classifier(1000, 100).conv.weight.std().item() - 0.01) < 1e-3


@pytest.mark.parametrize("name", HEADS.names())
@pytest.mark.parametrize("count", [1, 3, 5])
def test_contract(name, count):
    """Registered under its name, built alike, any number of maps, any size, batch 1, every parameter used."""
    torch.manual_seed(0)
    head = HEADS.get(name)(CHANNELS[-count:], STRIDES[-count:], 7)
    for batch, size in [(1, 16), (2, 48)]:
        given = features(batch, size)
        given.maps = given.maps[-count:]
        head.train()
        logits = head(given)
        assert logits.shape[:2] == (batch, 7) and logits.isfinite().all()
        expected = given.maps[-1] if name in ("compact", "largefov", "aspp") else given.maps[-4:][0]
        assert logits.shape[-2:] == expected.shape[-2:]
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert logits.abs().max() < 5  # starts without a strong opinion


@pytest.mark.parametrize("name", HEADS.names())
def test_an_image_does_not_depend_on_its_batch(name):
    head = HEADS.get(name)(CHANNELS, STRIDES, 3, dropout=0.0, **SMALL[name]).train()
    both = features(2)
    alone = Features(maps=[m[:1] for m in both.maps])
    torch.testing.assert_close(head(both)[:1], head(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS.names())
def test_channels_last_and_autocast(name):
    head = HEADS.get(name)(CHANNELS, STRIDES, 3, **SMALL[name]).eval()
    plain = features()
    last = Features(maps=[m.contiguous(memory_format=torch.channels_last) for m in plain.maps])
    with torch.no_grad():
        torch.testing.assert_close(head(plain), head(last), rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert head(plain).isfinite().all()


@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit", small_swin.NAME, "mit_b0"])
def test_every_head_on_any_encoder(encoder):
    built = build_encoder(EncoderConfig(name=encoder, weights="none")).eval()
    images = torch.rand(1, 3, 65, 49)
    with torch.no_grad():
        given = built(images)
        for name in HEADS.names():
            logits = HEADS.get(name)(built.channels, built.strides, 4, **SMALL[name]).eval()(given)
            grid = given.maps[-1] if name in ("compact", "largefov", "aspp") else given.maps[-4:][0]
            assert logits.shape == (1, 4, *grid.shape[-2:]) and logits.isfinite().all(), name


def test_dropout_is_active_in_training_only():
    for name in HEADS.names():
        head = HEADS.get(name)(CHANNELS, STRIDES, 3, dropout=0.5, **SMALL[name])
        assert not torch.equal(head.train()(features()), head(features()))
        assert torch.equal(head.eval()(features()), head(features()))
