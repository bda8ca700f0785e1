from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tagmask.cam import cam_labels, pseudo_labels, refined_scores
from tagmask.errors import TagmaskError
from tagmask.refine import PAR
from tagmask.tensors import inside

HIGH, LOW = 0.55, 0.35
TAGS = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.float32)


def cams(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, 4, height, width, generator=torch.Generator().manual_seed(seed))


def by_hand(
    maps: torch.Tensor, tags: torch.Tensor, high: float, low: float, factor: torch.Tensor | None = None
) -> torch.Tensor:
    """Plain thresholds, pixel by pixel."""
    factor = torch.ones(len(maps), 1, *maps.shape[-2:]) if factor is None else factor
    count, classes, height, width = maps.shape
    labels = torch.zeros(count, height, width, dtype=torch.long)
    for b in range(count):
        for i in range(height):
            for j in range(width):
                best, label = -1.0, 0
                for c in range(classes):
                    if tags[b, c] and maps[b, c, i, j] > best:
                        best, label = float(maps[b, c, i, j]), c + 1
                labels[b, i, j] = (
                    label if best > high * factor[b, 0, i, j] else 0 if best <= low * factor[b, 0, i, j] else 255
                )
    return labels


def test_plain_equals_loops() -> None:
    maps = cams(9, 7)
    labels = pseudo_labels(maps, TAGS, HIGH, LOW)
    assert labels.dtype == torch.long
    assert torch.equal(labels, by_hand(maps, TAGS, HIGH, LOW))
    assert set(labels[0].unique().tolist()) == {0, 1, 3, 4, 255}
    assert not labels[2].any()  # no tags: all background


def test_equal_to_a_threshold_is_not_foreground() -> None:
    maps = torch.tensor([0.25, 0.3, 0.5, 0.75, 0.5]).view(1, 1, 1, 5)
    tags = torch.ones(1, 1)
    assert pseudo_labels(maps, tags, 0.5, 0.25).tolist() == [[[0, 255, 255, 1, 255]]]
    assert cam_labels(maps, tags, 0.5).tolist() == [[[0, 0, 0, 1, 0]]]
    # The same through the softmax and the argmax.
    flat = torch.full((1, 1, 4, 4), 0.5)
    keep = lambda images, scores: scores  # noqa: E731
    assert pseudo_labels(flat, tags, 0.5, 0.25, keep, torch.rand(1, 3, 4, 4)).unique().tolist() == [255]
    assert pseudo_labels(flat, tags, 0.75, 0.5, keep, torch.rand(1, 3, 4, 4)).unique().tolist() == [0]


def test_of_equal_classes_the_first_wins() -> None:
    maps = torch.full((1, 4, 2, 2), 0.9)
    assert cam_labels(maps, TAGS[:1], 0.5).unique().tolist() == [1]


def test_one_threshold_leaves_nothing_unsure() -> None:
    maps = cams(9, 7)
    assert torch.equal(cam_labels(maps, TAGS, 0.4), by_hand(maps, TAGS, 0.4, 0.4))
    assert 255 not in cam_labels(maps, TAGS, 0.4)
    calls = []

    def refine(images: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(scores.shape))
        return scores

    images = torch.rand(3, 3, 18, 14)
    labels = pseudo_labels(maps, TAGS, 0.4, 0.4, refine, images)
    assert 255 not in labels
    pseudo_labels(maps, TAGS, 0.5, 0.4, refine, images)
    assert calls == [(3, 4, 9, 7), (3, 8, 9, 7)]  # at most 3 tags and background; both stacks in one call


def test_boxes() -> None:
    maps = cams(9, 7)
    boxes = torch.tensor([[0, 0, 7, 9], [2, 1, 5, 8], [3, 3, 3, 3]])
    plain = pseudo_labels(maps, TAGS, HIGH, LOW)
    boxed = pseudo_labels(maps, TAGS, HIGH, LOW, boxes=boxes)
    for b, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        for i in range(9):
            for j in range(7):
                expected = plain[b, i, j] if x0 <= j < x1 and y0 <= i < y1 else 255
                assert boxed[b, i, j] == expected
    assert inside(boxes, (9, 7)).flatten(1).sum(1).tolist() == [63, 21, 0]


def test_plain_takes_the_images_size() -> None:
    maps, images = cams(5, 4), torch.rand(3, 3, 20, 13)
    resized = F.interpolate(maps, size=(20, 13), mode="bilinear", align_corners=False)
    labels = pseudo_labels(maps, TAGS, HIGH, LOW, images=images)
    assert torch.equal(labels, by_hand(resized, TAGS, HIGH, LOW))


