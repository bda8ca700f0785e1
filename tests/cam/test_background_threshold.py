"""What is background: CoSA's threshold on clean maps, on values of one mode and on soft backgrounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tagmask.cam import DynamicThreshold, crossing, fit_two_components
from tagmask.cam.mixture import fit_counts
from tagmask.cam.threshold import HIGHEST, LOWEST, background_threshold
from tests.cam.test_crossing import RECORDED
from tests.cam.test_threshold import ONE_MODE, QUEUES, close, many_zeros, rare
from tests.cosa_loops import three_components_loops, threshold_loops

Draw = Callable[[np.random.Generator, int], np.ndarray]

OBJECTS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(0.5, 0.12, n),
    "low": lambda rng, n: rng.beta(2, 4, n),
    "middle": lambda rng, n: rng.beta(2, 3, n),
    "high": lambda rng, n: rng.beta(5, 2, n),
    "even": lambda rng, n: rng.uniform(0.01, 1, n),
    "two modes": lambda rng, n: np.where(rng.random(n) < 0.5, rng.normal(0.3, 0.07, n), rng.normal(0.8, 0.07, n)),
    "near modes": lambda rng, n: np.where(rng.random(n) < 0.3, rng.normal(0.4, 0.1, n), rng.normal(0.7, 0.1, n)),
}
SKEWED: dict[str, Draw] = {
    "low": lambda rng, n: rng.beta(2, 5, n),
    "high": lambda rng, n: rng.beta(5, 2, n),
    "middle": lambda rng, n: rng.beta(5, 5, n),
    "broad": lambda rng, n: rng.beta(2, 3, n),
    "gamma": lambda rng, n: rng.gamma(3, 0.08, n),
    "lognormal": lambda rng, n: rng.lognormal(-1, 0.4, n),
    "three quarters": lambda rng, n: rng.triangular(0, 0.75, 1, n),
}


def counted(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.bincount((values.clip(0, 1) * 1023 + 0.5).astype(int), minlength=1024))


def fed(values: np.ndarray, initial: float = 0.5) -> DynamicThreshold:
    """A threshold that saw the values as maps of one tagged class."""
    module = DynamicThreshold(initial=initial)
    module.update(torch.from_numpy(values.clip(0, 1)).float().view(1, 1, 1, -1), torch.ones(1, 1))
    return module


@pytest.mark.parametrize("share", [0.2, 0.5, 0.6])
@pytest.mark.parametrize("name", OBJECTS)
def test_all_that_is_not_0_is_object_on_clean_backgrounds(name: str, share: float) -> None:
    values = OBJECTS[name](np.random.default_rng(0), int(20_000 * share)).clip(0.001, 1)
    module = fed(np.concatenate([np.zeros(20_000 - len(values)), values]))
    assert float(module.value) == pytest.approx(LOWEST) and not module.held
    assert (values < LOWEST).mean() < 0.07


def clean_maps(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(4,3,28,28) maps and tags: each tagged class is a disc of values on 0."""
    y, x = np.mgrid[:28, :28]
    tags = rng.permuted(np.tile([1, 1, 0], (4, 1)), axis=1)
    draw = list(OBJECTS.values())[rng.integers(len(OBJECTS))]
    maps = np.zeros((4, 3, 28, 28))
    for image, present in zip(maps, tags):
        for c in np.flatnonzero(present):
            disc = np.hypot(y - rng.uniform(4, 24), x - rng.uniform(4, 24)) < rng.uniform(3, 10)
            image[c] = draw(rng, 28 * 28).clip(0.001, 1).reshape(28, 28) * disc
    return maps, tags


@pytest.mark.parametrize("seed", range(30))
def test_few_pixels_of_drawn_objects_are_below(seed: int) -> None:
    maps, tags = clean_maps(np.random.default_rng(seed))
    xi = float(DynamicThreshold().update(torch.from_numpy(maps), torch.from_numpy(tags)))
    objects = maps.max(1)
    assert xi == pytest.approx(LOWEST)
    assert ((objects > 0) & (objects < xi)).sum() < 0.07 * (objects > 0).sum()


