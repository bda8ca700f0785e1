from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.losses import balanced_cross_entropy, cam_to_seg
from tests.cosa_loops import cam_to_seg_loops


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 255])[torch.randint(0, 5, (2, 3, 5), generator=generator)]
    doubt = torch.rand(2, 3, 5, generator=generator, dtype=torch.float64) * 3 + 0.2
    doubt[0, 0, 0] = math.inf
    return logits, labels, doubt


@pytest.mark.parametrize("seed", range(3))
def test_equals_equation_5(seed: int) -> None:
    logits, labels, doubt = example(seed)
    assert cam_to_seg(logits, labels, doubt).item() == pytest.approx(cam_to_seg_loops(logits, labels, doubt), rel=1e-12)
    assert cam_to_seg(logits, labels).item() == pytest.approx(cam_to_seg_loops(logits, labels, None), rel=1e-12)
    assert cam_to_seg_loops(logits, labels, doubt) != pytest.approx(cam_to_seg_loops(logits, labels, None), rel=1e-3)


@pytest.mark.parametrize("weighted", [True, False])
def test_balanced_is_half_of_each_kind(weighted: bool) -> None:
    logits, labels, doubt = example()
    unsure = doubt if weighted else None
    background = cam_to_seg_loops(logits, labels.masked_fill(labels > 0, 255), unsure)
    foreground = cam_to_seg_loops(logits, labels.masked_fill(labels == 0, 255), unsure)
    balanced = cam_to_seg(logits, labels, unsure, balanced=True).item()
    assert balanced == pytest.approx((background + foreground) / 2, rel=1e-12)
    alone = cam_to_seg(logits, labels.masked_fill(labels > 0, 255), unsure, balanced=True).item()
    assert alone == pytest.approx(background / 2, rel=1e-12)
    if not weighted:
        assert balanced == pytest.approx(balanced_cross_entropy(logits, labels).item(), rel=1e-6)


def test_log_probabilities_give_the_same_value_and_gradient() -> None:
    logits, labels, doubt = example()
    gradients = []
    for log_probs in (False, True):
        leaf = logits.clone().requires_grad_()
        loss = cam_to_seg(leaf.log_softmax(1) if log_probs else leaf, labels, doubt, log_probs=log_probs)
        assert loss.item() == pytest.approx(cam_to_seg_loops(logits, labels, doubt), rel=1e-12)
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(*gradients)
    with pytest.raises(TagmaskError, match="log_softmax"):
        cam_to_seg(logits[..., :2].log_softmax(1), labels, log_probs=True)


def test_sure_pixels_weigh_more() -> None:
    logits = torch.tensor([[[[2.0, 2.0]], [[0.0, 0.0]]]])
    labels = torch.tensor([[[0, 1]]])  # the second one is wrong
    losses = [cam_to_seg(logits, labels, torch.tensor([[[1.0, p]]])).item() for p in (0.5, 1.0, 2.0)]
    assert losses[0] > losses[1] > losses[2]
    assert cam_to_seg(logits, labels).item() == pytest.approx(losses[1])


def test_scale_of_perplexity_does_not_matter() -> None:
    logits, labels, doubt = example()
    torch.testing.assert_close(cam_to_seg(logits, labels, doubt), cam_to_seg(logits, labels, 7 * doubt))


def test_gradient_reaches_the_logits_only() -> None:
    logits, labels, doubt = example()
    logits.requires_grad_()
    doubt.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cam_to_seg(x, labels, doubt.detach()), (logits,))
    cam_to_seg(logits, labels, doubt).backward()
    assert doubt.grad is None and logits.grad is not None
    assert logits.grad[0, :, 0, 0].abs().sum() == 0, "infinite perplexity"
    assert not logits.grad.permute(0, 2, 3, 1)[labels == 255].any()


@pytest.mark.parametrize("nothing", ["ignored", "infinite"])
def test_nothing_to_learn_from_is_zero(nothing: str) -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    labels = torch.full((1, 2, 2), 255 if nothing == "ignored" else 1)
    loss = cam_to_seg(logits, labels, torch.full((1, 2, 2), math.inf))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_a_perplexity_of_zero_is_finite() -> None:
    assert cam_to_seg(torch.randn(1, 3, 2, 2), torch.ones(1, 2, 2).long(), torch.zeros(1, 2, 2)).isfinite()


def test_logits_are_resized_to_the_labels() -> None:
    logits, labels, doubt = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 8, 8)), torch.rand(1, 8, 8) + 0.1
    large = F.interpolate(logits, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(cam_to_seg(logits, labels, doubt), cam_to_seg(large, labels, doubt))
    half = cam_to_seg(logits.bfloat16(), labels.byte(), doubt)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, cam_to_seg(logits.bfloat16().float(), labels, doubt))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TagmaskError, match="logits"):
        cam_to_seg(torch.zeros(2, 3, 4, 4), torch.zeros(1, 4, 4).long())
    with pytest.raises(TagmaskError, match="perplexity"):
        cam_to_seg(torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8).long(), torch.ones(1, 4, 4))
