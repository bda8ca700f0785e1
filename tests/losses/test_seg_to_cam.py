from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.losses import seg_to_cam, segmentation_labels
from tests.cosa_loops import seg_to_cam_loops, segmentation_label_loops

TAGS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])


def example(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cams = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    return cams, torch.randn(2, 4, 4, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.01, 0.5, 3.0])
def test_labels_equal_equation_7(temperature: float) -> None:
    _, seg = example()
    result = segmentation_labels(seg, TAGS, temperature)
    torch.testing.assert_close(result, segmentation_label_loops(seg, TAGS, temperature), atol=1e-12, rtol=0)
    assert (result[:, 1:][TAGS == 0] == 0).all() and (result[1, 0] == 1).all()


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_loss_equals_equation_8(temperature: float, rectify: bool) -> None:
    cams, seg = example()
    valid = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    target = segmentation_label_loops(seg, TAGS, temperature)
    for mask in (None, valid):
        result = seg_to_cam(cams, seg, TAGS, temperature, mask, rectify)
        assert result.item() == pytest.approx(seg_to_cam_loops(cams, target, mask, rectify), rel=1e-10)


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
    with pytest.raises(TagmaskError, match="CAMs"):
        seg_to_cam(cams[:, 1:], seg, TAGS)
    with pytest.raises(TagmaskError, match="temperature"):
        seg_to_cam(cams, seg, TAGS, 0.0)
    with pytest.raises(TagmaskError, match="valid"):
        seg_to_cam(cams, seg, TAGS, valid=torch.ones(2, 5, 4, dtype=torch.bool))