def test_objects_that_fade_at_their_rims_are_parted_as_a_cut_background() -> None:
    """A known limit, with the figures of docs/methods/cosa.md."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:28, :28]
    maps = np.zeros((64, 1, 28, 28))
    for one in maps:
        distance = np.hypot(y - rng.uniform(4, 24), x - rng.uniform(4, 24))
        one[0] = (1 - distance / rng.uniform(4, 10)).clip(0, 1)
    xi = float(DynamicThreshold().update(torch.from_numpy(maps), torch.ones(64, 1)))
    assert xi == pytest.approx(0.22, abs=0.005)
    assert (maps[maps > 0] < xi).mean() == pytest.approx(0.36, abs=0.005)


@pytest.mark.parametrize("make", [*ONE_MODE, *SKEWED.values(), close])
@pytest.mark.parametrize("n", [700, 20_000])
def test_one_mode_holds_the_threshold(make: Draw, n: int) -> None:
    module = fed(make(np.random.default_rng(1), n))
    assert float(module.value) == 0.5 and module.held


@pytest.mark.parametrize("seed", [5, 9, 18, 20, 29])
def test_few_values_of_one_mode_hold_the_threshold(seed: int) -> None:
    """Two components fit a hundred values with a valley between; by the BIC they do not explain them better."""
    values = np.random.default_rng(seed).normal(0.4, 0.1, 100)
    fit = fit_two_components(torch.from_numpy(values))
    assert fit.converged and crossing(fit) is not None
    assert fed(values).held


def test_peaks_of_flat_maps_are_no_foreground() -> None:
    """As random weights give: of a map of 7×7 one value in 49 is 1, as normalisation has it, a component of its own."""
    values = np.concatenate([np.random.default_rng(0).normal(0.45, 0.1, 1960), np.full(40, 0.99999)])
    assert (crossing(fit_two_components(torch.from_numpy(values))) or 0) > 0.98
    module = fed(values, 0.4)
    assert float(module.value) == pytest.approx(0.4) and module.held


def test_bounds() -> None:
    """A soft background that has all but gone, and backgrounds that are almost as high as the objects."""
    rng = np.random.default_rng(0)
    tiny = np.concatenate([np.zeros(9000), rng.exponential(0.005, 6000), rng.beta(8, 3, 5000)])
    assert 0 < (crossing(fit_two_components(torch.from_numpy(tiny[9000:]))) or 0) < LOWEST
    assert background_threshold(counted(tiny)) == LOWEST
    high = np.concatenate([rng.normal(0.7, 0.05, 9000), rng.normal(0.96, 0.02, 3000)]).clip(0, 1)
    assert (crossing(fit_two_components(torch.from_numpy(high))) or 0) > HIGHEST
    assert background_threshold(counted(high)) is None


@pytest.mark.parametrize("make", [make for make in QUEUES if make not in (close, rare)])
def test_a_soft_background_is_parted_at_the_crossing(make: Draw) -> None:
    values = make(np.random.default_rng(0), 4000)
    expected = crossing(fit_two_components(torch.from_numpy(values[values >= 0.5 / 1023])))
    assert expected is not None and expected > 0.2
    module = fed(values, 0.9)
    assert float(module.value) == pytest.approx(expected, abs=1e-6) and not module.held


@pytest.mark.parametrize(("zeros", "near"), [(0.26, 0.05), (0.8, 0.2)])
def test_a_soft_background_goes_on_above_0(zeros: float, near: float) -> None:
    """It may be few of the values above 0 that lie next to it, or few beside the zeros: not both."""
    rng = np.random.default_rng(0)
    if zeros < 0.5:
        values = np.concatenate([rng.normal(-0.1, 0.2, 7400), rng.normal(0.8, 0.15, 12_600)]).clip(0, 1)
    else:
        values = np.concatenate([np.zeros(16_000), rng.exponential(0.08, 1500), rng.beta(5, 2, 2500)]).clip(0, 1)
    counts = counted(values)
    shares = int(counts[1:52].sum()) / torch.tensor([int(counts[1:].sum()), int(counts[0])])
    assert float(counts[0] / counts.sum()) == pytest.approx(zeros, abs=0.02) and shares[0] < near
    assert float(shares.min()) < LOWEST < float(shares.max())
    assert (background_threshold(counts) or 0) > 0.15


@pytest.mark.parametrize("rest", [0, 31_360])
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_queues_are_parted_as_they_were(name: str, rest: int) -> None:
    """``rest``: all positions of the queue's maps, where those that were not counted are taken for 0."""
    counts = torch.tensor(RECORDED[name]["counts"])
    counts[0] = max(0, rest - int(counts.sum()))
    assert background_threshold(counts) == pytest.approx(RECORDED[name]["xi"], abs=1e-4)


