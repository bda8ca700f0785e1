from __future__ import annotations

import numpy as np
import pytest
import refine_loops as reference
import torch
import torch.nn.functional as F

from tagmask.errors import TagmaskError
from tagmask.refine import PAMR, PAR, VARM, neighbours
from tagmask.registry import REFINERS

DILATIONS = (1, 2, 5)
CASES = {
    "par": (PAR, {}, lambda i, y, x: reference.par_weights(i, y, x, DILATIONS, 0.3, 0.01)),
    "par_wide": (
        PAR,
        {"w1": 1.5, "w2": 0.4},
        lambda i, y, x: reference.par_weights(i, y, x, DILATIONS, 1.5, 0.4),
    ),
    "pamr": (PAMR, {}, lambda i, y, x: reference.pamr_weights(i, y, x, DILATIONS)),
    "varm_paper": (VARM, {}, lambda i, y, x: reference.varm_weights(i, y, x, DILATIONS, 4, 0.01, "paper")),
    # Large beta, so that a wrong variation cannot hide.
    "varm_paper_beta": (
        VARM,
        {"alpha": 1, "beta": 3.0},
        lambda i, y, x: reference.varm_weights(i, y, x, DILATIONS, 1, 3.0, "paper"),
    ),
    "varm_release_beta": (
        VARM,
        {"alpha": 1, "beta": 3.0, "variant": "release"},
        lambda i, y, x: reference.varm_weights(i, y, x, DILATIONS, 1, 3.0, "release"),
    ),
}
MODULES = [PAR, PAMR, VARM, lambda **k: VARM(variant="release", **k)]


