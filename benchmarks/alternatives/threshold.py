"""The two-component fit behind the dynamic threshold beside scikit-learn's mixture model.

157,000 values are a queue of 100 batches of 2 images on a 28×28 grid. scikit-learn's default settings stop when a
step changes the mean log-likelihood by less than 1e-3, which leaves the crossing up to 0.1 away from where the fit
would end; ``scikit-learn-converged`` goes on to where ours does. The case ``steps`` is what ten training steps with
auxiliary terms do: they put ten batches in each of two full queues, and fit each queue once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import count

import numpy as np
import torch
from torch import Tensor

from alternatives import Case, with_optional
from tagmask.cam import DynamicThreshold, Mixture, crossing, fit_two_components

QUEUE, IMAGES, CLASSES, SIDE = 100, 2, 20, 28
STEPS = 10
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
        found.append(Case("threshold", name, shape, target=">= 50x scikit-learn", **chosen))
    chosen = with_optional({"ours": steps}, {"scikit-learn": ("sklearn", steps_scikit_learn)})
    shape = f"{STEPS} steps, 2 full queues of {QUEUE} batches of {IMAGES}x{CLASSES}x{SIDE}x{SIDE}, compared: crossings"
    found.append(Case("threshold", "steps", shape, target=f"<= {3 * STEPS} ms", **chosen))
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


def queue(make: Callable[[], np.ndarray]) -> Tensor:
    """CAM maxima (QUEUE,IMAGES,SIDE,SIDE) of as many batches, shuffled."""
    values = torch.from_numpy(make()).float()
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    return values[: QUEUE * IMAGES * SIDE * SIDE].view(QUEUE, IMAGES, SIDE, SIDE)


def steps(device: torch.device) -> Callable[[], Tensor]:
    tags = torch.zeros(IMAGES, CLASSES, device=device)
    tags[:, 3] = 1
    queues = []
    for make in (apart, relu):
        threshold, batches = DynamicThreshold(QUEUE).to(device), []
        for maxima in queue(make).to(device):
            cams = torch.rand(IMAGES, CLASSES, SIDE, SIDE, device=device)
            cams[:, 3] = maxima
            threshold.update(cams, tags)
            batches.append(cams)
        queues.append((threshold, batches))
    turn = count()

    def run() -> Tensor:
        for _ in range(STEPS):
            # The batch that goes in is the one that drops out, so that the queues stay as they are.
            now = next(turn) % QUEUE
            found = [threshold.update(batches[now], tags).cpu() for threshold, batches in queues]
        return torch.stack(found)

    return run


def steps_scikit_learn(device: torch.device) -> Callable[[], Tensor]:
    fits = [scikit_learn(lambda make=make: without_zeros(queue(make)), {}, device) for make in (apart, relu)]
    return lambda: torch.stack([fit() for fit in fits])


def without_zeros(values: Tensor) -> np.ndarray:
    """What a dynamic threshold counts: values that do not round to 0."""
    return values[values >= 0.5 / 1023].double().numpy()


def point(mixture: Mixture) -> Tensor:
    found = crossing(mixture)
    return torch.tensor(math.nan if found is None else found)
