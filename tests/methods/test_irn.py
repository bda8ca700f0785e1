"""``irn``: the contract, its loss and its walk against loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tagmask.errors import TrainingError
from tagmask.methods import build_method
from tagmask.methods.irn import IRN
from tests.methods.contract import CLASSES, SIZE, MethodContract, squares, tiny
from tests.methods.pair_loops import loop_loss, loop_pairs

SETTINGS = {"name": "irn", "radius": 4, "walk_radius": 3, "walk_steps": 8}
PARTS = {"encoder", "levels", "join"}


class TestIRN(MethodContract):
    settings = SETTINGS
    terms = {"fg": PARTS, "bg": PARTS, "neg": PARTS}


def build(**changes: object) -> IRN:
    torch.manual_seed(0)
    method = build_method(tiny(SETTINGS | changes), CLASSES)
    assert isinstance(method, IRN)
    return method.eval()


def test_the_boundary_branch_reads_five_levels_as_released() -> None:
    """The first level after the max-pool; all are resized to stride 4, then the ReLU, then their weighted sum."""
    config = tiny(SETTINGS, "resnet18")
    config.encoder.dilate = False
    method = build_method(config, CLASSES).eval()
    assert isinstance(method, IRN) and method.encoder.strides == [2, 4, 8, 16, 16]
    images = torch.rand(1, 3, 50, 71)
    body: Any = method.encoder.body
    with torch.no_grad():
        x = body.maxpool(body.act1(body.bn1(body.conv1((images - method.encoder.mean) / method.encoder.std))))
        total, weights = torch.zeros(1, 13, 18), method.join.weight[0, :, 0, 0].split(32)
        for i, (level, weight) in enumerate(zip(method.levels, weights, strict=True)):
            x = getattr(body, f"layer{i}")(x) if i else x
            conv, norm = level
            edges = torch.nn.functional.interpolate(norm(conv(x)), (13, 18), mode="bilinear").clamp(min=0)
            total += (edges * weight[:, None, None]).sum(1)
        expected = total + method.join.bias
        assert torch.allclose(method.boundary_logits(images), expected, atol=1e-5)


def loop_affinity(boundary: torch.Tensor, a: int, b: int) -> float:
    """1 − the strongest boundary on the line between two positions (those less than 1 away from it)."""
    width = boundary.shape[1]
    (y0, x0), (y1, x1) = divmod(a, width), divmod(b, width)
    length = ((y1 - y0) ** 2 + (x1 - x0) ** 2) ** 0.5
    strongest = 0.0
    for y in range(min(y0, y1), max(y0, y1) + 1):
        for x in range(min(x0, x1), max(x0, x1) + 1):
            if abs((y1 - y0) * (x - x0) - (x1 - x0) * (y - y0)) / length < 1:
                strongest = max(strongest, float(boundary[y, x]))
    return 1 - strongest


def test_losses_equal_the_loop() -> None:
    method, batch = build(stride=8), squares(masks=True)
    boundary = method.boundary_logits(batch.images).sigmoid().detach()
    assert boundary.shape == (4, 8, 8) and batch.masks is not None
    affinities, kinds = [], []
    for image, mask in zip(boundary, batch.masks):
        for pair, kind in loop_pairs(mask[::8, ::8], 4).items():
            affinities.append(loop_affinity(image.double(), *sorted(pair)))
            kinds.append(kind)
    expected = loop_loss(torch.tensor(affinities, dtype=torch.float64), torch.tensor(kinds))
    losses = method.losses(batch, 0)
    for name, value in expected.items():
        assert losses.terms[name].item() == pytest.approx(value, rel=1e-5), name


def test_the_walk_equals_a_dense_matrix() -> None:
    method = build(stride=8, walk_steps=3, beta=2, threshold=0.4)
    images, cams = torch.rand(1, 3, SIZE, SIZE), torch.rand(2, SIZE, SIZE)
    logits = method.boundary_logits(images)[0].detach()
    mirrored = method.boundary_logits(images.flip(-1))[0].detach().flip(-1)
    boundary = ((logits + mirrored) / 2).sigmoid().double()
    assert torch.allclose(method.boundary(images)[0].double(), boundary, atol=1e-6)
    matrix = torch.eye(64, dtype=torch.float64)
    for pair in loop_pairs(torch.zeros(8, 8), 3):
        a, b = sorted(pair)
        matrix[a, b] = matrix[b, a] = loop_affinity(boundary, a, b) ** 2
    cells = cams.double().view(2, 8, 8, 8, 8).mean((2, 4)) * (1 - boundary)
    walked = (cells.flatten(1) @ torch.linalg.matrix_power(matrix / matrix.sum(0), 3)).view(1, 2, 8, 8)
    full = torch.nn.functional.interpolate(walked, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]
    scores = method.propagate(images, cams)
    assert torch.allclose(scores[1:].double(), full / full.max(), atol=1e-5)
    assert (scores[0] == torch.tensor(0.4)).all() and scores[1:].max() == 1


def test_a_boundary_keeps_a_class_on_its_side(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(stride=8, walk_steps=200, threshold=0.2)
    wall = torch.zeros(1, 8, 8)
    wall[:, :, 4] = 1
    monkeypatch.setattr(method, "boundary", lambda images: wall)
    cams = torch.zeros(1, SIZE, SIZE)
    cams[:, 24:40, 8:16] = 1
    scores = method.propagate(torch.rand(1, 3, SIZE, SIZE), cams)
    labels = scores.argmax(0)
    assert (labels[:, :28] == 1).all(), "it fills its side of the wall"
    assert (labels[:, 40:] == 0).all(), "and nothing beyond"


def test_maps_without_activation_stay_background() -> None:
    scores = build().propagate(torch.rand(1, 3, 50, 71), torch.zeros(2, 50, 71))
    assert scores.shape == (3, 50, 71) and torch.isfinite(scores).all() and (scores.argmax(0) == 0).all()


def test_it_asks_for_labels_and_has_neither_cams_nor_masks() -> None:
    method = build()
    assert not method.has_cams and not method.has_segmenter and method.labels_from_tags
    with pytest.raises(TrainingError, match=r"data\.train_masks\b"):
        method.losses(squares(), 0)
