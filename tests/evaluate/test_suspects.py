"""Wrong tags: out-of-fold regressions against scikit-learn, and drawn features whose wrong tags are known."""

from __future__ import annotations

import numpy as np
import pytest

from tagmask.errors import DataError
from tagmask.evaluate.suspects import out_of_fold, spread, suspects


def drawn(photos: int = 120, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that show the tags with noise, and the tags."""
    rng = np.random.default_rng(seed)
    tags = (rng.random((photos, classes)) < 0.3).astype(float)
    return tags @ rng.normal(size=(classes, 12)) * 2 + rng.normal(size=(photos, 12)), tags


def test_out_of_fold_equals_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    features, tags = drawn()
    ridge = 2.0
    found = out_of_fold(features, tags, folds=4, ridge=ridge, seed=1)
    part = spread(tags, 4, 1)
    for fold in range(4):
        fit, held = part != fold, part == fold
        x = (features - features[fit].mean(0)) / features[fit].std(0) / features.shape[1] ** 0.5
        for c in range(tags.shape[1]):
            model = linear.LogisticRegression(C=1 / ridge, tol=1e-8, max_iter=1000).fit(x[fit], tags[fit, c])
            np.testing.assert_allclose(found[held, c], model.predict_proba(x[held])[:, 1], atol=1e-4)


def test_folds_share_a_class_evenly() -> None:
    tags = np.zeros((50, 3))
    tags[:10, 0] = tags[10:30, 1] = 1
    part = spread(tags, 5, 3)
    for rows in (slice(0, 10), slice(10, 30)):
        assert np.ptp(np.bincount(part[rows], minlength=5)) <= 1


def test_wrong_tags_are_found_and_right_ones_left() -> None:
    features, tags = drawn(200)
    given = tags.copy()
    wrong = {(3, 0), (50, 1), (77, 2), (120, 3)}
    for photo, tag in wrong:
        given[photo, tag] = 1 - given[photo, tag]
    found = suspects(out_of_fold(features, given), given)
    assert len(wrong & {(s.photo, s.tag) for s in found}) >= 3
    assert all(s.given == bool(given[s.photo, s.tag]) for s in found)


def test_features_that_show_nothing_accuse_nobody() -> None:
    _, tags = drawn(150)
    noise = np.random.default_rng(5).normal(size=(150, 12))
    assert len(suspects(out_of_fold(noise, tags), tags)) == 0


def test_what_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(DataError):
        out_of_fold(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(DataError):
        out_of_fold(np.zeros((1, 2)), np.zeros((1, 2)))
