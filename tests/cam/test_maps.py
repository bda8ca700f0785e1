from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tagmask.cam import multi_scale, normalize
from tagmask.errors import TagmaskError


def test_normalize_equals_loops() -> None:
    cams = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 3
    result = normalize(cams)
    for b in range(2):
        for c in range(3):
            values = cams[b, c].double().flatten().tolist()
            low = min(values)
            top = max(v - low for v in values)
            expected = torch.tensor([(v - low) / (top + 1e-5) for v in values]).view(4, 5)
            torch.testing.assert_close(result[b, c], expected, rtol=1e-5, atol=1e-6)


def test_normalize_constant_is_zero() -> None:
    assert torch.equal(normalize(torch.full((1, 2, 3, 3), 7.0)), torch.zeros(1, 2, 3, 3))
    assert normalize(torch.rand(1, 1, 1, 1)).item() == 0


def network(images: torch.Tensor) -> torch.Tensor:
    """Two maps at a quarter of the size; a position ramp makes it differ for the mirror image."""
    maps = F.adaptive_avg_pool2d(images, (max(1, images.shape[-2] // 4), max(1, images.shape[-1] // 4)))
    ramp = torch.linspace(-1, 1, maps.shape[-1]).to(maps)
    return torch.stack([maps[:, 0] - maps[:, 1] + 0.3 * ramp, maps[:, 2] * ramp - 0.1], 1)


def by_hand(images: torch.Tensor, scales: list[float], flip: bool, merge: str) -> torch.Tensor:
    """Image by image and scale by scale, each step spelled out, in float64."""

    def resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    height, width = images.shape[-2:]
    results = []
    for image in images.double():
        total = torch.zeros(2, height, width, dtype=torch.float64)
        for scale in scales:
            small = resize(image[None], (max(1, round(scale * height)), max(1, round(scale * width))))
            views = [resize(network(small), (height, width))[0]]
            if flip:
                views.append(resize(network(small.flip(3)), (height, width))[0].flip(2))
            for c in range(2):
                for y in range(height):
                    for x in range(width):
                        values = [max(0.0, float(view[c, y, x])) for view in views]
                        total[c, y, x] += max(values) if merge == "max" else sum(values)
        for c in range(2):
            total[c] -= total[c].min()
            total[c] /= total[c].max() + 1e-5
        results.append(total)
    return torch.stack(results)


@pytest.mark.parametrize("scales", [[1.0], [1.0, 0.5, 1.5]])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("merge", ["max", "sum"])
def test_multi_scale_equals_steps_by_hand(scales: list[float], flip: bool, merge: Any) -> None:
    images = torch.rand(2, 3, 33, 22, generator=torch.Generator().manual_seed(0))
    result = multi_scale(network, images, scales, flip, flip_merge=merge)
    torch.testing.assert_close(result, by_hand(images, scales, flip, merge).float(), rtol=1e-4, atol=1e-5)
    assert result.min() == 0 and 0.99 < result.max() < 1


def test_a_place_seen_in_one_of_two_views_counts_half_in_a_sum_only() -> None:
    """The first column is seen in the image alone, where its mirror image has -1; the second in both."""
    views = torch.tensor([[[[0.8, 0.8, 0.0]]], [[[0.0, 0.8, -1.0]]]])
    image = torch.zeros(1, 3, 1, 3)
    found = [multi_scale(lambda x: views, image, flip_merge=merge).flatten().tolist() for merge in ("max", "sum")]
    assert found[0] == pytest.approx([1, 1, 0], abs=1e-4)
    assert found[1] == pytest.approx([0.5, 1, 0], abs=1e-4)


def test_multi_scale_calls_the_network_once_a_scale() -> None:
    seen = []

    def forward(images: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images.shape))
        return images[:, :1]

    multi_scale(forward, torch.rand(2, 3, 20, 11), (1.0, 0.5, 0.01), flip=True)
    assert seen == [(4, 3, 20, 11), (4, 3, 10, 6), (4, 3, 1, 1)]


def test_multi_scale_size_gradient_and_half_precision() -> None:
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    result = multi_scale(lambda x: network(x).bfloat16(), images, size=(8, 6))
    assert result.shape == (1, 2, 8, 6)
    assert result.dtype == torch.float32
    assert not result.requires_grad
    assert multi_scale(network, torch.rand(1, 3, 1, 9), (1.0, 0.5)).shape == (1, 2, 1, 9)


def test_multi_scale_leaves_the_networks_maps_alone() -> None:
    kept = torch.randn(1, 2, 8, 8)
    before = kept.clone()
    multi_scale(lambda x: kept, torch.rand(1, 3, 8, 8), (1.0, 1.0), flip=False)
    assert torch.equal(kept, before)


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-1.0,)])
def test_multi_scale_refuses_scales(scales: tuple[float, ...]) -> None:
    with pytest.raises(TagmaskError, match="scales"):
        multi_scale(network, torch.rand(1, 3, 8, 8), scales)


@pytest.mark.parametrize("flip", [False, True])
def test_multi_scale_reuses_the_plain_pass_of_a_training_step(flip: bool) -> None:
    images = torch.rand(2, 3, 12, 10)
    calls = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return network(x)

    reused = multi_scale(counted, images, (1.0, 0.5), flip, plain=network(images))
    assert calls == ([2, 4] if flip else [2]), "scale 1 costs the mirror images only"
    torch.testing.assert_close(reused, multi_scale(network, images, (1.0, 0.5), flip))
