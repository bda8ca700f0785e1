"""What ``tagmask doctor`` computes: stored numbers against loops, and builds of torch that compute wrongly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tagmask.errors import TrainingError
from tagmask.workflow import self_test
from tests.refine.test_lattice import loop_filter


def test_stored_probabilities_are_those_of_a_loop() -> None:
    """Mean field (see ``DenseCRF``) over the loop's lattice, in float64. Pixels of x = 0 lie between two simplices, and
    which points the lattice has depends on the side: 1e-7 is the side that tagmask takes."""
    images, probs = self_test.crf_input()
    crf, (classes, height, width) = self_test.CRF, probs.shape[1:]
    places = np.array([(x + 1e-7, y) for y in range(height) for x in range(width)], dtype=float)
    colours = images[0].flatten(1).T.double().numpy()
    kernels = [
        (crf.gaussian_weight, places / crf.gaussian_sxy),
        (crf.bilateral_weight, np.hstack([places / crf.bilateral_sxy, colours / crf.bilateral_srgb])),
    ]
    scales = [loop_filter(features, np.ones((1, len(places))))[0] ** -0.5 for _, features in kernels]
    log = np.log(np.clip(probs[0].double().flatten(1).numpy(), 1e-5, 1))
    current = np.exp(log)
    for _ in range(crf.iterations):
        logits = log.copy()
        for (weight, features), scale in zip(kernels, scales):
            logits += weight * scale * loop_filter(features, current * scale)
        current = np.exp(logits - logits.max(0))
        current /= current.sum(0)
    found = current.reshape(classes, height, width)
    np.testing.assert_allclose(self_test.CRF_EXPECTED, [found[:, y, x] for y, x in self_test.CRF_PIXELS], atol=1e-5)


def test_products_that_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "float32" in self_test.check_sums(torch.device("cpu"))
    right = torch.nn.functional.conv2d
    for broken in (lambda *a: right(*a) * torch.nan, lambda *a: right(*a) + 1):
        monkeypatch.setattr(self_test.F, "conv2d", broken)
        with pytest.raises(TrainingError, match="convolution in float32 on cpu"):
            self_test.check_sums(torch.device("cpu"))


def test_a_tiny_training_and_its_mask() -> None:
    assert "in 30 steps" in self_test.check_training()


def test_losses_that_are_no_numbers_or_do_not_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "LOSS", 0.1)
    with pytest.raises(TrainingError, match="not below 0.1"):
        self_test.check_training()
    right = torch.nn.functional.batch_norm
    monkeypatch.setattr(torch.nn.functional, "batch_norm", lambda *a, **k: right(*a, **k) * torch.nan)
    with pytest.raises(TrainingError, match="not finite|NaN|nan"):
        self_test.check_training()


def test_a_crf_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "expected" in self_test.check_crf()
    monkeypatch.setattr(self_test, "CRF", self_test.DenseCRF(iterations=4, bilateral_sxy=6.3, bilateral_srgb=61.0))
    with pytest.raises(TrainingError, match="CRF"):
        self_test.check_crf()
