from __future__ import annotations

import pytest
import torch

from tagmask.errors import TagmaskError
from tagmask.losses import equivariance


def test_equals_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64).unbind(0)
    total = 0.0
    for i in range(2):
        for c in range(3):
            for y in range(4):
                for x in range(5):
                    total += abs(float(a[i, c, y, x]) - float(b[i, c, y, x]))
    assert equivariance(a, b).item() == pytest.approx(total / (2 * 3 * 4 * 5), abs=1e-12)


def test_gradient_reaches_both_sides() -> None:
    a, b = (torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(equivariance, (a, b))
    equivariance(a, b).backward()
    assert a.grad is not None and b.grad is not None
    torch.testing.assert_close(a.grad, -b.grad)
    assert (a.grad.abs() == 1 / 18).all()


def test_half_precision_is_summed_in_float32() -> None:
    a, b = torch.randn(1, 2, 32, 32).bfloat16(), torch.randn(1, 2, 32, 32).bfloat16()
    assert equivariance(a, b).dtype == torch.float32
    torch.testing.assert_close(equivariance(a, b), equivariance(a.float(), b.float()))


def test_different_shapes_are_refused_not_broadcast() -> None:
    with pytest.raises(TagmaskError, match="Equivariance"):
        equivariance(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))
    with pytest.raises(TagmaskError, match="empty"):
        equivariance(torch.zeros(0, 3, 4, 4), torch.zeros(0, 3, 4, 4))
