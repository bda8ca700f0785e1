from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tagmask.errors import TagmaskError
from tagmask.losses import balanced_cross_entropy


def loops(logits: torch.Tensor, labels: torch.Tensor) -> float:
    halves: dict[bool, list[float]] = {False: [], True: []}
    for b, image in enumerate(labels.tolist()):
        for i, row in enumerate(image):
            for j, label in enumerate(row):
                if label != 255:
                    values = logits[b, :, i, j].double().tolist()
                    halves[label > 0].append(math.log(sum(math.exp(v) for v in values)) - values[label])
    return sum(0.5 * sum(half) / len(half) for half in halves.values() if half)


LABELS = {
    "both": [0, 0, 0, 1, 2, 255, 2, 0, 255],
    "background": [0, 0, 255] * 3,
    "foreground": [2, 1, 255] * 3,
    "ignored": [255] * 9,
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_equals_loops(kind: str, dtype: torch.dtype) -> None:
    labels = torch.tensor(LABELS[kind]).view(1, 3, 3).repeat(2, 1, 1).to(dtype)
    logits = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = balanced_cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(loops(logits.detach(), labels), rel=1e-5, abs=1e-7)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert (gradient.abs().sum(1) > 0).equal(labels != 255)


def test_both_halves_weigh_the_same() -> None:
    labels = torch.zeros(1, 10, 10, dtype=torch.long)
    labels[0, 0, 0] = 1
    logits = torch.zeros(1, 2, 10, 10)
    logits[0, 0] = 5.0  # sure of background everywhere: the single foreground pixel is half of the loss
    expected = 0.5 * math.log(1 + math.exp(-5)) + 0.5 * math.log(1 + math.exp(5))
    assert balanced_cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_resizes_logits() -> None:
    logits, labels = torch.randn(2, 4, 3, 5), torch.randint(0, 4, (2, 12, 10))
    resized = F.interpolate(logits, size=(12, 10), mode="bilinear", align_corners=False)
    torch.testing.assert_close(balanced_cross_entropy(logits, labels), balanced_cross_entropy(resized, labels))


@pytest.mark.parametrize("kind", LABELS)
def test_gradcheck(kind: str) -> None:
    labels = torch.tensor(LABELS[kind]).view(1, 3, 3)
    logits = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: balanced_cross_entropy(x, labels), (logits,))


def test_half_precision_is_summed_in_float32() -> None:
    logits, labels = torch.randn(1, 3, 64, 64).bfloat16(), torch.randint(0, 3, (1, 64, 64))
    loss = balanced_cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, balanced_cross_entropy(logits.float(), labels))


def test_errors() -> None:
    with pytest.raises(TagmaskError, match=r"labels \(B,H,W\)"):
        balanced_cross_entropy(torch.zeros(2, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
    with pytest.raises(TagmaskError, match=r"\(2, 1, 4, 4\)"):
        balanced_cross_entropy(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.long))