def mixed(rng: np.random.Generator) -> np.ndarray:
    """Some hundred values of up to three kinds: 0, a background from anywhere, objects."""
    zeros, soft, objects = rng.integers(0, 500, 3)
    background = rng.normal(rng.uniform(-0.1, 0.4), rng.uniform(0.02, 0.2), soft)
    draw = list(OBJECTS.values())[rng.integers(len(OBJECTS))]
    return np.concatenate([np.zeros(zeros), background, draw(rng, objects), [0.3]]).clip(0, 1)


DRAWN = {f"mixed {seed}": mixed(np.random.default_rng(seed)) for seed in range(12)}
DRAWN |= {make.__name__: make(np.random.default_rng(2), 300) for make in (*QUEUES, *ONE_MODE)}


@pytest.mark.parametrize("name", DRAWN)
def test_equals_loops(name: str) -> None:
    values = DRAWN[name].astype(np.float32)
    found, expected = background_threshold(counted(values)), threshold_loops(values.tolist())
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-6))
    assert float(fed(values, 0.7).value) == pytest.approx(0.7 if expected is None else expected, abs=1e-6)


def test_the_loops_decide_every_way() -> None:
    found = [background_threshold(counted(values)) for values in DRAWN.values()]
    assert None in found and LOWEST in found and sum(xi is not None and xi > LOWEST for xi in found) > 5


@pytest.mark.parametrize("make", [many_zeros, mixed])
def test_the_component_at_0_takes_the_zeros_and_nothing_else(make) -> None:
    values = make(np.random.default_rng(3), 600) if make is many_zeros else make(np.random.default_rng(6))
    counts = counted(values)
    pairs = [(i / 1023, float(n)) for i, n in enumerate(counts.tolist()) if n]
    zero, *parts, converged = three_components_loops(pairs)
    assert zero == int(counts[0]) / int(counts.sum()) and zero > 0.1
    counts[0] = 0
    fit = fit_counts(counts)
    assert fit.converged == converged
    theirs = np.array(parts)
    np.testing.assert_allclose(fit.weights * (1 - zero), theirs[:, 0], atol=1e-6)
    np.testing.assert_allclose(fit.means, theirs[:, 1], atol=1e-6)
    np.testing.assert_allclose(fit.stds, theirs[:, 2], atol=1e-6)


def test_zeros_count_where_a_tagged_photo_is() -> None:
    rng = np.random.default_rng(0)
    cams = torch.from_numpy(np.where(rng.random((3, 2, 6, 8)) < 0.5, 0, rng.random((3, 2, 6, 8)))).float()
    tags, valid = torch.tensor([[1, 0], [1, 1], [0, 0]]), torch.ones(3, 6, 8, dtype=torch.bool)
    valid[0, 4:] = False
    module = DynamicThreshold()
    module.update(cams, tags, valid)
    zeros = number = 0
    for b in range(2):
        for y, x in np.ndindex(6, 8):
            if valid[b, y, x]:
                number += 1
                zeros += all(float(cams[b, c, y, x]) < 0.5 / 1023 for c in range(2) if tags[b, c])
    assert (int(module.counts[0, 0]), int(module.counts[0].sum())) == (zeros, number) and zeros > 20


def test_says_until_the_next_fit_that_it_is_held() -> None:
    rng, tags = np.random.default_rng(0), torch.ones(1, 1)
    one, two = (torch.from_numpy(make(rng, 4000)).float().view(1, 1, 1, -1) for make in (ONE_MODE[0], QUEUES[0]))
    module, other = DynamicThreshold(1), DynamicThreshold(1)
    assert not module.held, "there was no fit"
    said = []
    for cams in (two, one, one, two):
        module.update(cams, tags)
        said.append(bool(module.held))
    assert said == [False, True, True, False]
    module.update(torch.zeros_like(one), tags)
    other.load_state_dict(module.state_dict())
    assert module.held and other.held
