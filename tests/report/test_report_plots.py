"""Plots: valid SVG that takes the page's colours and draws the numbers that it was given."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from tagmask.report.plots import CSS, line, threshold_curve


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


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
