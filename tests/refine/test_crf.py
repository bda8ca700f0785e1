"""Dense CRF: mean field with exact Gaussians against loops, the lattice against pydensecrf2, and anything odd."""

import importlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tagmask.data import read_image
from tagmask.data.scenes import scene
from tagmask.errors import ConfigError, TagmaskError
from tagmask.refine import PRESETS, DenseCRF, label_probabilities
from tagmask.refine import crf as module


def noise(count: int = 1, classes: int = 3, height: int = 6, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    return images, (torch.randn(count, classes, height, width, generator=generator) * 2).softmax(1)


def loop_mean_field(image: np.ndarray, probs: np.ndarray, crf: DenseCRF) -> np.ndarray:
    """Mean field with exact Gaussians, pixel by pixel, float64. (3,H,W), (K,H,W) → (K,H,W)."""
    classes, height, width = probs.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    image = image.astype(float)

    def gaussian(p: tuple, q: tuple) -> float:
        return math.exp(-((p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2) / (2 * crf.gaussian_sxy**2))

    def bilateral(p: tuple, q: tuple) -> float:
        place = ((p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2) / (2 * crf.bilateral_sxy**2)
        colour = sum((image[c][p] - image[c][q]) ** 2 for c in range(3)) / (2 * crf.bilateral_srgb**2)
        return math.exp(-place - colour)

    kernels = []
    for weight, kernel in ((crf.gaussian_weight, gaussian), (crf.bilateral_weight, bilateral)):
        sums = {p: sum(kernel(p, q) for q in pixels) for p in pixels}
        kernels.append({(p, q): weight * kernel(p, q) / math.sqrt(sums[p] * sums[q]) for p in pixels for q in pixels})
    log = {p: np.log(np.clip(probs[(slice(None), *p)], 1e-5, 1)) for p in pixels}
    current = {p: np.exp(log[p]) / np.exp(log[p]).sum() for p in pixels}
    for _ in range(crf.iterations):
        logits = {p: log[p] + sum(k[p, q] * current[q] for k in kernels for q in pixels) for p in pixels}
        current = {p: np.exp(v - v.max()) / np.exp(v - v.max()).sum() for p, v in logits.items()}
    result = np.zeros_like(probs)
    for p in pixels:
        result[(slice(None), *p)] = current[p]
    return result


@pytest.mark.parametrize("name", ["afa", "cosa", "psa"])
def test_mean_field_with_exact_kernels_follows_the_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    exact = importlib.import_module("crf_exact").exact
    images, probs = noise()
    crf = DenseCRF.preset(name, bilateral_srgb=60.0)
    ours = exact(crf, images, probs)[0].numpy()
    np.testing.assert_allclose(ours, loop_mean_field(images[0].numpy(), probs[0].double().numpy(), crf), atol=2e-6)


def pydensecrf(image: Tensor, probs: Tensor, crf: DenseCRF) -> Tensor:
    package = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    classes, height, width = probs.shape
    model = package.DenseCRF2D(width, height, classes)
    unary = -probs.clamp(1e-5, 1).log().flatten(1).numpy()
    model.setUnaryEnergy(np.ascontiguousarray(unary))
    model.addPairwiseGaussian(sxy=crf.gaussian_sxy, compat=crf.gaussian_weight)
    rgb = np.array(image.permute(1, 2, 0), order="C")  # a copy: it must be writable
    model.addPairwiseBilateral(sxy=crf.bilateral_sxy, srgb=crf.bilateral_srgb, rgbim=rgb, compat=crf.bilateral_weight)
    return torch.from_numpy(np.array(model.inference(crf.iterations))).view(classes, height, width)


def soft_probabilities(classes: int, height: int, width: int) -> Tensor:
    """Blobs such as a network gives."""
    coarse = torch.randn(1, classes, 8, 10, generator=torch.Generator().manual_seed(3)) * 3
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").softmax(1)


@pytest.mark.parametrize("name", PRESETS)
def test_equals_pydensecrf_on_a_scene(name: str) -> None:
    drawn, _ = scene(np.random.default_rng(0), 96, 128)
    image = torch.from_numpy(drawn).permute(2, 0, 1).contiguous()
    _compare(name, image, soft_probabilities(7, 96, 128))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_equals_pydensecrf_on_photos(name: str, msrc) -> None:
    for path in sorted((msrc / "JPEGImages").iterdir())[::150]:
        image = read_image(path)
        _compare(name, image, soft_probabilities(21, *image.shape[1:]))


def _compare(name: str, image: Tensor, probs: Tensor) -> None:
    crf = DenseCRF.preset(name)
    theirs = pydensecrf(image, probs[0], crf)
    ours = crf(image[None], probs)[0]
    assert (ours - theirs).abs().mean() <= 1e-3
    assert (ours.argmax(0) == theirs.argmax(0)).float().mean() >= 0.999
    assert (ours.argmax(0) != probs[0].argmax(0)).any(), "the CRF must change something for this to mean anything"


def test_without_numba_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images, probs = noise(2, 5, 20, 30)
    crf = DenseCRF(iterations=4, bilateral_srgb=40.0)
    before = crf(images, probs)
    monkeypatch.setattr("tagmask.refine.lattice.kernels", lambda: None)
    monkeypatch.setattr(module, "spatial_kernel", module.spatial_kernel.__wrapped__)
    torch.testing.assert_close(crf(images, probs), before, atol=2e-5, rtol=1e-4)


def test_images_of_a_batch_do_not_meet() -> None:
    images, probs = noise(3, 4, 12, 9)
    crf = DenseCRF.preset("afa")
    together = crf(images, probs)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], crf(images[i : i + 1], probs[i : i + 1]), atol=1e-5, rtol=1e-4)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_threads_change_only_the_last_digits(threads: Callable[[int], None]) -> None:
    """One image is cut into bands, several go side by side; each thread has working memory of its own."""
    images, probs = noise(4, 5, 30, 40)
    crf = DenseCRF(iterations=4, bilateral_srgb=40.0)
    threads(1)
    expected = crf(images, probs)
    for count in (2, 3, 8):
        threads(count)
        torch.testing.assert_close(crf(images, probs), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(crf(images[:1], probs[:1]), expected[:1], atol=1e-5, rtol=1e-4)
    with ThreadPoolExecutor(3) as pool:  # callers of their own
        for i, found in enumerate(pool.map(lambda i: crf(images[i : i + 1], probs[i : i + 1]), range(4))):
            torch.testing.assert_close(found, expected[i : i + 1], atol=1e-5, rtol=1e-4)


def test_inside_compiled_code() -> None:
    images, probs = noise(1, 3, 10, 12)
    crf = DenseCRF(iterations=2)
    torch.testing.assert_close(torch.compile(crf, backend="eager")(images, probs), crf(images, probs))


def test_kernels_can_be_left_out() -> None:
    images, probs = noise(1, 3, 10, 10)
    torch.testing.assert_close(DenseCRF(gaussian_weight=0, bilateral_weight=0)(images, probs), probs)
    torch.testing.assert_close(DenseCRF(iterations=0)(images, probs), probs)
    only = DenseCRF(gaussian_weight=0)(images, probs)
    assert not torch.allclose(only, DenseCRF(bilateral_weight=0)(images, probs), atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 3), classes=st.integers(1, 9), height=st.integers(1, 12), width=st.integers(1, 12),
    name=st.sampled_from(sorted(PRESETS)), constant=st.booleans(), half=st.booleans(),
)  # fmt: skip
def test_distributions_come_out(
    count: int, classes: int, height: int, width: int, name: str, constant: bool, half: bool
) -> None:
    images, probs = noise(count, classes, height, width)
    if constant:
        images.fill_(128)
    result = DenseCRF.preset(name)(images, probs.half() if half else probs)
    assert result.shape == probs.shape and result.dtype == torch.float32
    torch.testing.assert_close(result.sum(1), torch.ones(count, height, width))
    assert result.numel() == 0 or (result.min() >= 0 and result.max() <= 1 + 1e-6)


def test_errors() -> None:
    images, probs = noise()
    with pytest.raises(TagmaskError, match="uint8"):
        DenseCRF()(images.float() / 255, probs)
    with pytest.raises(TagmaskError, match="DenseCRF"):
        DenseCRF()(images, probs[..., :-1])
    for bad in (torch.nan, torch.inf, -0.1, 7.0):
        wrong = probs.clone()
        wrong[0, 0, 0, 0] = bad
        with pytest.raises(TagmaskError, match=r"\[0,1\]"):
            DenseCRF()(images, wrong)
    with pytest.raises(ConfigError, match="Did you mean 'toco'"):
        DenseCRF.preset("tocco")
    with pytest.raises(TagmaskError, match="above 0"):
        DenseCRF(bilateral_srgb=0)


def test_label_probabilities() -> None:
    probs = label_probabilities(torch.tensor([[[0, 2, 255]]], dtype=torch.uint8), 3, 0.7)
    expected = torch.tensor([[0.7, 0.15, 0.15], [0.15, 0.15, 0.7], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(probs[0, :, 0].T, expected)
    with pytest.raises(TagmaskError, match="beyond the 2 classes"):
        label_probabilities(torch.tensor([[[2]]]), 2, 0.7)
    with pytest.raises(TagmaskError, match="labels"):
        label_probabilities(torch.zeros(4, 5, dtype=torch.long), 3, 0.7)
    with pytest.raises(TagmaskError, match="confidence"):
        label_probabilities(torch.tensor([[[0]]]), 2, 1.0)


def test_spatial_kernels_are_kept_and_make_no_difference() -> None:
    small, large = noise(1, 3, 8, 8), noise(1, 3, 16, 24, seed=1)
    crf, wide = DenseCRF.preset("afa"), DenseCRF.preset("afa", gaussian_sxy=9.0)
    module.spatial_kernel.cache_clear()
    before = [run(*data) for run in (crf, wide) for data in (small, large)]
    assert module.spatial_kernel.cache_info().currsize == 4, "one for each size and standard deviation"
    again = [run(*data) for run in (crf, wide) for data in (small, large)]
    assert module.spatial_kernel.cache_info().hits == 4
    for first, second in zip(before, again):
        assert torch.equal(first, second)
