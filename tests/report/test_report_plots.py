"""Plots: valid SVG that takes the page's colours and draws the numbers that it was given."""

from __future__ import annotations

import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from tagmask.report.plots import CSS, heat_map, line, threshold_curve


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_heat_map_writes_per_cents_and_names_as_they_are():
    names = ["a $x_1$", r"$\broken{", "<b> & 猫"]
    shares = np.array([[1.0, 0, np.nan], [0.25, 0.754, 0], [0, 0, 0.004]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = heat_map(shares, names, names, "truth", "prediction", "a & b")
    found = texts(svg)
    for name in names:
        assert found.count(name) == 2
    assert sorted(t for t in found if t.isdigit()) == ["100", "25", "75"]
    assert len(texts(heat_map(np.eye(40), names[:1] * 40, names[:1] * 40, "", "", "big"))) == 80  # no room for numbers


@pytest.mark.parametrize("n", [1, 2, 400])
def test_lines_of_any_length(n):
    svg = line("loss <a>", range(n), np.linspace(1, 0, n).tolist())
    assert "loss <a>" in texts(svg)


def test_curve_marks_peak_and_threshold_in_use():
    thresholds = [i / 10 for i in range(10)]
    miou = [None, *(0.5 - abs(t - 0.4) for t in thresholds[1:])]
    found = texts(threshold_curve(thresholds, miou, (0.4, 0.5), chosen=0.3))
    assert "peak 50.0 at 0.4" in found and "in use: 0.3, 40.0" in found
    assert not any("in use" in text for text in texts(threshold_curve(thresholds, miou, (0.4, 0.5))))


def test_colours_are_the_pages():
    svg = threshold_curve([0.0, 0.5], [0.1, 0.2], (0.5, 0.2), chosen=0.0)
    assert not any(colour in svg for colour in CSS)
    assert all(css in svg for css in CSS.values())
    assert svg == threshold_curve([0.0, 0.5], [0.1, 0.2], (0.5, 0.2), chosen=0.0)  # the same every time
