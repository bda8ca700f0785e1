"""Which tags are probably wrong: classifiers on frozen features, each asked about photos that it was not fitted to."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor
from torch.nn import functional as F

from tagmask.evaluate.confusion import LabelError, to_numpy
from tagmask.evaluate.ranking import average_precision

RIDGE = 0.01
"""Strength of the regressions' ridge."""
ODDS = 20.0
"""How many times a photo must lower the odds of a given tag, or raise those of a missing one, to be listed."""
LEARNED = 0.5
"""Average precision from which on a class's scores are believed."""


class Suspect(NamedTuple):
    """A tag that is probably wrong. photo: its row. tag: the class. given: whether the photo is tagged with it, so
    that it would be wrong; else it would be missing. score: probability in [0,1] that the class is there. odds: how
    many times less likely the tag as it stands is by the photo than by the class's frequency alone."""

    photo: int
    tag: int
    given: bool
    score: float
    odds: float


def out_of_fold(features: Any, tags: Any, folds: int = 5, ridge: float = RIDGE, seed: int = 0) -> np.ndarray:
    """Probability of each class for each photo, by a logistic regression that was fitted to the other folds' photos.

    One regression a class on features that are standardised over the photos it is fitted to. It has the smallest sum
    of the photos' cross entropies and ``ridge / 2`` times the mean square of weights, which are of features over the
    root of their number: so ``ridge`` does not depend on that number. The bias is free.

    features: (N,D). tags: (N,C) of 0/1. folds: at most N. seed: which photos are a fold; those of a class are spread
    evenly over the folds. Returns float64 (N,C). Raises LabelError for shapes that differ and fewer than two photos or
    folds.
    """
    x = torch.as_tensor(to_numpy(features), dtype=torch.float64)
    y = torch.as_tensor(to_numpy(tags), dtype=torch.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise LabelError(f"Features {tuple(x.shape)} and tags {tuple(y.shape)} must be of the same photos.")
    folds = min(folds, len(x))
    if folds < 2:
        raise LabelError(f"{len(x)} photos in {folds} folds: none is left to learn from; give two at least.")
    part = torch.from_numpy(spread(to_numpy(tags), folds, seed))
    result = torch.zeros_like(y)
    for fold in range(folds):
        held = part == fold
        if held.any():
            result[held] = _fitted(x[~held], y[~held], x[held], ridge)
    return result.numpy()


def spread(tags: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """int64 (N,): the fold of each photo. Photos with the same tags are dealt out in turn, in a drawn order."""
    order = np.random.default_rng(seed).permutation(len(tags))
    order = order[np.lexsort(tags[order].T)]
    result = np.empty(len(tags), dtype=np.int64)
    result[order] = np.arange(len(tags)) % folds
    return result


def _fitted(x: Tensor, y: Tensor, asked: Tensor, ridge: float) -> Tensor:
    """Probabilities (M,C) of the features ``asked`` (M,D), by regressions on x (N,D) and y (N,C)."""
    mean, deviation = x.mean(0), x.std(0, unbiased=False)
    scale = deviation.clamp(min=1e-8) * x.shape[1] ** 0.5
    kept = deviation > 1e-8
    x, asked = ((part - mean) / scale * kept for part in (x, asked))
    weights = torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(y.shape[1], dtype=x.dtype, requires_grad=True)
    solver = torch.optim.LBFGS([weights, bias], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.binary_cross_entropy_with_logits(x @ weights + bias, y, reduction="sum")
        value = value + ridge / 2 * weights.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[arg-type]
    return (asked @ weights + bias).detach().sigmoid()


def suspects(scores: Any, tags: Any) -> list[Suspect]:
    """Tags that are given or missing although the photo speaks against it, the most suspicious first.

    The odds of a class are p / (1 − p), by the photo's score and by the class's frequency among the tags. Where the
    photo lowers them to 1 / ``ODDS`` or less, a given tag is listed, and where it raises them ``ODDS`` times or more, a
    missing one: so a rare class and a frequent one need the same evidence. Classes whose average precision is below
    ``LEARNED`` have no suspects: their scores say too little.

    scores: (N,C) of photos that they were not learned from, as ``out_of_fold`` gives them. tags: (N,C) of 0/1. Raises
    LabelError for shapes that differ.
    """
    scores, tags = to_numpy(scores).astype(np.float64), to_numpy(tags) > 0
    learned = np.nan_to_num(average_precision(scores, tags)) >= LEARNED
    frequency = (tags.sum(axis=0) + 0.5) / (len(tags) + 1)
    against = np.where(tags, -1, 1) * (logit(scores.clip(1e-9, 1 - 1e-9)) - logit(frequency))
    listed = np.argwhere((against >= np.log(ODDS)) & learned)
    found = [
        Suspect(int(n), int(c), bool(tags[n, c]), float(scores[n, c]), float(np.exp(against[n, c]))) for n, c in listed
    ]
    return sorted(found, key=lambda suspect: -suspect.odds)