@pytest.mark.parametrize("refine", [None, lambda images, scores: scores])
def test_the_background_is_scored_by_pixel_where_a_factor_is_given(refine) -> None:
    maps = cams(8, 6)
    factor = torch.rand(3, 1, 8, 6, generator=torch.Generator().manual_seed(1)) * 2
    labels = pseudo_labels(maps, TAGS, HIGH, LOW, refine, factor=factor, images=torch.rand(3, 3, 16, 12))
    if refine is None:  # on the images' grid
        maps, factor = (F.interpolate(x, size=(16, 12), mode="bilinear") for x in (maps, factor))
        assert torch.equal(labels, by_hand(maps, TAGS, HIGH, LOW, factor))
        return
    # Scores that nothing refines lose to the same background; found on their own grid, resized to the images'.
    scores = [refined_scores(maps, TAGS, t, refine, torch.rand(3, 3, 16, 12), factor=factor) for t in (HIGH, LOW)]
    for t, found in zip((HIGH, LOW), scores, strict=True):
        assert torch.equal(found.argmax(1), by_hand(maps, TAGS, t, t, factor))
    sure, lenient = (F.interpolate(s, size=(16, 12), mode="bilinear").argmax(1) for s in scores)
    expected = torch.where(sure > 0, sure, torch.where(lenient == 0, 0, 255))
    assert torch.equal(labels, expected) and set(labels.unique().tolist()) > {0, 255}


def refined_by_hand(
    maps: torch.Tensor, tags: torch.Tensor, threshold: float, refine, images: torch.Tensor
) -> list[torch.Tensor]:
    """Image by image, all classes carried, absent ones left out of the softmax by hand → (C+1,h,w) each."""
    size = (max(1, images.shape[2] // 2), max(1, images.shape[3] // 2))
    small = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    results = []
    for b in range(len(images)):
        exps = [torch.full(size, math.exp(threshold))] + [maps[b, c].exp() * tags[b, c] for c in range(maps.shape[1])]
        probabilities = torch.stack(exps) / torch.stack(exps).sum(0)
        results.append(refine(small[b : b + 1], probabilities[None])[0])
    return results


@pytest.mark.parametrize("size", [(18, 14), (17, 15), (1, 9)])
def test_refined_equals_image_by_image(size: tuple[int, int]) -> None:
    maps, images = cams(6, 5), torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(2))
    refine = PAR(dilations=(1, 2), iterations=3)
    high, low = (refined_by_hand(maps, TAGS, t, refine, images) for t in (0.6, 0.45))
    scores = refined_scores(maps, TAGS, 0.6, refine, images)
    torch.testing.assert_close(scores, torch.stack(high), rtol=1e-4, atol=1e-6)
    assert not scores[:, 1:][TAGS == 0].any()
    labels = pseudo_labels(maps, TAGS, 0.6, 0.45, refine, images)
    kinds = set()
    for b in range(3):
        first, second = (
            F.interpolate(s[b][None], size=size, mode="bilinear", align_corners=False)[0].argmax(0) for s in (high, low)
        )
        for i in range(size[0]):
            for j in range(size[1]):
                expected = first[i, j] if first[i, j] > 0 else 0 if second[i, j] == 0 else 255
                assert labels[b, i, j] == expected
                kinds.add(int(expected))
    assert size[0] == 1 or {0, 255} < kinds


def test_refined_at_full_size() -> None:
    maps, images = cams(6, 5), torch.rand(3, 3, 12, 10)
    scores = refined_scores(maps, TAGS, 0.5, lambda images, scores: scores, images, half=False)
    assert scores.shape == (3, 5, 12, 10)
    torch.testing.assert_close(scores.sum(1), torch.ones(3, 12, 10))


def test_constant_maps_and_half_precision() -> None:
    images = torch.full((3, 3, 16, 16), 0.5)
    for value, expected in [(0.9, [1]), (0.45, [255]), (0.1, [0])]:
        maps = torch.full((3, 4, 4, 4), value)
        for refine in (None, PAR()):
            labels = pseudo_labels(maps.bfloat16(), TAGS, HIGH, LOW, refine, images.bfloat16())
            assert labels[0].unique().tolist() == expected
            assert labels[2].unique().tolist() == [0]


def test_errors() -> None:
    maps, images = cams(4, 4), torch.rand(3, 3, 8, 8)
    with pytest.raises(TagmaskError, match="high"):
        pseudo_labels(maps, TAGS, 0.3, 0.5)
    with pytest.raises(TagmaskError, match="refine=None"):
        pseudo_labels(maps, TAGS, HIGH, LOW, PAR())
    with pytest.raises(TagmaskError, match="tags"):
        pseudo_labels(maps, torch.ones(3, 5), HIGH, LOW)
    with pytest.raises(TagmaskError, match="images"):
        pseudo_labels(maps, TAGS, HIGH, LOW, PAR(), images[:2])
