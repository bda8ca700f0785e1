"""The two-component fit against EM written as loops, and against scikit-learn run to convergence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tagmask import comm
from tagmask.cam import DynamicThreshold, Mixture, crossing, fit_two_components, mixture
from tagmask.errors import TagmaskError


def beta(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.concatenate([rng.beta(2, 8, n * 7 // 10), rng.beta(8, 3, n * 3 // 10)])


def gauss(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.concatenate([rng.normal(0.2, 0.1, n * 6 // 10), rng.normal(0.7, 0.15, n * 4 // 10)]).clip(0, 1)


def close(rng: np.random.Generator, n: int) -> np.ndarray:
    """Half merged: EM needs hundreds of steps."""
    return np.concatenate([rng.normal(0.35, 0.12, n * 6 // 10), rng.normal(0.6, 0.15, n * 4 // 10)]).clip(0, 1)


def relu(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.concatenate([rng.normal(0.1, 0.15, n * 6 // 10), rng.normal(0.65, 0.2, n * 4 // 10)]).clip(0, 1)


def many_zeros(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.concatenate([np.zeros(n // 2), rng.beta(1.2, 5, n // 4), rng.beta(5, 2, n // 4)])


def few_zeros(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.concatenate([np.zeros(n // 10), rng.beta(1.2, 5, n * 5 // 10), rng.beta(5, 2, n * 4 // 10)])


def decay(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.concatenate([rng.exponential(0.12, n * 7 // 10), rng.beta(6, 2, n * 3 // 10)]).clip(0, 1)


def rare(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.concatenate([rng.beta(2, 8, n * 95 // 100), rng.beta(9, 3, n * 5 // 100)])


def narrow(rng: np.random.Generator, n: int) -> np.ndarray:
    """One mode, as are the next two: EM needs thousands of steps, each of them too short to be seen."""
    return rng.normal(0.4, 0.05, n)


def middling(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(0.4, 0.1, n).clip(0, 1)


def broad(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(0.4, 0.15, n).clip(0, 1)


ONE_MODE = [narrow, middling, broad]
QUEUES = [beta, gauss, close, relu, many_zeros, few_zeros, decay, rare]


def density(x: float, weight: float, mean: float, std: float) -> float:
    return weight * math.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def loop_em(values: list[float], split: float, steps: int) -> tuple[list[float], list[float], list[float]]:
    """Expectation maximisation, value by value, begun by cutting at ``split``."""
    belongs = [[float(x < split), float(x >= split)] for x in values]
    for _ in range(steps + 1):
        weights, means, stds = [], [], []
        for k in range(2):
            mass = sum(b[k] for b in belongs)
            mean = sum(b[k] * x for b, x in zip(belongs, values)) / mass
            weights.append(mass / len(values))
            means.append(mean)
            stds.append(math.sqrt(sum(b[k] * (x - mean) ** 2 for b, x in zip(belongs, values)) / mass))
        belongs = []
        for x in values:
            parts = [density(x, weights[k], means[k], stds[k]) for k in range(2)]
            belongs.append([p / sum(parts) for p in parts])
    return weights, means, stds


@pytest.mark.parametrize("make", [beta, gauss, relu])
def test_equals_a_loop_over_values(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "TOLERANCE", 1e-9)
    values = (make(np.random.default_rng(3), 400) * 1023).round() / 1023
    fit = fit_two_components(torch.from_numpy(values))
    weights, means, stds = loop_em(values.tolist(), 0.45, 300)
    np.testing.assert_allclose(fit.weights, weights, atol=2e-4)
    np.testing.assert_allclose(fit.means, means, atol=2e-4)
    np.testing.assert_allclose(fit.stds, stds, atol=2e-4)


def compare_with_scikit_learn(values: np.ndarray, tolerance: float, steps: int) -> None:
    sklearn_mixture = pytest.importorskip("sklearn.mixture")
    model = sklearn_mixture.GaussianMixture(2, random_state=0, tol=tolerance, max_iter=steps).fit(values[:, None])
    assert model.converged_
    order = np.argsort(model.means_[:, 0])
    parts = model.weights_, model.means_[:, 0], np.sqrt(model.covariances_[:, 0, 0])
    theirs = Mixture(*(torch.from_numpy(part[order]) for part in parts))
    ours = fit_two_components(torch.from_numpy(values).float())
    assert ours.converged
    expected, got = crossing(theirs), crossing(ours)
    assert (expected is None) == (got is None)
    if expected is not None and got is not None:
        assert abs(got - expected) < 0.005
    for a, b in zip(ours[:3], theirs[:3]):
        np.testing.assert_allclose(a, b, atol=0.01)


@pytest.mark.parametrize("make", QUEUES)
def test_agrees_with_scikit_learn_run_to_convergence(make) -> None:
    compare_with_scikit_learn(make(np.random.default_rng(0), 4000), 1e-10, 10_000)


@pytest.mark.parametrize("make", QUEUES)
@pytest.mark.parametrize("count", [4000, 60_000])
def test_em_stands_still_where_it_has_converged(make, count: int) -> None:
    values = torch.from_numpy(make(np.random.default_rng(0), count))
    fit = fit_two_components(values)
    assert fit.converged
    x = (values * 1023).round().double() / 1023
    weights, means, stds = (part.tolist() for part in fit[:3])
    parts = [w * torch.exp(-0.5 * ((x - m) / s) ** 2) / s for w, m, s in zip(weights, means, stds)]
    for k in range(2):
        belongs = parts[k] / (parts[0] + parts[1])
        mass = float(belongs.sum())
        mean = float((belongs * x).sum()) / mass
        std = max(math.sqrt(float((belongs * (x - mean) ** 2).sum()) / mass), 1e-3)
        assert mass / count == pytest.approx(weights[k], abs=2e-6)
        assert (mean, std) == (pytest.approx(means[k], abs=2e-6), pytest.approx(stds[k], abs=2e-6))


@pytest.mark.parametrize("make", ONE_MODE)
def test_what_has_not_converged_is_said_and_moves_no_threshold(make, monkeypatch) -> None:
    values = torch.from_numpy(make(np.random.default_rng(0), 4000))
    assert not fit_two_components(values).converged
    cams, tags = values.float().view(1, 1, 40, 100), torch.ones(1, 1)
    module = DynamicThreshold(queue=4, initial=0.3)
    assert float(module.update(cams, tags)) == float(module.value) == pytest.approx(0.3)
    monkeypatch.setattr(mixture, "STEPS", 3)
    assert crossing(fit_two_components(values)) is not None, "it looks like a threshold"
    two_modes = torch.from_numpy(beta(np.random.default_rng(0), 4000)).float().view(1, 1, 40, 100)
    module = DynamicThreshold(initial=0.3)
    assert float(module.update(two_modes, tags)) == pytest.approx(0.3) and module.held


def test_a_handful_of_outliers_is_no_component() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(0.5, 0.05, 39_990), np.full(10, 0.05)])
    fit = fit_two_components(torch.from_numpy(values))
    assert fit.converged and fit.weights[0] < 1e-3 and crossing(fit) is not None
    module = DynamicThreshold(initial=0.4)
    assert float(module.update(torch.from_numpy(values).float().view(1, 1, 200, 200), torch.ones(1, 1))) == float(
        torch.tensor(0.4)
    )


def test_finds_the_components_it_was_drawn_from() -> None:
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.normal(0.75, 0.06, 30_000), rng.normal(0.25, 0.08, 70_000)])
    fit = fit_two_components(torch.from_numpy(values.clip(0, 1)).reshape(100, 10, 100))
    np.testing.assert_allclose(fit.weights, [0.7, 0.3], atol=0.005)
    np.testing.assert_allclose(fit.means, [0.25, 0.75], atol=0.005)
    np.testing.assert_allclose(fit.stds, [0.08, 0.06], atol=0.005)
    assert all(part.dtype == torch.float64 and part.shape == (2,) for part in fit[:3])


@pytest.mark.parametrize(
    ("weights", "means", "stds"),
    [
        ((0.5, 0.5), (0.2, 0.8), (0.1, 0.1)),
        ((0.9, 0.1), (0.2, 0.8), (0.1, 0.1)),
        ((0.7, 0.3), (0.2, 0.6), (0.05, 0.2)),
        ((0.3, 0.7), (0.1, 0.6), (0.2, 0.05)),
        ((0.5, 0.5), (0.0, 0.5), (0.001, 0.3)),
        ((0.5, 0.5), (0.2, 0.8), (0.1, 0.1 + 1e-12)),
    ],
)
def test_weighted_densities_are_equal_at_the_crossing(weights, means, stds) -> None:
    point = crossing(Mixture(*map(torch.tensor, (weights, means, stds))))
    assert point is not None and means[0] < point < means[1]
    sides = [density(point, w, m, s) for w, m, s in zip(weights, means, stds)]
    assert sides[0] == pytest.approx(sides[1], rel=1e-4)


@pytest.mark.parametrize(
    ("weights", "means", "stds"),
    [
        ((0.999, 0.001), (0.4, 0.5), (0.2, 0.2)),  # the first outweighs the second everywhere between
        ((0.001, 0.999), (0.4, 0.5), (0.2, 0.2)),
        ((0.5, 0.5), (0.4, 0.4), (0.1, 0.2)),
        ((1.0, 0.0), (0.2, 0.8), (0.1, 0.1)),
    ],
)
def test_no_crossing(weights, means, stds) -> None:
    assert crossing(Mixture(*map(torch.tensor, (weights, means, stds)))) is None


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 50])
def test_all_values_the_same(value: float, count: int) -> None:
    fit = fit_two_components(torch.full((count,), value))
    assert fit.means.tolist() == pytest.approx([value, value], abs=5e-4)
    assert fit.weights.tolist() == [1, 0]
    assert crossing(fit) is None


def test_two_values_and_rounding() -> None:
    fit = fit_two_components(torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.bfloat16))
    assert fit.means.tolist() == pytest.approx([0, 1], abs=1e-9)
    assert fit.weights.tolist() == pytest.approx([0.75, 0.25])
    assert 0 < (crossing(fit) or 0) < 1


def test_errors_name_the_setting_or_the_input() -> None:
    with pytest.raises(TagmaskError, match="values"):
        fit_two_components(torch.empty(0))
    for bad in (float("nan"), float("inf"), -float("inf"), 1.1, -0.1, -0.0004, 1.0004):
        module, cams = DynamicThreshold(), torch.tensor([0.1, bad]).view(1, 1, 1, 2)
        with pytest.raises(TagmaskError, match="NaN"):
            fit_two_components(cams)
        with pytest.raises(TagmaskError, match="NaN"):
            module.update(cams, torch.ones(1, 1))
        assert not module.batches and not module.counts.any(), "what is refused does not enter the queue"
    for settings in ({"queue": 0}, {"initial": 1.5}):
        with pytest.raises(TagmaskError, match=next(iter(settings))):
            DynamicThreshold(**settings)  # type: ignore[arg-type]
    with pytest.raises(TagmaskError, match=r"\(2, 3\)"):
        DynamicThreshold().update(torch.rand(2, 4, 3, 3), torch.ones(2, 3))
    with pytest.raises(TagmaskError, match="valid"):
        DynamicThreshold().update(torch.rand(1, 1, 3, 3), torch.ones(1, 1), torch.ones(1, 2, 3, dtype=torch.bool))


def cams_and_tags(seed: int, level: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    low, high = rng.normal(0.2, 0.08, (2, 3, 14, 14)), rng.normal(level, 0.08, (2, 3, 14, 14))
    cams = np.where(rng.random((2, 3, 14, 14)) < 0.7, low, high).clip(0, 1)
    cams[rng.random(cams.shape) < 0.1] = 0
    return torch.from_numpy(cams).float(), torch.tensor([[1, 0, 1], [0, 1, 0]])


def queued_values(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The largest CAM of a tagged class at each position, where it is not 0, by loops."""
    values = []
    for cams, tags in batches:
        for image, present in zip(cams, tags):
            for y in range(image.shape[1]):
                for x in range(image.shape[2]):
                    best = max([float(c[y, x]) for c, tag in zip(image, present) if tag] or [0.0])
                    if best > 0:
                        values.append(best)
    return torch.tensor(values)


