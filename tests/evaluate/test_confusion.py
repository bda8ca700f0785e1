"""The confusion matrix against a loop over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tagmask.errors import TagmaskError
from tagmask.evaluate import ConfusionMatrix

K = 5


def random_maps(seed: int, shape: tuple[int, ...] = (3, 17, 13)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pred, target = rng.integers(0, K, shape), rng.integers(0, K, shape)
    pred[rng.random(shape) < 0.1] = 255
    target[rng.random(shape) < 0.2] = 255
    return pred.astype(np.uint8), target.astype(np.uint8)


def loop_counts(pred: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    matrix, missed = np.zeros((K, K)), np.zeros(K)
    for p, t in zip(pred.ravel().tolist(), target.ravel().tolist()):
        if t == 255:
            continue
        if p == 255:
            missed[t] += 1
        else:
            matrix[t, p] += 1
    return matrix, missed


def loop_iou(matrix: np.ndarray, missed: np.ndarray | None = None) -> list[float]:
    values = []
    for c in range(len(matrix)):
        hit = matrix[c][c]
        union = sum(matrix[c]) + sum(row[c] for row in matrix) - hit + (missed[c] if missed is not None else 0)
        values.append(hit / union if union else float("nan"))
    return values


@pytest.mark.parametrize("kind", ["uint8", "int64", "torch uint8", "torch long", "mixed"])
def test_matches_the_loop(kind):
    pred, target = random_maps(0)
    matrix, missed = loop_counts(pred, target)
    given = {
        "uint8": (pred, target),
        "int64": (pred.astype(np.int64), target.astype(np.int64)),
        "torch uint8": (torch.from_numpy(pred), torch.from_numpy(target)),
        "torch long": (torch.from_numpy(pred).long(), torch.from_numpy(target).long()),
        "mixed": (torch.from_numpy(pred).long(), target),
    }[kind]
    cm = ConfusionMatrix(K).update(*given)
    assert cm.matrix.dtype == np.int64
    np.testing.assert_array_equal(cm.matrix, matrix)
    np.testing.assert_allclose(cm.iou(), loop_iou(matrix), rtol=1e-12)
    assert cm.miou() == pytest.approx(np.mean(loop_iou(matrix)))
    assert cm.miou_strict() == pytest.approx(np.mean(loop_iou(matrix, missed)))
    assert cm.coverage() == pytest.approx(matrix.sum() / (matrix.sum() + missed.sum()))
    assert cm.accuracy() == pytest.approx(np.trace(matrix) / matrix.sum())
    for c in range(K):
        assert cm.precision()[c] == pytest.approx(matrix[c][c] / sum(matrix[:, c]))
        assert cm.recall()[c] == pytest.approx(matrix[c][c] / sum(matrix[c]))


def test_strided_and_transposed_maps_are_paired_by_position():
    pred, target = random_maps(1, (12, 20))
    cm = ConfusionMatrix(K).update(torch.from_numpy(pred).T[::2], target.T[::2])
    np.testing.assert_array_equal(cm.matrix, loop_counts(pred.T[::2], target.T[::2])[0])


@pytest.mark.parametrize("kind", [np.bool_, np.int8, np.int16, np.uint16, np.uint32, np.uint64])
def test_any_integer_type_and_read_only_arrays(kind, recwarn):
    rng = np.random.default_rng(4)
    pred, target = (rng.integers(0, 2, (12, 20)).astype(kind)[::-1] for _ in range(2))
    pred.flags.writeable = target.flags.writeable = False
    cm = ConfusionMatrix(K).update(pred, target)
    np.testing.assert_array_equal(cm.matrix, loop_counts(pred.astype(int), target.astype(int))[0])
    assert not recwarn.list


def test_streaming_equals_one_update():
    pred, target = random_maps(2, (4, 9, 9))
    whole = ConfusionMatrix(K).update(pred, target)
    streamed = ConfusionMatrix(K)
    for p, t in zip(pred, target):
        streamed.update(p, t)
    np.testing.assert_array_equal(streamed.counts, whole.counts)


def test_absent_classes():
    # class 1 only predicted, class 2 only in the truth, class 3 in neither
    target = np.array([0, 0, 0, 2])
    pred = np.array([0, 0, 1, 0])
    cm = ConfusionMatrix(4).update(pred, target)
    np.testing.assert_allclose(cm.iou(), [2 / 4, 0, 0, np.nan])
    assert cm.miou() == pytest.approx(0.5 / 3)
    assert cm.miou(without=[2]) == pytest.approx(0.25)
    assert np.isnan(cm.precision()[2]) and cm.precision()[1] == 0
    assert np.isnan(cm.recall()[1]) and cm.recall()[2] == 0


def test_a_class_whose_pixels_are_all_unsure_is_missed_only_by_the_strict_score():
    cm = ConfusionMatrix(2).update(np.array([0, 0, 255, 255]), np.array([0, 0, 1, 1]))
    assert cm.miou() == 1.0
    assert cm.miou_strict() == 0.5
    assert cm.coverage() == 0.5


def test_nothing_seen_is_nan_without_a_warning():
    cm = ConfusionMatrix(3).update(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8))
    cm.update(np.zeros(4, np.uint8), np.full(4, 255, np.uint8))
    for value in (cm.miou(), cm.miou_strict(), cm.coverage(), cm.accuracy()):
        assert np.isnan(value)


@pytest.mark.parametrize(
    "pred, target, message",
    [
        ([0, 3], [0, 0], "prediction holds label 3"),
        ([0, 0], [0, 77], "truth holds label 77"),
        ([0, -1], [0, 0], "prediction holds label -1"),
        ([0, 0], [0, 300], "truth holds label 300"),
        ([0, 7], [0, 255], "prediction holds label 7"),
        ([0.0, 1.0], [0, 0], "float64"),
        ([0, 0, 0], [0, 0], "shape"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(pred, target, message):
    cm = ConfusionMatrix(3)
    for make in (np.array, torch.tensor):
        with pytest.raises(ValueError, match=message if make is np.array else message.replace("float64", "float32")):
            cm.update(make(pred), make(target))
    with pytest.raises(TagmaskError):
        cm.update(np.array(pred), np.array(target))
    assert cm.counts.sum() == 0


def test_the_largest_number_of_classes():
    big = ConfusionMatrix(255).update(np.array([254]), np.array([254]))
    assert big.matrix[254, 254] == 1
    for wrong in (0, 256):
        with pytest.raises(TagmaskError):
            ConfusionMatrix(wrong)
    with pytest.raises(TagmaskError, match="left out"):
        big.miou(without=[255])
