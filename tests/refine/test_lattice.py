"""The lattice: both forms alike, close to the exact Gaussian, linear, with the gradient of a linear map."""

import itertools
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tagmask.errors import TagmaskError
from tagmask.refine import PermutohedralLattice
from tagmask.refine import lattice as module

numba = pytest.mark.skipif(module.kernels() is None, reason="numba is not installed")
FORMS = [False, pytest.param(True, marks=numba)]


def build(features: torch.Tensor, compiled: bool) -> PermutohedralLattice:
    with mock.patch.object(module, "kernels", module.kernels if compiled else lambda: None):
        return PermutohedralLattice(features)


def loop_filter(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The lattice filter as Adams et al. describe it, with dictionaries, in float64. (N,d), (K,N) → (K,N)."""
    count, d = features.shape
    points: dict[tuple, np.ndarray] = {}
    simplices = []
    for n in range(count):
        scaled = [features[n, j] * np.sqrt(2 / 3) * (d + 1) / np.sqrt((j + 1) * (j + 2)) for j in range(d)]
        position = [sum(scaled[i:]) - (i * scaled[i - 1] if i else 0.0) for i in range(d + 1)]
        # The enclosing simplex by definition: of all remainder-0 points near by, the one that is inside-most.
        base = [(d + 1) * round(p / (d + 1)) for p in position]
        excess = sum(base) // (d + 1)
        order = sorted(range(d + 1), key=lambda i: position[i] - base[i])
        for i in order[:excess] if excess > 0 else order[excess:] if excess < 0 else []:
            base[i] -= (d + 1) * (1 if excess > 0 else -1)
        delta = [position[i] - base[i] for i in range(d + 1)]
        ranked = sorted(range(d + 1), key=lambda i: -delta[i])
        weights = [0.0] * (d + 1)
        for k in range(1, d + 1):
            weights[k] = (delta[ranked[d - k]] - delta[ranked[d - k + 1]]) / (d + 1)
        weights[0] = 1 - sum(weights)
        simplex = []
        for k in range(d + 1):
            corner = list(base)
            for i in range(d + 1):
                corner[i] += k
            for i in ranked[d + 1 - k :]:
                corner[i] -= d + 1
            simplex.append((tuple(corner), weights[k]))
            points[tuple(corner)] = np.zeros(len(values))
        simplices.append(simplex)
    for n, simplex in enumerate(simplices):
        for corner, weight in simplex:
            points[corner] += weight * values[:, n]
    zero = np.zeros(len(values))
    for axis in range(d + 1):
        step = np.array([d if i == axis else -1 for i in range(d + 1)])
        points = {
            p: v + 0.5 * (points.get(tuple(np.array(p) + step), zero) + points.get(tuple(np.array(p) - step), zero))
            for p, v in points.items()
        }
    sums = [sum(weight * points[corner] for corner, weight in simplex) for simplex in simplices]
    return np.stack(sums, 1) / (1 + 2.0**-d)


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_follows_the_loop(d: int, compiled: bool) -> None:
    generator = torch.Generator().manual_seed(d)
    features = torch.randn(2, 60, d, generator=generator, dtype=torch.float64) * 2
    values = torch.rand(2, 3, 60, generator=generator, dtype=torch.float64)
    ours = build(features, compiled).filter(values)
    for i in range(2):
        np.testing.assert_allclose(ours[i], loop_filter(features[i].numpy(), values[i].numpy()), atol=1e-10)


@pytest.mark.parametrize("compiled", FORMS)
@pytest.mark.parametrize("d", [1, 2, 3])
def test_is_close_to_the_gaussian_where_points_are_dense(d: int, compiled: bool) -> None:
    side = {1: 200, 2: 40, 3: 14}[d]
    grid = torch.linspace(-4, 4, side)
    features = torch.tensor(list(itertools.product(grid.tolist(), repeat=d)))[None]
    values = torch.zeros(1, 1, features.shape[1])
    middle = int(features[0].norm(dim=1).argmin())
    values[0, 0, middle] = 1
    ours = build(features, compiled).filter(values)[0, 0]
    exact = torch.exp(-0.5 * (features[0] - features[0, middle]).square().sum(1))
    assert torch.corrcoef(torch.stack([ours, exact]))[0, 1] > 0.97
    # Weighted by 1 the responses sum up alike: the filter's gain is that of the Gaussian.
    assert 0.8 < (ours.sum() / exact.sum()) < 1.2


@pytest.mark.parametrize("compiled", FORMS)
def test_gradient(compiled: bool) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 12, 3, dtype=torch.float64)
    lattice = build(features, compiled)
    values = torch.randn(2, 2, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lattice.filter, (values,))


@pytest.mark.parametrize("compiled", FORMS)
def test_normalised_filter_is_symmetric_and_bounded(compiled: bool) -> None:
    torch.manual_seed(0)
    features = torch.rand(1, 50, 2, dtype=torch.float64) * 3
    matrix = build(features, compiled).normalize().filter(torch.eye(50, dtype=torch.float64)[None])[0]
    plain = build(features, compiled).filter(torch.eye(50, dtype=torch.float64)[None])[0]
    scale = plain.sum(0).rsqrt()  # rows of the identity come out as columns of the filter
    torch.testing.assert_close(matrix, scale[:, None] * plain * scale)


@numba
@settings(max_examples=25, deadline=None)
@given(
    d=st.integers(1, 5), count=st.integers(1, 40), channels=st.integers(0, 19), batch=st.integers(0, 3),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 50.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_both_forms_agree(d: int, count: int, channels: int, batch: int, spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(batch, count, d, generator=generator) * spread
    values = torch.rand(batch, channels, count, generator=generator)
    plain, fast = (build(features, form).filter(values) for form in (False, True))
    assert plain.shape == fast.shape == values.shape
    torch.testing.assert_close(plain, fast, atol=1e-4, rtol=1e-4)


def test_threads_change_only_the_last_digits() -> None:
    torch.manual_seed(0)
    features, values = torch.rand(1, 500, 5) * 4, torch.rand(1, 3, 500)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3, 16):
            torch.set_num_threads(threads)
            results.append(PermutohedralLattice(features).filter(values))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-5, rtol=1e-5)


def test_half_precision_keeps_its_type() -> None:
    torch.manual_seed(0)
    features, values = torch.rand(1, 30, 2), torch.rand(1, 3, 30)
    lattice = PermutohedralLattice(features)
    for dtype in (torch.float16, torch.bfloat16):
        result = lattice.filter(values.to(dtype))
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), lattice.filter(values), rtol=2e-2, atol=2e-2)


def test_errors() -> None:
    good = torch.rand(1, 4, 2)
    with pytest.raises(TagmaskError, match=r"\(B,N,d\)"):
        PermutohedralLattice(good[0])
    with pytest.raises(TagmaskError, match="NaN"):
        PermutohedralLattice(torch.full((1, 4, 2), torch.nan))
    with pytest.raises(TagmaskError, match="larger standard deviations"):
        PermutohedralLattice(torch.rand(1, 4, 5, dtype=torch.float64) * 1e12)
    with pytest.raises(TagmaskError, match=r"\(1,K,4\)"):
        PermutohedralLattice(good).filter(torch.rand(1, 2, 5))


def test_second_derivatives_through_the_filter() -> None:
    torch.manual_seed(0)
    lattice = PermutohedralLattice(torch.randn(2, 8, 2, dtype=torch.float64))
    values = torch.randn(2, 1, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda v: lattice.filter(v) * v, (values,))


def test_normalising_twice_is_normalising_once() -> None:
    features, values = torch.rand(1, 20, 2), torch.rand(1, 2, 20)
    with torch.inference_mode():
        lattice = PermutohedralLattice(features)
    once = lattice.normalize().filter(values)
    assert torch.equal(lattice.normalize().filter(values), once)


def test_working_memory_that_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 4000)
    small, large = module.scratch("test", (10, 100)), module.scratch("test", (10, 101))
    assert module.scratch("test", (10, 100)).ctypes.data == small.ctypes.data
    assert large.ctypes.data != small.ctypes.data and module._kept.test.nbytes == 4000


@pytest.mark.parametrize("compiled", FORMS)
def test_no_points_and_no_integers(compiled: bool) -> None:
    assert build(torch.zeros(1, 0, 2), compiled).normalize().filter(torch.zeros(1, 3, 0)).numel() == 0
    with pytest.raises(TagmaskError, match="floating-point"):
        build(torch.zeros(1, 4, 2), compiled).filter(torch.zeros(1, 3, 4, dtype=torch.long))
