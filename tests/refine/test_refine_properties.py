"""Properties of PAR, PAMR and VARM over shapes, map counts, precisions and odd images."""

from __future__ import annotations

import numpy as np
import pytest
import refine_loops as reference
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tagmask.errors import TagmaskError
from tagmask.refine import PAMR, PAR, VARM, neighbours

WEIGHTS = {
    PAR: lambda i, y, x, d: reference.par_weights(i, y, x, d, 0.3, 0.01),
    PAMR: lambda i, y, x, d: reference.pamr_weights(i, y, x, d),
    VARM: lambda i, y, x, d: reference.varm_weights(i, y, x, d, 4, 0.01, "paper"),
}
FACTORS = {PAR: 1.01, PAMR: 1.0, VARM: 0.99}
SIDES = st.integers(1, 9)
DILATIONS = st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True).map(tuple)
few = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def draw(seed: int, count: int, maps: int, height: int, width: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, height, width, generator=generator)
    if kind == "constant":
        images = images[..., :1, :1].expand(-1, -1, height, width).clone()
    elif kind == "two colours":
        images = (images[:, :1] > 0.5).float().expand(-1, 3, -1, -1).clone()
    elif kind == "photo":  # 8-bit steps around one colour
        images = 0.5 + (images * 8).round() / 255
    return images, torch.rand(count, maps, height, width, generator=generator)


@pytest.mark.parametrize("build", [PAR, PAMR, VARM])
@few
@given(
    st.integers(0, 999),
    SIDES,
    SIDES,
    st.integers(1, 4),
    DILATIONS,
    st.sampled_from(["noise", "constant", "two colours"]),
)
def test_equals_loops(build, seed: int, height: int, width: int, maps: int, dilations, kind: str) -> None:
    images, values = draw(seed, 1, maps, height, width, kind)
    result = build(dilations=dilations, iterations=2)(images, values)
    image, start = images[0].double().numpy(), values[0].double().numpy()
    expected = reference.refine(image, start, 2, dilations, lambda i, y, x: WEIGHTS[build](i, y, x, dilations))
    np.testing.assert_allclose(result[0].numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", [PAR, PAMR, VARM])
@few
@given(
    st.integers(0, 999),
    st.integers(1, 3),
    st.integers(0, 30),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["noise", "constant", "two colours", "photo"]),
)
def test_stays_between_the_bounds_of_the_maps(build, seed, count, maps, height, width, kind) -> None:
    """A map of ones becomes the documented factor; nothing is not a number, for any image and any number of maps."""
    images, values = draw(seed, count, maps, height, width, kind)
    result = build(iterations=3)(images, torch.cat([values, torch.ones_like(images[:, :1])], 1))
    assert result.shape == (count, maps + 1, height, width)
    assert result.isfinite().all()
    torch.testing.assert_close(result[:, -1], torch.full_like(result[:, -1], FACTORS[build] ** 3), rtol=1e-5, atol=0)
    if build is not VARM:  # VARM has negative weights
        assert (result >= 0).all() and (result <= FACTORS[build] ** 3 + 1e-5).all()


@pytest.mark.parametrize("build", [PAR, PAMR, VARM])
@few
@given(st.integers(0, 999), SIDES, SIDES, st.sampled_from([torch.float16, torch.bfloat16]), st.sampled_from([1, 1e4]))
def test_half_precision_rounds_the_result_only(build, seed, height, width, dtype, scale) -> None:
    images, values = draw(seed, 1, 3, height, width, "photo")
    values = (values * scale).to(dtype)
    result = build(dilations=(1, 3), iterations=3)(images, values)
    expected = build(dilations=(1, 3), iterations=3)(images, values.float())
    assert result.dtype == dtype and result.isfinite().all()
    assert torch.equal(result, expected.to(dtype))


@pytest.mark.parametrize("build", [PAR, PAMR, VARM])
@few
@given(SIDES, SIDES, st.booleans(), st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.data())
def test_what_is_not_finite_is_refused(build, height, width, in_image, bad, data) -> None:
    images, values = draw(0, 2, 3, height, width, "noise")
    holder = images if in_image else values
    holder.view(-1)[data.draw(st.integers(0, holder.numel() - 1))] = bad
    with pytest.raises(TagmaskError, match="the images hold NaN" if in_image else "the maps hold NaN"):
        build(dilations=(1,), iterations=1)(images, values)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *(x.untyped_storage().nbytes() // 4 for x in tensors)])
        return result


@pytest.mark.parametrize("build", [PAR, PAMR, VARM])
def test_memory_does_not_grow_with_the_batch(build, monkeypatch) -> None:
    """The largest tensor made is the documented one, the weights of one block of images, or the result."""
    monkeypatch.setattr(neighbours, "CPU_BLOCK", 2 * 20 * 16)
    images, values = draw(0, 9, 2, 20, 16, "noise")
    with Largest() as largest:
        build()(images, values)
    assert largest.elements == 48 * 2 * 20 * 16
    assert largest.elements < 9 * 2 * (20 + 48) * (16 + 48), "the whole batch's padded maps would be seen"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", [PAR, PAMR, VARM])
def test_compiled_gives_the_same(build) -> None:
    module = build(dilations=(1, 4), iterations=3)
    compiled = torch.compile(module)
    for shape in ((1, 2, 20, 24), (3, 5, 17, 9)):
        images, values = draw(0, *shape, "photo")
        torch.testing.assert_close(compiled(images, values.half()), module(images, values.half()))
    values[0, 0, 0, 0] = float("nan")
    with pytest.raises(TagmaskError, match="the maps hold NaN"):
        compiled(images, values)


@pytest.mark.parametrize("build", [PAR, PAMR, VARM])
def test_other_numbers_than_colours_and_scores_are_refused(build) -> None:
    images, values = draw(0, 1, 2, 8, 8, "noise")
    with pytest.raises(TagmaskError, match="divide them by 255"):
        build()(images * 255, values)
    for wrong in ((images, values.long()), (images, values > 0), ((images * 255).byte(), values)):
        with pytest.raises(TagmaskError, match="floating-point"):
            build()(*wrong)