def photo(height: int, width: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Smooth ground, a flat patch, and noise: all that the kernels react to."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    image = torch.stack([0.2 + 0.5 * y, 0.8 - 0.6 * x, 0.3 + 0.3 * y * x])
    image = image + 0.1 * torch.rand(batch, 3, height, width, generator=generator)
    image[..., : height // 2, : width // 2] = 0.4
    return image.clamp(0, 1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [(7, 9), (1, 6), (6, 1), (1, 1)])
def test_equals_loops_over_pixels(name: str, size: tuple[int, int]) -> None:
    build, settings, weights = CASES[name]
    images, maps = photo(*size, batch=2), torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    result = build(dilations=DILATIONS, iterations=3, **settings)(images, maps)
    for image, values, got in zip(images.double().numpy(), maps.double().numpy(), result):
        expected = reference.refine(image, values, 3, DILATIONS, weights)
        np.testing.assert_allclose(got.numpy(), expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("build", MODULES)
def test_defaults_are_the_papers(build) -> None:
    module = build()
    assert module.dilations == (1, 2, 4, 8, 12, 24)
    assert module.iterations == 10
    assert len(module.offsets) == 48
    assert not list(module.parameters()) and not module.state_dict()


@pytest.mark.parametrize(("build", "factor"), [(PAR, 1.01**10), (PAMR, 1.0), (VARM, 0.99**10)])
@pytest.mark.parametrize("constant", [False, True])
def test_weights_sum_to_what_is_documented(build, factor: float, constant: bool) -> None:
    images = torch.full((1, 3, 20, 17), 0.6) if constant else photo(20, 17)
    result = build()(images, torch.full((1, 2, 20, 17), 0.5))
    torch.testing.assert_close(result, torch.full_like(result, 0.5 * factor), rtol=1e-5, atol=0)


@pytest.mark.parametrize("build", MODULES)
def test_batch_blocks_bands_and_maps_do_not_matter(build, monkeypatch) -> None:
    images, maps = photo(33, 20, batch=5), torch.rand(5, 4, 33, 20)
    module = build(dilations=(1, 3), iterations=2)
    whole = module(images, maps)
    for i in range(5):
        for k in range(4):
            alone = module(images[i : i + 1], maps[i : i + 1, k : k + 1])
            torch.testing.assert_close(whole[i : i + 1, k : k + 1], alone, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(neighbours, "CPU_BLOCK", 2 * 33 * 20)
    monkeypatch.setattr(neighbours, "CPU_BAND", 1000)
    torch.testing.assert_close(module(images, maps), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", MODULES)
def test_follows_edges(build) -> None:
    """A blurred map snaps to the colour edge: values leak less across it than they do in a plain blur."""
    images = torch.cat([torch.full((1, 3, 16, 8), 0.2), torch.full((1, 3, 16, 8), 0.8)], 3)
    images = (images + 0.02 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    maps = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    result = build(dilations=(1, 2), iterations=10)(images, maps)
    step = (result[..., 8] - result[..., 7]).mean()
    assert step > 3 * (maps[..., 8] - maps[..., 7]).mean()


@pytest.mark.parametrize("build", MODULES)
def test_resizes_maps_to_the_images(build) -> None:
    images, maps = photo(24, 18), torch.rand(1, 3, 5, 4)
    module = build(dilations=(1, 2), iterations=2)
    resized = F.interpolate(maps, size=(24, 18), mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(images, maps), module(images, resized))
    torch.testing.assert_close(build(iterations=0)(images, maps), resized)


@pytest.mark.parametrize("build", MODULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(build, dtype: torch.dtype) -> None:
    images, maps = photo(20, 17).to(dtype), torch.rand(1, 3, 20, 17).to(dtype)
    result = build()(images, maps)
    assert result.dtype == dtype
    expected = build()(images.float(), maps.float()).to(dtype)
    assert torch.equal(result, expected)  # only the result is rounded
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(build()(images, maps), expected)


@pytest.mark.parametrize("build", MODULES)
def test_outlier_in_a_flat_patch(build) -> None:
    """The standard deviation around the odd pixel is 0 or one grey level: the naive variance fails there."""
    image = torch.full((1, 3, 9, 9), 0.5)
    image[..., 4, 4] = 1.0
    image[..., 3, 4] += 1 / 255
    maps = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(3))
    result = build(dilations=(1, 2), iterations=1)(image, maps)
    name = {PAR: "par", PAMR: "pamr"}.get(build, "varm")
    weights = {
        "par": lambda i, y, x: reference.par_weights(i, y, x, (1, 2), 0.3, 0.01),
        "pamr": lambda i, y, x: reference.pamr_weights(i, y, x, (1, 2)),
        "varm": lambda i, y, x: reference.varm_weights(i, y, x, (1, 2), 4, 0.01, build(iterations=1).variant),
    }[name]
    expected = reference.refine(image[0].double().numpy(), maps[0].double().numpy(), 1, (1, 2), weights)
    np.testing.assert_allclose(result[0].numpy(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("build", MODULES)
def test_dilation_larger_than_the_image(build) -> None:
    for size in [(1, 1), (1, 30), (30, 1), (3, 2)]:
        result = build()(photo(*size), torch.rand(1, 2, 3, 3))
        assert result.shape == (1, 2, *size)
        assert result.isfinite().all()


@pytest.mark.parametrize("build", MODULES)
def test_leaves_inputs_alone_and_takes_empty_ones(build) -> None:
    images, maps = photo(8, 8, batch=2), torch.rand(2, 3, 8, 8, requires_grad=True)
    before = images.clone(), maps.detach().clone()
    result = build(iterations=2)(images, maps)
    assert not result.requires_grad
    assert torch.equal(images, before[0]) and torch.equal(maps, before[1])
    assert build()(images, maps[:, :0]).shape == (2, 0, 8, 8)
    assert build()(images[:0], maps[:0]).shape == (0, 3, 8, 8)
    assert torch.equal(build(iterations=2)(images.to(memory_format=torch.channels_last), maps), result)


def test_errors_say_what_is_wrong() -> None:
    images, maps = torch.rand(1, 3, 8, 8), torch.rand(1, 2, 8, 8)
    bad = maps.clone()
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(TagmaskError, match="the maps hold NaN"):
        PAR()(images, bad)
    with pytest.raises(TagmaskError, match="the images hold NaN"):
        PAR()(images.clone().index_fill_(2, torch.tensor([0]), float("inf")), maps)
    with pytest.raises(TagmaskError, match=r"\(1, 4, 8, 8\)"):
        PAR()(torch.rand(1, 4, 8, 8), maps)
    with pytest.raises(TagmaskError, match=r"\(2, 2, 8, 8\)"):
        PAR()(images, maps.repeat(2, 1, 1, 1))
    with pytest.raises(TagmaskError, match="dilations"):
        PAMR(dilations=())
    with pytest.raises(TagmaskError, match="iterations"):
        PAMR(iterations=-1)
    with pytest.raises(TagmaskError, match="w1"):
        PAR(w1=0)
    with pytest.raises(TagmaskError, match="Did you mean 'paper'"):
        VARM(variant="papers")  # type: ignore[arg-type]


def test_registered() -> None:
    assert {"pamr", "par", "varm"} <= set(REFINERS.names())
    assert REFINERS.get("varm")(variant="release").variant == "release"
