from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tagmask import comm
from tagmask.cam import class_prototypes, region_masks
from tagmask.errors import TagmaskError


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """CAMs in tenths, so that ties and values on the threshold happen, and tags, one image without any."""
    generator = torch.Generator().manual_seed(seed)
    cams = torch.randint(0, 11, (4, 3, 5, 6), generator=generator, dtype=torch.float64) / 10
    tags = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    return cams, tags


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.95, 1.0])
def test_region_masks_equal_equations_1_and_2(threshold: float) -> None:
    cams, tags = drawn()
    masks = region_masks(cams, tags, threshold)
    assert masks.shape == (4, 4, 5, 6) and masks.dtype == torch.bool
    for b in range(4):
        for y in range(5):
            for x in range(6):
                best, label = threshold, 0
                for c in range(3):
                    if tags[b, c] == 1 and cams[b, c, y, x] > best:
                        best, label = float(cams[b, c, y, x]), c + 1
                assert masks[b, :, y, x].tolist() == [k == label for k in range(4)]


def test_absent_classes_have_no_region_and_a_cam_at_the_threshold_is_background() -> None:
    cams = torch.tensor([0.2, 0.9]).view(1, 2, 1, 1)
    assert region_masks(cams, torch.tensor([[1, 0]]), 0.2).flatten().tolist() == [True, False, False]
    assert region_masks(cams, torch.tensor([[1, 0]]), 0.19).flatten().tolist() == [False, True, False]
    assert region_masks(cams, torch.tensor([[1, 1]]), 0.19).flatten().tolist() == [False, False, True]


def slow_prototypes(features: torch.Tensor, masks: torch.Tensor, reduction: str) -> torch.Tensor:
    result = torch.zeros(masks.shape[1], features.shape[1], dtype=torch.float64)
    for k in range(masks.shape[1]):
        total, images = torch.zeros(features.shape[1], dtype=torch.float64), 0
        for b in range(len(features)):
            mine = [
                features[b, :, y, x].double()
                for y in range(features.shape[2])
                for x in range(features.shape[3])
                if masks[b, k, y, x]
            ]
            if mine:
                total += sum(mine) / (len(mine) if reduction == "mean" else 1)
                images += 1
        if images:
            result[k] = total / images / (total / images).norm()
    return result


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_class_prototypes_equal_loops(reduction: Any) -> None:
    cams, tags = drawn()
    tags[:, 2] = 0  # nowhere
    masks = region_masks(cams, tags, 0.3)
    features = torch.randn(4, 7, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = slow_prototypes(features, masks, reduction)
    result = class_prototypes(features, masks, reduction)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(class_prototypes(features, masks.int(), reduction), expected)
    assert not result[3].any() and result[:3].norm(dim=1).allclose(torch.ones(3, dtype=torch.float64))


def test_a_large_region_does_not_outweigh_a_small_one_but_in_a_sum() -> None:
    features = torch.zeros(2, 2, 1, 4)
    features[0, 0] = features[1, 1] = 1
    masks = torch.ones(2, 1, 1, 4)
    masks[1, 0, 0, 1:] = 0
    torch.testing.assert_close(class_prototypes(features, masks), torch.tensor([[0.5, 0.5]]).sqrt())
    summed = class_prototypes(features, masks, "sum")
    torch.testing.assert_close(summed, F.normalize(torch.tensor([[4.0, 1.0]])), msg="4 positions against 1")
    alone = class_prototypes(features[:1], masks[:1], "sum")
    torch.testing.assert_close(alone, class_prototypes(features[:1], masks[:1]), msg="of one image there is one length")


def test_prototypes_are_constants_and_full_precision() -> None:
    features = torch.randn(1, 64, 8, 8, requires_grad=True)
    masks = torch.ones(1, 1, 8, 8)
    assert not class_prototypes(features, masks).requires_grad
    assert class_prototypes(features.bfloat16(), masks).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(class_prototypes(features, masks), class_prototypes(features.detach(), masks))
        assert class_prototypes(features, masks).dtype == torch.float32


def test_prototypes_are_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with a half of the batch each: what they add up is what one process has."""
    cams, tags = drawn()
    masks = region_masks(cams, tags, 0.3)
    features = torch.randn(4, 7, 5, 6, generator=torch.Generator().manual_seed(1))
    sent: list[Any] = []

    def record(value: torch.Tensor) -> torch.Tensor:
        sent.append(value)
        return value

    monkeypatch.setattr(comm, "all_sum", record)
    class_prototypes(features[2:], masks[2:])
    others = list(sent)
    monkeypatch.setattr(comm, "all_sum", lambda value: value + others.pop(0))
    both = class_prototypes(features[:2], masks[:2])
    monkeypatch.undo()
    torch.testing.assert_close(both, class_prototypes(features, masks))


def test_refusals() -> None:
    with pytest.raises(TagmaskError, match="Region masks"):
        region_masks(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3), 0.2)
    with pytest.raises(TagmaskError, match="threshold"):
        region_masks(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2), -0.1)
    with pytest.raises(TagmaskError, match="Class prototypes"):
        class_prototypes(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 6, 6))
