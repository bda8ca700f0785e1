from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tagmask.errors import TagmaskError
from tagmask.losses import perplexity
from tests.cosa_loops import perplexity_loops


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 0.95), st.floats(0.1, 3.0), st.floats(0.3, 3.0), st.integers(0, 1000))
def test_equals_equation_4(xi: float, alpha: float, beta: float, seed: int) -> None:
    nu = torch.rand(3, 17, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    nu[0, :3] = torch.tensor([0.0, 1.0, xi])
    result = perplexity(nu, xi, alpha, beta)
    torch.testing.assert_close(result, perplexity_loops(nu, xi, alpha, beta), rtol=1e-9, atol=1e-12)
    tensor = perplexity(nu, torch.tensor(xi, dtype=torch.float64), alpha, beta)
    assert torch.equal(result, tensor), "a threshold may be a tensor"


def test_is_least_at_the_ends_and_infinite_at_the_threshold() -> None:
    nu = torch.tensor([0.0, 0.15, 0.29, 0.3, 0.31, 0.65, 1.0])
    result = perplexity(nu, 0.3)
    assert result[3].isinf() and result.argmax() == 3
    assert result[0].item() == result[-1].item() == pytest.approx(-math.log(0.8))
    assert (result[:3].diff() > 0).all() and (result[4:].diff() < 0).all()
    assert result[1].item() == pytest.approx(result[5].item(), rel=1e-5), "each side by its own width"


@pytest.mark.parametrize("xi", [0.0, 1.0])
def test_thresholds_at_the_ends_give_no_nan(xi: float) -> None:
    result = perplexity(torch.tensor([0.0, 0.5, 1.0]), xi)
    assert not result.isnan().any() and result[0 if xi == 0 else 2].isinf()


def test_above_1_alpha_counts_what_is_far_enough_as_sure() -> None:
    result = perplexity(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.8, 1.0]), 0.4, alpha=2.0)
    assert not result.isnan().any() and (result[:3] == 0).all() and result[3] > 0 and (result[4:] == 0).all()


def test_gradient() -> None:
    nu = torch.tensor([0.05, 0.2, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: perplexity(x, 0.3, 0.7, 1.5), (nu,))


def test_half_precision_is_computed_in_float32() -> None:
    nu = torch.rand(50).bfloat16()
    assert perplexity(nu, 0.4).dtype == torch.float32
    assert torch.equal(perplexity(nu, 0.4), perplexity(nu.float(), 0.4))


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.0), (-1.1, 1.0), (0.8, 0.0), (float("nan"), 1.0)])
def test_settings_out_of_range_are_refused(alpha: float, beta: float) -> None:
    with pytest.raises(TagmaskError, match="alpha and beta"):
        perplexity(torch.rand(2), 0.5, alpha, beta)
