"""``cam_correspondence`` against loops over pairs from equation 11, and what a correspondence loss must do."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

from tagmask import tensors
from tagmask.errors import TagmaskError
from tagmask.losses import cam_correspondence

MODULE = sys.modules["tagmask.losses.cam_correspondence"]  # its name in the package is the function


def similarity(a: list[float], b: list[float], divergence: str) -> float:
    if divergence == "cosine":
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return abs(dot / norms) if norms else 0.0

    def softmax(x: list[float]) -> list[float]:
        exps = [math.exp(v - max(x)) for v in x]
        return [e / sum(exps) for e in exps]

    p, q = softmax(a), softmax(b)
    js = 0.0
    for x, y in zip(p, q, strict=True):
        m = (x + y) / 2
        js += 0.5 * x * math.log(x / m) + 0.5 * y * math.log(y / m)
    return 1 - js / math.log(2)


def loops(cams: Tensor, labels: Tensor, divergence: str) -> float:
    total = 0.0
    for view, label in zip(cams.double().flatten(2).mT.tolist(), labels.flatten(1).tolist(), strict=True):
        positive, negative = [], []
        for i in range(len(label)):
            for j in range(i + 1, len(label)):
                if 255 in (label[i], label[j]):
                    continue
                s = similarity(view[i], view[j], divergence)
                if label[i] == label[j]:
                    positive.append(1 - s)
                else:
                    negative.append(s)
        total += sum(positive) / max(1, len(positive)) + sum(negative) / max(1, len(negative))
    return total / len(cams)


def gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


def draw(seed: int = 0, views: int = 3, classes: int = 4, side: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cams = 2 * torch.randn(views, classes, side, side + 1, generator=generator)
    choices = torch.tensor([0, 1, 2, 255])
    labels = choices[torch.randint(0, 4, (views, side, side + 1), generator=generator)]
    return cams, labels


@pytest.mark.parametrize("divergence", ["js", "cosine"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_loops(divergence: str, seed: int) -> None:
    cams, labels = draw(seed)
    labels[0] = 1  # a view without negative pairs
    labels[1] = 255  # and one without pairs
    result = cam_correspondence(cams.double(), labels, divergence)  # type: ignore[arg-type]
    assert result.item() == pytest.approx(loops(cams, labels, divergence), abs=1e-10)
    half = cam_correspondence(cams, labels.to(torch.uint8), divergence)  # type: ignore[arg-type]
    torch.testing.assert_close(half, result.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("divergence", ["js", "cosine"])
def test_gradient(divergence: str) -> None:
    cams, labels = draw(2, views=2, classes=3, side=2)
    cams = cams.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cam_correspondence(x, labels, divergence), cams)  # type: ignore[arg-type]


@pytest.mark.parametrize("divergence", ["js", "cosine"])
def test_strips_change_nothing(divergence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cams, labels = draw(3)
    results = []
    for budget in (2**18, 50, 1):
        monkeypatch.setattr(tensors, "CPU_VALUES", budget)
        x = cams.double().requires_grad_()
        value = cam_correspondence(x, labels, divergence)  # type: ignore[arg-type]
        value.backward()
        results.append((value.detach(), x.grad))
    for value, grad in results[1:]:
        torch.testing.assert_close(value, results[0][0])
        torch.testing.assert_close(grad, results[0][1])


@pytest.mark.parametrize("divergence", ["js", "cosine"])
def test_identical_activations_in_positive_pairs_cost_nothing(divergence: str) -> None:
    """The reading of equation 11 in which D is a similarity; as printed, with a divergence, they would cost 1."""
    cams = torch.tensor([3.0, -1.0, 0.5]).view(1, 3, 1, 1).expand(1, 3, 3, 3)
    same = cam_correspondence(cams, torch.ones(1, 3, 3, dtype=torch.long), divergence)  # type: ignore[arg-type]
    assert same.item() == pytest.approx(0, abs=1e-6)
    different = torch.arange(9).view(1, 3, 3)
    assert cam_correspondence(cams, different, divergence).item() == pytest.approx(1, abs=1e-6)  # type: ignore[arg-type]


def test_a_step_down_the_gradient_brings_pairs_together_and_apart() -> None:
    cams, labels = draw(4)
    x = cams.clone().requires_grad_()
    before = cam_correspondence(x, labels)
    before.backward()
    after = cam_correspondence(cams - 0.5 * gradient(x) / gradient(x).norm(), labels)
    assert after < before


def test_ignored_positions_have_no_gradient_and_no_say() -> None:
    cams, labels = draw(5)
    x = cams.clone().requires_grad_()
    value = cam_correspondence(x, labels)
    value.backward()
    ignored = (labels == 255)[:, None].expand_as(cams)
    assert ignored.any() and gradient(x)[ignored].abs().max() == 0 and gradient(x)[~ignored].abs().max() > 0
    changed = torch.where(ignored, cams + 5, cams)
    torch.testing.assert_close(cam_correspondence(changed, labels), value.detach())


def test_extreme_and_zero_activations_stay_finite() -> None:
    labels = torch.tensor([[[1, 1, 2, 2]]])
    steep = torch.tensor([1e4, -1e4, 0.0]).view(1, 3, 1, 1) * torch.tensor([1.0, 0.0, -1.0, 1.0])
    for values in (torch.zeros(1, 3, 1, 4), steep):
        for divergence in ("js", "cosine"):
            x = values.clone().requires_grad_()
            value = cam_correspondence(x, labels, divergence)  # type: ignore[arg-type]
            value.backward()
            assert value.isfinite() and gradient(x).isfinite().all()


def test_half_precision_and_autocast_count_in_float32() -> None:
    cams, labels = draw(6)
    exact = cam_correspondence(cams.bfloat16().float(), labels)
    assert torch.equal(cam_correspondence(cams.bfloat16(), labels), exact) and exact.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cam_correspondence(cams.bfloat16(), labels), exact)


def test_strips_cover_every_row_once() -> None:
    x = torch.zeros(2, 7, 3)
    assert len(list(MODULE._strips(x, 2**17))) > 2
    rows = [(b, i) for b, strip in MODULE._strips(x, 2**17) for i in range(7)[strip]]
    assert rows == [(b, i) for b in range(2) for i in range(7)]


@pytest.mark.parametrize(
    ("cams", "labels", "divergence"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 5, dtype=torch.long), "js"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), "js"),
        (torch.zeros(3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.long), "js"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long), "kl"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long), "js"),
    ],
)
def test_what_does_not_fit_is_refused(cams: Tensor, labels: Tensor, divergence: str) -> None:
    with pytest.raises(TagmaskError, match="CAM correspondence"):
        cam_correspondence(cams, labels, divergence)  # type: ignore[arg-type]
