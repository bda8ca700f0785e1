"""The two-component fit behind the dynamic threshold beside scikit-learn's mixture model.

157,000 values are a queue of 100 batches of 2 images on a 28×28 grid. scikit-learn's default settings stop when a
step changes the mean log-likelihood by less than 1e-3, which leaves the crossing up to 0.1 away from where the fit
would end; ``scikit-learn-converged`` goes on to where ours does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from alternatives import Case, with_optional
from tagmask.cam import Mixture, crossing, fit_two_components

VALUES = 157_000


def cases() -> list[Case]:
    found = []
    for name, make in (("apart", apart), ("relu", relu)):
        optional = {
            "scikit-learn": ("sklearn", partial(scikit_learn, make, {})),
            "scikit-learn-converged": ("sklearn", partial(scikit_learn, make, {"tol": 1e-11, "max_iter": 10_000})),
        }
        chosen = with_optional({"ours": partial(ours, make)}, optional)
        shape = f"{VALUES} values, compared: crossing"
        found.append(Case("threshold", name, shape, target=">= 100x scikit-learn, <= 3 ms", **chosen))
    return found


def apart() -> np.ndarray:
    """CAMs of a trained network: background low, foreground high."""
    rng = np.random.default_rng(0)
    background = rng.beta(2, 8, VALUES * 7 // 10)
    return np.concatenate([background, rng.beta(8, 3, VALUES - len(background))])


def relu() -> np.ndarray:
    """CAMs early in training: much background cut off at 0, a broad foreground."""
    rng = np.random.default_rng(1)
    background = rng.normal(0.1, 0.15, VALUES * 6 // 10)
    return np.concatenate([background, rng.normal(0.65, 0.2, VALUES - len(background))]).clip(0, 1)


def ours(make: Callable[[], np.ndarray], device: torch.device) -> Callable[[], Tensor]:
    values = torch.from_numpy(make()).float().to(device)
    fit_two_components(values[:1000])
    return lambda: point(fit_two_components(values))


def scikit_learn(make: Callable[[], np.ndarray], settings: dict, device: torch.device) -> Callable[[], Tensor]:
    from sklearn.mixture import GaussianMixture

    values = make()[:, None]
    GaussianMixture(2).fit(values[:1000])

    def run() -> Tensor:
        model = GaussianMixture(2, random_state=0, **settings).fit(values)
        order = np.argsort(model.means_[:, 0])
        parts = (model.weights_, model.means_[:, 0], np.sqrt(model.covariances_[:, 0, 0]))
        return point(Mixture(*(torch.from_numpy(part[order]) for part in parts)))

    return run


def point(mixture: Mixture) -> Tensor:
    found = crossing(mixture)
    return torch.tensor(math.nan if found is None else found)
