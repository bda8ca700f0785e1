"""Parts, run lengths and outlines of label maps, and polygons drawn by the centres of pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.path import Path as Outline

from tagmask.convert.shapes import draw, inside_runs, joined, outlines, straightened
from tagmask.parts import parts, run_lengths

SIDES = array_shapes(min_dims=2, max_dims=2, max_side=14)
MAPS = arrays(np.uint8, SIDES, elements=st.sampled_from([0, 0, 1, 1, 2, 255]))
POINTS = st.lists(st.tuples(st.floats(-3, 15), st.floats(-3, 12)), min_size=3, max_size=9)


@given(MAPS)
def test_parts_make_the_map(labels: np.ndarray) -> None:
    found = np.zeros_like(labels)
    for part in parts(labels):
        x, y, width, height = part.box
        view = found[y : y + height, x : x + width]
        assert part.inside.any(0).all() and part.inside.any(1).all(), "the box is tight"
        assert not view[part.inside].any()
        view[part.inside] = part.label
    np.testing.assert_array_equal(found, labels)


@given(arrays(bool, st.integers(1, 30)))
def test_run_lengths(inside: np.ndarray) -> None:
    lengths = run_lengths(np.flatnonzero(inside), inside.size)
    assert all(lengths[1:])
    np.testing.assert_array_equal(inside_runs(lengths, inside.size), inside)
    for wrong in ([*lengths, 1], [-1, inside.size + 1], "9", [1.0] * inside.size, None):
        with pytest.raises(ValueError):
            inside_runs(wrong, inside.size)


@settings(max_examples=300)
@given(MAPS, st.sampled_from([0.5, 0.75]), st.booleans())
def test_outlines_give_the_pixels_back(labels: np.ndarray, level: float, join: bool) -> None:
    found = np.zeros_like(labels)
    for part in parts(labels):
        rings = outlines(part, level)
        rings = [straightened(joined(rings))] if join else [straightened(ring) for ring in rings]
        draw(found, rings, part.label)
    np.testing.assert_array_equal(found, labels)


@settings(max_examples=300)
@given(MAPS)
def test_outlines_cut_to_whole_pixels_and_filled_with_their_border(labels: np.ndarray) -> None:
    """As Ultralytics reads its format: int32, then OpenCV's fillPoly."""
    cv2 = pytest.importorskip("cv2")
    for part in parts(labels):
        own = np.zeros_like(labels)
        cv2.fillPoly(own, [straightened(joined(outlines(part, 0.75))).astype(np.int32)], 1)
        x, y, width, height = part.box
        np.testing.assert_array_equal(own[y : y + height, x : x + width] == 1, part.inside)
        assert own.sum() == part.inside.sum()


@given(st.lists(POINTS, min_size=1, max_size=3))
def test_polygons_are_drawn_as_pixel_by_pixel(rings: list[list[tuple[float, float]]]) -> None:
    labels = np.zeros((9, 12), np.uint8)
    draw(labels, rings, 7)
    for y in range(9):
        for x in range(12):
            assert (labels[y, x] == 7) == (crossings(rings, x + 0.5, y + 0.5) % 2 == 1), (x, y)


def crossings(rings: list[list[tuple[float, float]]], x: float, y: float) -> int:
    """How often a ray to the left crosses the rings; a point on a line is right of it."""
    count = 0
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]]):
            if y0 > y1:
                x0, y0, x1, y1 = x1, y1, x0, y0
            if y0 <= y < y1:
                count += x >= x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    return count


def test_polygons_are_drawn_as_matplotlib_sees_them() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        ring = rng.uniform(0, 20, (int(rng.integers(3, 6)), 2))
        angles = np.arctan2(*(ring - ring.mean(0)).T)
        ring = ring[np.argsort(angles)]  # without crossings, as matplotlib counts windings
        labels = np.zeros((16, 20), np.uint8)
        draw(labels, [ring], 1)
        centres = np.stack(np.meshgrid(np.arange(20) + 0.5, np.arange(16) + 0.5), -1).reshape(-1, 2)
        np.testing.assert_array_equal(labels.ravel() == 1, Outline(ring).contains_points(centres))


NO_POLYGONS: list[list[list[tuple[float, ...]]]] = [
    [],
    [[]],
    [[(0, 0), (1, 1)]],
    [[(0, 0, 0)] * 3],
    [[(0, 0), (1, 0), (float("nan"), 1)]],
    [[(0, 0), (1, 0), (1e9, 1)]],
]


@pytest.mark.parametrize("rings", NO_POLYGONS)
def test_what_is_no_polygon_is_refused(rings: list[list[tuple[float, ...]]]) -> None:
    with pytest.raises(ValueError):
        draw(np.zeros((4, 4), np.uint8), rings, 1)
