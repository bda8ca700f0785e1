from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.losses import region_cross_entropy, regional_contrast


def drawn(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Features (3,5,2,4), masks (3,4,2,4) with positions in none, prototypes (4,5) of any length."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 5, 2, 4, generator=generator, dtype=dtype)
    labels = torch.randint(-1, 4, (3, 2, 4), generator=generator)
    labels[2] = -1
    masks = torch.stack([labels == k for k in range(4)], 1)
    return features, masks, torch.randn(4, 5, generator=generator, dtype=dtype)


def slow(features: Tensor, masks: Tensor, prototypes: Tensor, t: float, log: bool, reduction: str) -> float:
    """Equations 4 and 5, position by position, in float64."""
    seen = [k for k in range(len(prototypes)) if prototypes[k].any()]
    total, count = 0.0, 0
    for b in range(features.shape[0]):
        for y in range(features.shape[2]):
            for x in range(features.shape[3]):
                feature = features[b, :, y, x].double()
                feature = feature / feature.norm()
                sims = {
                    k: math.exp(float(feature @ (prototypes[k].double() / prototypes[k].double().norm())) / t)
                    for k in seen
                }
                for k in seen:
                    if masks[b, k, y, x]:
                        share = sims[k] / sum(sims.values())
                        total -= math.log(share) if log else share
                        count += 1
    return total / (max(count, 1) if reduction == "mean" else len(features))


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("unseen", [[], [0], [1, 3]])
def test_equals_loops(log: bool, reduction: str, unseen: list[int]) -> None:
    features, masks, prototypes = drawn()
    prototypes[unseen] = 0
    expected = slow(features, masks, prototypes, 0.5, log, reduction)
    for given in (masks, masks.float()):
        result = regional_contrast(features, given, prototypes, 0.5, log, reduction)  # type: ignore[arg-type]
        assert result.item() == pytest.approx(expected, rel=1e-5)
    other = regional_contrast(features, masks, prototypes, 0.1, log, reduction)  # type: ignore[arg-type]
    assert other.item() == pytest.approx(slow(features, masks, prototypes, 0.1, log, reduction), rel=1e-5)


@pytest.mark.parametrize("log", [True, False])
def test_gradient(log: bool) -> None:
    features, masks, prototypes = drawn(torch.float64)
    prototypes[1] = 0
    features.requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return regional_contrast(x, masks, prototypes, 0.5, log)

    assert torch.autograd.gradcheck(loss, (features,))
    counted = masks[:, [0, 2, 3]].any(1)
    loss(features).backward()
    assert features.grad is not None
    assert torch.equal(features.grad.abs().sum(1) > 0, counted), "positions that do not count have no gradient"


def test_gradient_into_prototypes() -> None:
    features, masks, prototypes = drawn(torch.float64)
    prototypes.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: regional_contrast(features, masks, p), (prototypes,))


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("empty", ["masks", "prototypes"])
def test_nothing_that_counts_is_zero_with_zero_gradient(log: bool, empty: str) -> None:
    features, masks, prototypes = drawn()
    features.requires_grad_()
    if empty == "masks":
        masks = torch.zeros_like(masks)
    else:
        prototypes = torch.zeros_like(prototypes)
    result = regional_contrast(features, masks, prototypes, log=log)
    assert result == 0
    result.backward()
    assert features.grad is not None and not features.grad.any() and features.grad.isfinite().all()


def test_lengths_do_not_matter() -> None:
    features, masks, prototypes = drawn()
    result = regional_contrast(features, masks, prototypes)
    torch.testing.assert_close(regional_contrast(7 * features, masks, 0.1 * prototypes), result)


def test_half_precision_is_computed_in_float32() -> None:
    features, masks, prototypes = drawn()
    half = features.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = regional_contrast(half, masks, prototypes)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, regional_contrast(half.float(), masks, prototypes))


def test_refusals() -> None:
    features, masks, prototypes = drawn()
    for arguments in (
        (features, masks, prototypes[:3]),
        (features, masks, prototypes[:, :4]),
        (features, masks[:2], prototypes),
        (features, masks[..., :2], prototypes),
    ):
        with pytest.raises(TagmaskError, match="Regional contrast"):
            regional_contrast(*arguments)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(TagmaskError, match="temperature"):
            regional_contrast(features, masks, prototypes, temperature)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_equals_loops(reduction: str) -> None:
    _, masks, _ = drawn()
    cams = torch.rand(3, 3, 2, 4, dtype=torch.float64)
    cams[0, 0, 0] = torch.tensor([0, 1, 0, 1])
    cams.requires_grad_()
    tags = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 1]])
    total, count = 0.0, 0
    for b in range(3):
        for y in range(2):
            for x in range(4):
                for c in range(3):
                    if tags[b, c] and any(masks[b, k, y, x] for k in range(4)):
                        a = 0.01 + 0.98 * cams[b, c, y, x].item()
                        total -= math.log(a if masks[b, c + 1, y, x] else 1 - a)
                        count += 1
    assert 0 < count < 2 * 2 * 2 * 4, "some positions are in no mask"
    for given in (masks, masks.float()):
        result = region_cross_entropy(cams, given, tags, reduction)  # type: ignore[arg-type]
        assert result.item() == pytest.approx(total / (count if reduction == "mean" else 3), rel=1e-9)
    inner = (0.01 + 0.98 * cams.detach()).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: region_cross_entropy(m, masks, tags, reduction), [inner])  # type: ignore[arg-type]
    nothing = region_cross_entropy(cams, masks & False, tags)
    nothing.backward()
    assert nothing == 0 and cams.grad is not None and not cams.grad.any()
    for wrong in ((cams[0], masks, tags), (cams, masks[:, 1:], tags), (cams, masks, tags[:, :2])):
        with pytest.raises(TagmaskError, match="Region cross-entropy"):
            region_cross_entropy(*wrong)
    assert region_cross_entropy(cams.detach().bfloat16(), masks, tags).dtype == torch.float32
