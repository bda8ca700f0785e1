from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.losses import seg_to_cam, segmentation_labels

TAGS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])


def example(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cams = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    return cams, torch.randn(2, 4, 4, 5, generator=generator, dtype=torch.float64)


def loop_labels(scores: list[float], tags: list[float], temperature: float) -> list[float]:
    """Equation 7 at one position."""
    kept = [k == 0 or tags[k - 1] != 0 for k in range(len(scores))]
    top = max(s for s, keep in zip(scores, kept) if keep)
    exponentials = [math.exp((s - top) / temperature) if keep else 0.0 for s, keep in zip(scores, kept)]
    return [e / sum(exponentials) for e in exponentials]


def loop(cams: Tensor, seg: Tensor, temperature: float, valid: Tensor | None, rectify: bool = False) -> float:
    """Equation 8."""
    total, positions = 0.0, 0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                if valid is not None and not valid[b, y, x]:
                    continue
                positions += 1
                target = loop_labels([float(seg[b, k, y, x]) for k in range(4)], TAGS[b].tolist(), temperature)
                for c in range(3):
                    m = float(cams[b, c, y, x])
                    p = 1 / (1 + math.exp(-max(m, 0.0) if rectify else -m))
                    total -= target[c + 1] * math.log(p) + (1 - target[c + 1]) * math.log(1 - p)
    return total / (3 * positions)


@pytest.mark.parametrize("temperature", [0.01, 0.5, 3.0])
def test_labels_equal_equation_7(temperature: float) -> None:
    _, seg = example()
    result = segmentation_labels(seg, TAGS, temperature)
    for b in range(2):
        for y in range(4):
            for x in range(5):
                scores = [float(seg[b, k, y, x]) for k in range(4)]
                expected = loop_labels(scores, TAGS[b].tolist(), temperature)
                assert result[b, :, y, x].tolist() == pytest.approx(expected, abs=1e-12)
    assert (result[:, 1:][TAGS == 0] == 0).all() and (result[1, 0] == 1).all()


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_loss_equals_equation_8(temperature: float, rectify: bool) -> None:
    cams, seg = example()
    valid = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    for mask in (None, valid):
        result = seg_to_cam(cams, seg, TAGS, temperature, mask, rectify)
        assert result.item() == pytest.approx(loop(cams, seg, temperature, mask, rectify), rel=1e-10)


def test_gradient_reaches_the_cams_only() -> None:
    cams, seg = example()
    cams.requires_grad_()
    seg.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: seg_to_cam(x, seg.detach(), TAGS, 0.5), (cams,))
    seg_to_cam(cams, seg, TAGS).backward()
    assert seg.grad is None and cams.grad is not None and cams.grad.any()


def test_what_is_not_valid_does_not_count() -> None:
    cams, seg = example()
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    valid[:, 2:] = False
    changed = cams.clone()
    changed[:, :, 2:] = 100
    torch.testing.assert_close(seg_to_cam(cams, seg, TAGS, 0.1, valid), seg_to_cam(changed, seg, TAGS, 0.1, valid))
    empty = cams.requires_grad_()
    loss = seg_to_cam(empty, seg, TAGS, 0.1, torch.zeros_like(valid))
    loss.backward()
    assert loss.item() == 0 and empty.grad is not None and not empty.grad.any()


def test_labels_are_resized_not_logits() -> None:
    cams, seg = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 8, 8)
    labels = F.interpolate(segmentation_labels(seg, TAGS)[:, 1:], size=(4, 4), mode="bilinear", align_corners=False)
    expected = F.binary_cross_entropy_with_logits(cams, labels)
    torch.testing.assert_close(seg_to_cam(cams, seg, TAGS), expected)


def test_half_precision_is_computed_in_float32() -> None:
    cams, seg = torch.randn(2, 3, 4, 4).bfloat16(), torch.randn(2, 4, 4, 4).bfloat16()
    assert segmentation_labels(seg, TAGS).dtype == torch.float32
    result = seg_to_cam(cams, seg, TAGS)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, seg_to_cam(cams.float(), seg.float(), TAGS))


def test_wrong_input_is_refused() -> None:
    cams, seg = example()
    with pytest.raises(TagmaskError, match="with background"):
        seg_to_cam(cams, seg[:, 1:], TAGS)
    with pytest.raises(TagmaskError, match="CAMs are"):
        seg_to_cam(cams[:, 1:], seg, TAGS)
    with pytest.raises(TagmaskError, match="temperature"):
        seg_to_cam(cams, seg, TAGS, 0.0)
    with pytest.raises(TagmaskError, match="valid is"):
        seg_to_cam(cams, seg, TAGS, valid=torch.ones(2, 5, 4, dtype=torch.bool))
