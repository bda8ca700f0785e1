"""``supervised``: the contract, and what it does without labels."""

from __future__ import annotations

import pytest
import torch

from tagmask.errors import TrainingError
from tagmask.methods import build_method
from tests.methods.contract import CLASSES, MethodContract, squares, tiny

SETTINGS = {"name": "supervised", "head_options": {"hidden": 16}}


class TestSupervised(MethodContract):
    settings = SETTINGS
    terms = {"seg": {"encoder", "decoder"}}


def test_without_masks_it_says_so() -> None:
    with pytest.raises(TrainingError, match="data.masks"):
        build_method(tiny(SETTINGS), CLASSES).losses(squares(), 0)


def test_a_batch_of_ignored_pixels_costs_nothing() -> None:
    batch = squares(masks=True)
    assert batch.masks is not None
    batch.masks.fill_(255)
    method = build_method(tiny(SETTINGS), CLASSES)
    losses = method.losses(batch, 0)
    losses.total.backward()
    assert losses.total.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
