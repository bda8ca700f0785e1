"""Pairs that teach affinities, and their loss, against loops from the equations."""

from __future__ import annotations

import math

import pytest
import torch

from tagmask.errors import TagmaskError
from tagmask.losses import pair_affinity_loss, pair_labels
from tagmask.losses.pair_affinity import weighted
from tagmask.refine import radius_edges
from tagmask.types import IGNORE
from tests.methods.pair_loops import loop_loss, loop_pairs

SEED = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("radius", [2, 3, 5])
def test_every_pair_is_there_once_and_of_its_kind(radius: float) -> None:
    labels = torch.tensor([0, 1, 2, IGNORE])[torch.randint(0, 4, (2, 6, 7), generator=SEED)]
    edges, _ = radius_edges(6, 7, radius)
    kinds = pair_labels(labels, edges)
    for one, found in zip(labels, kinds):
        pairs = [frozenset(pair) for pair in edges.t().tolist()]
        assert len(set(pairs)) == len(pairs)
        assert dict(zip(pairs, found.tolist())) == loop_pairs(one, radius)
    assert torch.equal(pair_labels(labels.to(torch.uint8), edges), kinds)


def test_the_highest_class_is_no_background() -> None:
    edges = torch.tensor([[0, 1, 2], [1, 2, 3]])
    assert pair_labels(torch.tensor([[[254, 254, 0, 0]]]), edges).tolist() == [[2, 0, 1]]


def test_loss_equals_the_loop() -> None:
    affinity = torch.rand(3, 40, generator=SEED, dtype=torch.float64)
    kinds = torch.tensor([0, 1, 2, IGNORE], dtype=torch.uint8)[torch.randint(0, 4, (3, 40), generator=SEED)]
    found = pair_affinity_loss(affinity, kinds)
    expected = loop_loss(affinity, kinds)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-12)
    total = expected["fg"] / 4 + expected["bg"] / 4 + expected["neg"] / 2
    assert weighted(found).item() == pytest.approx(total, rel=1e-12)


def test_gradient() -> None:
    affinity = (0.1 + 0.8 * torch.rand(20, generator=SEED, dtype=torch.float64)).requires_grad_()
    kinds = torch.tensor([0, 1, 2, IGNORE, 0] * 4, dtype=torch.uint8)
    assert torch.autograd.gradcheck(lambda a: weighted(pair_affinity_loss(a, kinds)), affinity)


def test_certain_affinities_and_missing_kinds_are_finite() -> None:
    affinity = torch.tensor([0.0, 1.0, 0.5], requires_grad=True)
    costs = pair_affinity_loss(affinity, torch.tensor([2, 0, IGNORE], dtype=torch.uint8))
    assert costs["bg"].item() == 0 and costs["fg"].item() == pytest.approx(-math.log(1e-5), rel=1e-4)
    weighted(costs).backward()
    assert torch.isfinite(affinity.grad).all() and affinity.grad[2] == 0  # type: ignore[arg-type, index]
    none = pair_affinity_loss(affinity, torch.full((3,), IGNORE, dtype=torch.uint8))
    assert all(value.item() == 0 and value.requires_grad for value in none.values())


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TagmaskError, match="do not fit"):
        pair_affinity_loss(torch.rand(3), torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(TagmaskError, match=r"\(B,h,w\)"):
        pair_labels(torch.zeros(4, 4), torch.zeros(2, 1, dtype=torch.long))
