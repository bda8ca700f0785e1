"""Accuracy by value against counting pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tagmask.evaluate import AccuracyByValue

EDGES = [0.0, 0.25, 0.5, 1.0, float("inf")]
CLASSES = 3


def test_counts_equal_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    stream = AccuracyByValue(CLASSES, EDGES)
    pixels = []
    for _ in range(2):
        truth, labels = (torch.randint(0, CLASSES, (9, 11), generator=generator) for _ in range(2))
        truth[0], labels[1] = 255, 255
        # Edges themselves, below the first, above the last, and infinite ones are among them.
        values = torch.randint(-1, 9, (9, 11), generator=generator) / 4
        values[2] = float("inf")
        stream.update(labels, values, truth.byte())
        everything = zip(truth.flatten().tolist(), labels.flatten().tolist(), values.flatten().tolist(), strict=True)
        pixels += [(t, p, max(v, 0.0)) for t, p, v in everything if t != 255 and p != 255]
    for i, (low, high) in enumerate(zip(EDGES, EDGES[1:])):
        inside = [(t, p) for t, p, v in pixels if low <= v < high or v == high == math.inf]
        assert stream.pixels()[i] == len(inside)
        assert stream.accuracy()[i] == pytest.approx(sum(t == p for t, p in inside) / len(inside))
        below = [(t, p) for t, p, v in pixels if v < high or v == high == math.inf]
        ious = [
            sum(t == p == k for t, p in below) / sum(k in (t, p) for t, p in below)
            for k in range(CLASSES)
            if any(k in pair for pair in below)
        ]
        assert stream.miou_up_to()[i] == pytest.approx(sum(ious) / len(ious))


def test_a_bin_without_pixels_has_no_accuracy() -> None:
    stream = AccuracyByValue(2, [0.0, 0.5, 1.0])
    stream.update(torch.zeros(2, 2), torch.full((2, 2), 0.7), torch.zeros(2, 2))
    assert stream.pixels().tolist() == [0, 4]
    assert np.isnan(stream.accuracy()[0]) and np.isnan(stream.miou_up_to()[0]) and stream.accuracy()[1] == 1
