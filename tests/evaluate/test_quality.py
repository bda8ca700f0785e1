"""Agreement of label maps against a loop over pixels; what a stream of photos says of classes and doubt."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import rankdata

from tagmask.errors import DataError
from tagmask.evaluate import ConfusionMatrix
from tagmask.evaluate.quality import QualityStream, agreement, by_doubt, rank_correlation, tag_match

CLASSES = ["cat", "dog", "cow"]


def agreement_by_loop(mask: np.ndarray, view: np.ndarray, tags: list[int]) -> float:
    values = []
    for k in range(len(CLASSES) + 1):
        both = either = 0
        for a, b in zip(mask.ravel().tolist(), view.ravel().tolist()):
            if 255 not in (a, b):
                both += a == k and b == k
                either += k in (a, b)
        if either or k - 1 in tags:
            values.append(both / either if either else 0.0)
    return sum(values) / len(values) if values else math.nan


def maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask, view = rng.choice([0, 0, 1, 2, 255], (2, 12, 15)).astype(np.uint8)
    view[:6] = mask[:6]
    return mask, view


@pytest.mark.parametrize("seed", range(5))
def test_agreement_equals_a_loop(seed: int) -> None:
    mask, view = maps(seed)
    for tags in ([], [0], [0, 2]):
        counts = ConfusionMatrix(4).update(view, mask).counts
        assert agreement(counts, tags) == pytest.approx(agreement_by_loop(mask, view, tags))


def test_maps_that_are_unsure_everywhere_say_nothing() -> None:
    unsure = np.full((4, 4), 255)
    assert math.isnan(agreement(ConfusionMatrix(4).update(unsure, unsure).counts))
    stream = QualityStream(CLASSES)
    photo = stream.update("a", "val", unsure, {"mirror": unsure}, None)
    assert photo.estimate is None and photo.doubt is None and photo.agreement == {}
    assert stream.result()["estimate"] is None and stream.result()["doubtful"] == []


def test_a_stream_counts_tags_and_ranks_photos() -> None:
    stream = QualityStream(CLASSES)
    half = np.zeros((4, 4), dtype=np.uint8)
    half[:, :2] = 1
    whole, most = np.ones((2, 4, 4), dtype=np.uint8)
    most[:, 3] = 0
    stream.update("same", "val", half, {"mirror": half, "larger": half}, [0], [0, 1], 1.0, half, held_out=True)
    stream.update("other", "val", half, {"mirror": half, "larger": whole}, [0], [0], 0.7, most, held_out=True)
    worst = stream.update("worst", "val", half, {"larger": half * 0}, [0, 1], [2], 0.5, half * 0, held_out=True)
    assert worst.agreement == {"larger": pytest.approx((0.5 + 0 + 0) / 3)}, "a tagged class that no map shows is 0"
    assert worst.estimate == pytest.approx((0.5 / 3 + 0.5 + 0) / 3) and worst.doubt == 1 - worst.estimate
    assert worst.missing == [1] and stream.photos[0].unexpected == [1]
    assert [photo.id for photo in by_doubt(stream.photos)] == ["worst", "other", "same"]
    result = stream.result()
    assert result["doubtful"] == ["worst", "other", "same"] and result["images"] == 3
    assert result["correlation"]["photos"] == pytest.approx(1.0)
    cat, dog = result["per_class"]["cat"], result["per_class"]["dog"]
    assert (cat["tagged"], cat["found"], cat["precision"], cat["recall"]) == (3, 1.0, 1.0, pytest.approx(2 / 3))
    assert (dog["tagged"], dog["found"], dog["precision"], dog["recall"]) == (1, 0.0, 0.0, 0.0)
    assert result["found"] == pytest.approx(3 / 4)
    assert cat["agreement"] == pytest.approx((8 + 8 + 0) / (8 + 16 + 8)), "of the larger view, over all pixels"
    assert math.isnan(result["per_class"]["cow"]["agreement"]) and cat["iou"] == pytest.approx(16 / 28)


def test_rank_correlation_equals_that_of_ranks_and_leaves_out_what_is_unknown() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 40) * 1.0, rng.normal(size=40)
    expected = np.corrcoef(rankdata(x), rankdata(y))[0, 1]
    assert rank_correlation(x, y) == pytest.approx(expected)
    assert rank_correlation([*x, np.nan], [*y, 3.0]) == pytest.approx(expected)
    assert rank_correlation([1, 2], [3, 4]) is None and rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError):
        QualityStream(CLASSES).update("a", "val", np.zeros((2, 2), int), {"mirror": np.zeros((3, 3), int)}, [0])


def test_tags_match_as_far_as_sets_overlap() -> None:
    assert tag_match([0, 1], [1, 2]) == pytest.approx(1 / 3) and tag_match([], []) == 1 and tag_match([0], []) == 0
