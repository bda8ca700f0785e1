"""``affinity_net``: the contract, its loss and its walk against loops."""

from __future__ import annotations

import math

import pytest
import torch

from tagmask.errors import TrainingError
from tagmask.methods import build_method
from tagmask.methods.affinity_net import AffinityNet
from tests.methods.contract import CLASSES, SIZE, MethodContract, squares, tiny
from tests.methods.pair_loops import loop_loss, loop_pairs

SETTINGS = {"name": "affinity_net", "radius": 3, "walk_radius": 3, "walk_steps": 8}
PARTS = {"encoder", "levels", "join"}


class TestAffinityNet(MethodContract):
    settings = SETTINGS
    terms = {"fg": PARTS, "bg": PARTS, "neg": PARTS}


def build(**changes: object) -> AffinityNet:
    torch.manual_seed(0)
    method = build_method(tiny(SETTINGS | changes), CLASSES)
    assert isinstance(method, AffinityNet)
    return method.eval()


def loop_affinity(features: torch.Tensor, a: int, b: int, reduction: str) -> float:
    """Equation 3 on one pair of flat positions of (D,h,w)."""
    vectors = features.double().flatten(1)
    distance = sum(abs(p - q) for p, q in zip(vectors[:, a].tolist(), vectors[:, b].tolist()))
    return math.exp(-(distance / len(features) if reduction == "mean" else distance))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_equal_the_loop(reduction: str) -> None:
    method, batch = build(reduction=reduction, stride=16), squares(masks=True)
    features = method.affinity_features(batch.images).detach()
    assert features.shape == (4, 448, 4, 4), "64 + 128 + 256 channels, a position for 16 pixels"
    assert batch.masks is not None
    affinities, kinds = [], []
    for image, mask in zip(features, batch.masks):
        for pair, kind in loop_pairs(mask[::16, ::16], 3).items():
            affinities.append(loop_affinity(image, *sorted(pair), reduction))
            kinds.append(kind)
    expected = loop_loss(torch.tensor(affinities, dtype=torch.float64), torch.tensor(kinds))
    losses = method.losses(batch, 0)
    for name, value in expected.items():
        assert losses.terms[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name
    total = expected["fg"] / 4 + expected["bg"] / 4 + expected["neg"] / 2
    assert losses.total.item() == pytest.approx(total, rel=1e-4)


def test_the_walk_equals_a_dense_matrix() -> None:
    method = build(stride=16, walk_steps=3, beta=2, background_power=4)
    images, cams = torch.rand(1, 3, SIZE, SIZE), torch.rand(2, SIZE, SIZE)
    features = method.affinity_features(images)[0].detach()
    matrix = torch.eye(16, dtype=torch.float64)
    for pair in loop_pairs(torch.zeros(4, 4), 3):
        a, b = sorted(pair)
        matrix[a, b] = matrix[b, a] = loop_affinity(features, a, b, "mean") ** 2
    transition = matrix / matrix.sum(0)
    maps = torch.cat([(1 - cams.amax(0, keepdim=True)) ** 4, cams]).double()
    cells = maps.view(3, 4, 16, 4, 16).mean((2, 4)).flatten(1)
    walked = (cells @ torch.linalg.matrix_power(transition, 3)).view(1, 3, 4, 4)
    expected = torch.nn.functional.interpolate(walked, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(method.propagate(images, cams).double(), expected, atol=1e-5)


def test_the_grid_covers_images_of_any_size() -> None:
    method = build()
    scores = method.propagate(torch.rand(1, 3, 50, 71), torch.rand(1, 50, 71))
    assert scores.shape == (2, 50, 71) and torch.isfinite(scores).all()


def test_it_asks_for_labels_and_has_neither_cams_nor_masks() -> None:
    method = build()
    assert not method.has_cams and not method.has_segmenter and method.labels_from_tags
    with pytest.raises(TrainingError, match=r"data\.train_masks\b"):
        method.losses(squares(), 0)