def test_threshold_follows_the_last_batches_only() -> None:
    module = DynamicThreshold(queue=3, initial=0.9)
    batches = []
    for step, level in enumerate([0.5, 0.6, 0.7, 0.8, 0.9]):
        batches.append(cams_and_tags(step, level))
        before = [part.clone() for part in batches[-1]]
        result = module.update(*batches[-1])
        assert torch.equal(batches[-1][0], before[0])
        expected = crossing(fit_two_components(queued_values(batches[-3:])))
        assert float(result) == pytest.approx(expected, abs=1e-3)
        assert float(module.value) == float(result)
        result.zero_()
        assert float(module.value) != 0, "what is given back is a copy"
        result.copy_(module.value)
    assert module.counts.shape == (3, 1024)  # as small as at the start
    assert module.batches.item() == 5


def test_fits_every_few_batches_of_a_long_queue() -> None:
    module = DynamicThreshold(queue=30)
    batches = [cams_and_tags(step, 0.5 + 0.02 * step) for step in range(10)]
    found = [float(module.update(*batch)) for batch in batches]
    assert module.every == 3
    fitted = [step for step in range(1, 10) if found[step] != found[step - 1]]
    assert fitted == [1, 2, 5, 8], "the first three, then every third"
    assert found[8] == pytest.approx(crossing(fit_two_components(queued_values(batches[:9]))), abs=1e-3)
    often = DynamicThreshold(queue=30)
    often.every = 1
    assert len({float(often.update(*batch)) for batch in batches}) == 10


