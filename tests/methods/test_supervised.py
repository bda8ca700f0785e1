"""``supervised``: the contract, and what it does without labels."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tagmask.errors import TrainingError
from tagmask.methods import build_method
from tests.methods.contract import CLASSES, MethodContract, squares, tiny

SETTINGS = {"name": "supervised", "head_options": {"hidden": 16}}


class TestSupervised(MethodContract):
    settings = SETTINGS
    terms = {"seg": {"encoder", "decoder"}}


def test_without_masks_it_says_so() -> None:
    with pytest.raises(TrainingError, match=r"data\.masks\b"):
        build_method(tiny(SETTINGS), CLASSES).losses(squares(), 0)


@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_is_a_mean_of_pixels_or_of_halves(balanced: bool) -> None:
    batch = squares(masks=True)
    assert batch.masks is not None
    batch.masks[0, :5] = 255
    torch.manual_seed(0)
    method = build_method(tiny(SETTINGS | {"balanced": balanced}), CLASSES)
    torch.nn.init.constant_(method.decoder.out.bias[:1], 2.0)  # type: ignore[union-attr,index]
    found = method.losses(batch, 0).total.item()
    logs = method.segment(batch.images).detach().double().log_softmax(1)  # type: ignore[operator]
    costs: dict[bool, list[float]] = {True: [], False: []}
    for b, y, x in (batch.masks != 255).nonzero().tolist():
        label = int(batch.masks[b, y, x])
        costs[label == 0].append(-float(logs[b, label, y, x]))
    means = [sum(one) / len(one) for one in costs.values()]
    whole = sum(map(sum, costs.values())) / sum(map(len, costs.values()))
    assert found == pytest.approx(sum(means) / 2 if balanced else whole, rel=1e-5)
    assert abs(sum(means) / 2 - whole) > 1e-3


def test_the_loss_may_be_taken_on_a_coarser_grid() -> None:
    batch = squares(masks=True)
    assert batch.masks is not None
    torch.manual_seed(0)
    method = build_method(tiny(SETTINGS | {"loss_stride": 2}), CLASSES)
    logits = method.decoder(method.encoder(batch.images)).detach()  # type: ignore[operator]
    height, width = (side // 2 for side in batch.masks.shape[-2:])
    logs = F.interpolate(logits, size=(height, width), mode="bilinear").double().log_softmax(1)
    costs = []
    for b in range(len(batch.masks)):
        for y in range(height):
            for x in range(width):
                label = int(batch.masks[b, 2 * y + 1, 2 * x + 1])  # the pixel at the cell's centre
                if label != 255:
                    costs.append(-float(logs[b, label, y, x]))
    assert method.losses(batch, 0).total.item() == pytest.approx(sum(costs) / len(costs), rel=1e-5)


@pytest.mark.parametrize("balanced", [False, True])
def test_a_batch_of_ignored_pixels_costs_nothing(balanced: bool) -> None:
    batch = squares(masks=True)
    assert batch.masks is not None
    batch.masks.fill_(255)
    method = build_method(tiny(SETTINGS | {"balanced": balanced}), CLASSES)
    losses = method.losses(batch, 0)
    losses.total.backward()
    assert losses.total.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
