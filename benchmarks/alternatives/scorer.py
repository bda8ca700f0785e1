"""The streaming confusion matrix beside numpy.bincount and scikit-learn, on a pair of 8-bit label maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from alternatives import Case, with_optional
from tagmask.evaluate import ConfusionMatrix

CLASSES = 21


def cases() -> list[Case]:
    forms = {"ours": ours, "bincount": bincount, "bincount-masked": bincount_masked}
    chosen = with_optional(forms, {"scikit-learn": ("sklearn", scikit_learn)})
    wide = {"ours": partial(ours, dtype=np.int64), "bincount": partial(bincount, dtype=np.int64)}
    return [
        Case("scorer", "photo", f"500x375 uint8, {CLASSES} classes", target=">= 1x bincount", **chosen),
        Case("scorer", "int64", f"500x375 int64, {CLASSES} classes", target=">= 1x bincount", forms=wide),
    ]


def pair() -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth as photos have them: blocks of one class, one pixel in ten wrong, all labels in 0..20."""
    rng = np.random.default_rng(0)
    target = np.kron(rng.integers(0, CLASSES, (15, 20)), np.ones((25, 25))).astype(np.uint8)
    wrong = rng.random(target.shape) < 0.1
    return np.where(wrong, rng.integers(0, CLASSES, target.shape), target).astype(np.uint8), target


def ours(device: torch.device, dtype: type = np.uint8) -> Callable[[], Tensor]:
    pred, target = (torch.from_numpy(x.astype(dtype)).to(device) for x in pair())
    return lambda: torch.from_numpy(ConfusionMatrix(CLASSES).update(pred, target).matrix)


def bincount(device: torch.device, dtype: type = np.uint8) -> Callable[[], Tensor]:
    """The least that counts pairs: no check of labels, none ignored."""
    pred, target = (x.astype(dtype) for x in pair())

    def run() -> Tensor:
        joint = target.ravel().astype(np.int64) * CLASSES + pred.ravel()
        return torch.from_numpy(np.bincount(joint, minlength=CLASSES**2).reshape(CLASSES, CLASSES))

    return run


def bincount_masked(device: torch.device) -> Callable[[], Tensor]:
    """As released codes count: pixels whose truth is no class are left out first."""
    pred, target = pair()

    def run() -> Tensor:
        known = (target >= 0) & (target < CLASSES)
        joint = CLASSES * target[known].astype(np.int64) + pred[known]
        return torch.from_numpy(np.bincount(joint, minlength=CLASSES**2).reshape(CLASSES, CLASSES))

    return run


def scikit_learn(device: torch.device) -> Callable[[], Tensor]:
    from sklearn.metrics import confusion_matrix

    pred, target = pair()
    confusion_matrix(target.ravel()[:100], pred.ravel()[:100], labels=range(CLASSES))
    return lambda: torch.from_numpy(confusion_matrix(target.ravel(), pred.ravel(), labels=range(CLASSES)))