def test_keeps_the_threshold_where_there_is_no_crossing() -> None:
    cams, tags = cams_and_tags(0)
    module = DynamicThreshold(queue=1, initial=0.4)
    assert float(module.update(torch.zeros_like(cams), tags)) == pytest.approx(0.4)
    assert float(module.update(torch.full_like(cams, 0.6), tags)) == pytest.approx(0.4)
    assert float(module.update(cams, torch.zeros_like(tags))) == pytest.approx(0.4)
    assert float(module.update(cams[:0], tags[:0])) == pytest.approx(0.4)
    moved = float(module.update(cams, tags))
    assert moved != pytest.approx(0.4)
    assert float(module.update(torch.zeros_like(cams), tags)) == moved


def test_values_that_round_to_zero_count_as_zeros() -> None:
    cams, tags = cams_and_tags(3)
    tiny = torch.where(cams == 0, 0.4 / 1023, cams)
    assert float(DynamicThreshold().update(tiny, tags)) == float(DynamicThreshold().update(cams, tags))
    counted = DynamicThreshold()
    counted.update(torch.where(cams == 0, 0.6 / 1023, cams), tags)
    assert counted.counts[0, 1] > 0 and counted.counts[0, 0] == 0


def test_invalid_positions_give_no_values() -> None:
    cams, tags = cams_and_tags(1)
    valid = torch.ones(2, 14, 14, dtype=torch.bool)
    valid[:, :, 9:] = False
    cut = DynamicThreshold().update(cams[..., :9], tags)
    assert float(DynamicThreshold().update(cams, tags, valid)) == float(cut)
    assert float(DynamicThreshold().update(cams, tags)) != float(cut)


