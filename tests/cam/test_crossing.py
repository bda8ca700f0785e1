"""The crossing as CoSA's equation 6, and on queues that trainings left behind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tagmask.cam import DynamicThreshold, Mixture, crossing, fit_two_components
from tests.cam.test_threshold import ONE_MODE, QUEUES, beta, compare_with_scikit_learn

RECORDED = json.loads((Path(__file__).parent / "recorded_queues.json").read_text())
"""Counts of CAM values in the dynamic thresholds' queues (10 batches of 16) of two trained models, and their ξ.

They are those of the table msrc14/cosa, seed 0, after its 230 steps: the row with DT alone, and that with all parts,
which has two.
"""


def best_cuts(values: np.ndarray, fit: Mixture, unit: float = 1.0) -> tuple[int, int]:
    """How many of the sorted values lie below the best ξ, by trying all: two readings of CoSA's equation 6.

    The likelihood of all values, those below ξ being the first component's and the others the second's, which is the
    product of the equation's two products; and the equation's sum of the two as printed. Both by their logarithms.
    unit: what the values are measured in.
    """
    below, above = [0.0], [0.0]
    weights, means, stds = (part.tolist() for part in fit[:3])
    densities = [
        [math.log(w) - 0.5 * ((x - m) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi) / unit) for x in sorted(values)]
        for w, m, s in zip(weights, means, stds)
    ]
    for first, second in zip(densities[0], reversed(densities[1])):
        below.append(below[-1] + first)
        above.append(above[-1] + second)
    cuts = list(zip(below, reversed(above)))
    likelihoods, sums = [b + a for b, a in cuts], [np.logaddexp(b, a) for b, a in cuts]
    return likelihoods.index(max(likelihoods)), sums.index(max(sums))


@pytest.mark.parametrize("make", [*QUEUES, *ONE_MODE])
def test_no_other_threshold_makes_the_values_more_likely(make) -> None:
    """Equation 6, by trying every ξ: the best is the crossing, or where there is none, not between the means."""
    values = make(np.random.default_rng(0), 4000)
    fit = fit_two_components(torch.from_numpy(values))
    ordered, point = np.sort(values), crossing(fit)
    best, _ = best_cuts(values, fit)
    if point is None:
        assert not fit.means[0] < ordered[best - 1] < ordered[best] < fit.means[1]
    else:
        assert ordered[best - 1] < point <= ordered[best]


def test_equation_6_as_printed_depends_on_the_unit_of_the_values() -> None:
    """Of a sum of two products of thousands of densities one is all, and which depends on where densities are 1."""
    values = beta(np.random.default_rng(0), 4000)
    fit = fit_two_components(torch.from_numpy(values))
    ordered = np.sort(values)
    found = [best_cuts(values, fit, unit) for unit in (1.0, 100.0, 0.01)]
    assert len({likelihood for likelihood, _ in found}) == 1
    printed = [ordered[min(cut, 3999)] for _, cut in found]
    assert printed[0] == pytest.approx(0.327, abs=0.01) and crossing(fit) == pytest.approx(0.431, abs=0.01)
    assert max(printed) - min(printed) > 0.5


@pytest.mark.parametrize("name", RECORDED)
def test_agrees_with_scikit_learn_on_recorded_queues(name: str) -> None:
    counts = np.array(RECORDED[name]["counts"])
    values = np.repeat(np.arange(len(counts)) / (len(counts) - 1), counts)
    compare_with_scikit_learn(values, 1e-10, 10_000)
    fit = fit_two_components(torch.from_numpy(values))
    assert crossing(fit) == pytest.approx(RECORDED[name]["xi"], abs=1e-4), "what the training had"
    best, _ = best_cuts(values, fit)
    assert abs(np.sort(values)[best] - RECORDED[name]["xi"]) < 2 / 1023


def test_a_recorded_queue_gives_its_threshold_again() -> None:
    counts = torch.tensor(RECORDED["dt"]["counts"])
    values = torch.arange(1024).repeat_interleave(counts).float() / 1023
    threshold = DynamicThreshold(10, 0.2)
    for part in values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))].chunk(10):
        threshold.update(part.view(1, 1, 1, -1), torch.ones(1, 1))
    assert float(threshold.value) == pytest.approx(RECORDED["dt"]["xi"], abs=1e-4)
