"""``cosa``: labels, terms and thresholds against its equations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tagmask.methods.common.pseudo_label_assignment import (
    Assigned,
    batch_labels,
    cam_assignment,
    mean_of_views,
    photo_positions,
    without_doubt,
)
from tests.cosa_loops import assignment_loops, bilinear_loops
from tests.methods.contract import CLASSES
from tests.methods.cosa_parts import build, two_views


@pytest.mark.parametrize("size", [(3, 5), (7, 4), (12, 20)])
def test_labels_equal_equation_3(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    cams = torch.rand(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    trusted = torch.tensor([[False, True, True, False], [True, False, True, True]])
    large = cams if size == (3, 5) else bilinear_loops(cams, size)
    for xi, low in ((0.6, None), (0.6, 0.3), (0.45, 0.45)):
        for threshold in (xi, torch.tensor(xi, dtype=torch.float64)):
            found = cam_assignment(Assigned(cams, trusted, threshold), size, low)
            labels, confidence = assignment_loops(large, trusted, xi, low)
            assert torch.equal(found[0], labels) and (255 in labels) == (low == 0.3)
            torch.testing.assert_close(found[1], confidence, rtol=1e-12, atol=0)


def test_labels_at_the_threshold_and_without_tags() -> None:
    cams = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    labels, _ = cam_assignment(Assigned(cams, torch.ones(1, 3, dtype=torch.bool), 0.6), (2, 2))
    assert (labels == 2).all(), "a CAM equal to the threshold is foreground"
    none, zero = cam_assignment(Assigned(cams, torch.zeros(1, 3, dtype=torch.bool), 0.6), (6, 5))
    assert none.shape == (1, 6, 5) and not none.any() and not zero.any()


def test_views_are_turned_back_and_averaged() -> None:
    small, large = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 4, 4)
    mirrored = [torch.cat([x, x.flip(-1)]) for x in (small, large)]
    torch.testing.assert_close(mean_of_views(mirrored[1:], True), large)
    up = nn.functional.interpolate(small, size=(4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(mean_of_views(mirrored, True), (up + large) / 2)
    torch.testing.assert_close(mean_of_views([large, small], False), (up + large) / 2)


def test_padding_and_doubtful_tags_are_ignored() -> None:
    batch = two_views()  # the last four rows are padding
    batch.tags[0] = torch.tensor([1.0, 1.0, 0.0])
    trusted = batch.tags > 0
    trusted[0, 1] = False
    labels = torch.zeros(4, 64, 64, dtype=torch.long)
    labels[:, :8] = 1
    result = without_doubt(labels, batch, trusted)
    assert (result[:, 60:] == 255).all() and (result[:, :8] == 1).all()
    assert (result[0, 8:60] == 255).all() and (result[1:, 8:60] == 0).all()
    assert photo_positions(batch, (4, 4)).all() and not photo_positions(batch, (32, 32))[:, 30:].any()


def test_dynamic_threshold_gathers_batches_after_warm_up_only() -> None:
    method, batch = build(), two_views()
    method.losses(batch, 1)
    assert all(t.batches == 0 and t.value == pytest.approx(0.3) for t in method.thresholds.values())
    assert method.figures() == {}
    for _ in range(2):
        method.losses(batch, 2)
    assert all(t.batches == 2 for t in method.thresholds.values())
    expected = {f"threshold_{n}": float(t.value) for n, t in method.thresholds.items()}
    expected |= {f"threshold_{n}_held": float(t.held) for n, t in method.thresholds.items()}
    assert method.figures() == expected
    assert "thresholds.main.value" in method.state_dict() and "thresholds.aux.counts" in method.state_dict()
    fixed = build(threshold=0.4)
    assert len(fixed.thresholds) == 0
    fixed.losses(batch, 2)


@pytest.mark.parametrize(
    ("detach", "encoder", "classifier"),
    [("none", True, True), ("features", False, True), ("classifier", True, False)],
)
def test_what_the_segmentation_trains(detach: str, encoder: bool, classifier: bool) -> None:
    """Table 4a: the guidance of CAMs reaches features, the classifier's weights, or both; the same value each time."""
    method = build(detach=detach)
    term = method.losses(two_views(), 5).terms["s2c"]
    term.backward()
    assert term.item() == pytest.approx(build().losses(two_views(), 5).terms["s2c"].item(), rel=1e-5)
    assert any(p.grad is not None and p.grad.any() for p in method.encoder.parameters()) == encoder
    grad = method.classifier.conv.weight.grad
    assert (grad is not None and bool(grad.any())) == classifier


def test_gate_leaves_out_tags_that_are_not_in_the_crop() -> None:
    method, batch = build(gate=0.5, threshold=0.3), two_views()
    cams = torch.rand(4, CLASSES, 4, 4)
    scores = torch.full((4, CLASSES), 0.9)
    scores[0, 0] = 0.4
    assigned = method._assign("main", batch, cams, scores)
    assert not assigned.trusted[0].any() and torch.equal(assigned.trusted[1:], batch.tags[1:] > 0)
    labels, _ = batch_labels(assigned, batch, method.refiner, method.config.low)
    assert (labels[0] == 255).all() and (labels[1, :60] != 255).all()


def test_refinement_changes_the_labels_and_not_the_confidence() -> None:
    plain, refined, batch = build(threshold=0.3), build(threshold=0.3, refine="par"), two_views()
    assert plain.refiner is None and refined.refiner is not None
    assigned = Assigned(torch.rand(4, CLASSES, 4, 4), batch.tags > 0, 0.3)
    before, after = (batch_labels(assigned, batch, method.refiner, method.config.low) for method in (plain, refined))
    assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])
    assert (after[0][:, 60:] == 255).all()