def test_saves_and_loads_its_state() -> None:
    module, other = (DynamicThreshold(queue=4) for _ in range(2))
    for step in range(3):
        module.update(*cams_and_tags(step))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.value, module.value)
    for step in range(3, 9):
        assert float(other.update(*cams_and_tags(step))) == float(module.update(*cams_and_tags(step)))
    assert set(module.state_dict()) == {"value", "held", "counts", "batches"}
    assert not list(module.parameters())
    assert module.half().counts.dtype == torch.int64  # the queue does not lose digits in half precision


def test_processes_are_summed(monkeypatch) -> None:
    """What the other process counted is added before the fit."""
    mine, theirs = cams_and_tags(0, 0.6), cams_and_tags(1, 0.9)
    other = DynamicThreshold()
    other.update(*theirs)
    monkeypatch.setattr(comm, "all_sum", lambda counts: counts + torch.cat([other.counts[0], counts.new_zeros(1)]))
    together = DynamicThreshold().update(*mine)
    monkeypatch.undo()
    assert float(together) == pytest.approx(crossing(fit_two_components(queued_values([mine, theirs]))), abs=1e-3)
    assert float(together) != float(DynamicThreshold().update(*mine))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_point_type(dtype: torch.dtype) -> None:
    cams, tags = cams_and_tags(2)
    expected = float(DynamicThreshold().update(cams.to(dtype).float(), tags))
    assert float(DynamicThreshold().update(cams.to(dtype), tags)) == pytest.approx(expected, abs=1e-4)
