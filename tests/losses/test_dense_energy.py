"""Dense energy against its formula, with K taken from the lattice itself and from the exact Gaussian."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.losses import DenseEnergy
from tagmask.refine import PermutohedralLattice


def inputs(height: int = 8, width: int = 6, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    probs = torch.randn(2, classes, height, width, generator=generator, dtype=torch.float64).softmax(1)
    return images, probs, torch.tensor([[0, 0, width, height], [1, 2, width - 1, height - 1]])


def kernel_matrix(image: Tensor, sigma_rgb: float, sigma_xy: float, exact: bool) -> np.ndarray:
    """K of all pixels of (3,H,W), (N,N)."""
    _, height, width = image.shape
    features = torch.tensor(
        [
            [x / sigma_xy, y / sigma_xy, *(float(image[c, y, x]) * 255 / sigma_rgb for c in range(3))]
            for y in range(height)
            for x in range(width)
        ],
        dtype=torch.float64,
    )
    if exact:
        n = len(features)
        return np.array(
            [[math.exp(-0.5 * float((features[i] - features[j]).square().sum())) for j in range(n)] for i in range(n)]
        )
    return PermutohedralLattice(features[None]).filter(torch.eye(len(features), dtype=torch.float64)[None])[0].numpy()


def loop_energy(
    images: Tensor, probs: Tensor, boxes: Tensor, labels: Tensor | None, weight: float, rgb: float, xy: float,
    exact: bool = False,
) -> tuple[float, np.ndarray, np.ndarray]:  # fmt: skip
    """Value, exact gradient and the released codes' gradient, at scale 1, pixel by pixel."""
    count, classes, height, width = probs.shape
    total = 0.0
    gradient, released = np.zeros(probs.shape), np.zeros(probs.shape)
    for b in range(count):
        kernel = kernel_matrix(images[b], rgb, xy, exact).T  # the lattice's matrix acts on columns of values
        pixels = [(y, x) for y in range(height) for x in range(width)]
        roi = [float(boxes[b, 0] <= x < boxes[b, 2] and boxes[b, 1] <= y < boxes[b, 3]) for y, x in pixels]
        s = np.array([[float(probs[b, k, y, x]) * r for (y, x), r in zip(pixels, roi)] for k in range(classes)])
        gate = np.array([max(r - s[:, i].max(), 0.0) for i, r in enumerate(roi)])
        if labels is not None:
            gate = np.array([1.0 if labels[b, y, x] == 255 else g for (y, x), g in zip(pixels, gate)])
        for k in range(classes):
            for i, (y, x) in enumerate(pixels):
                smooth = sum(kernel[i, j] * s[k, j] for j in range(len(pixels)))
                back = sum(kernel[j, i] * gate[j] * s[k, j] for j in range(len(pixels)))
                total += s[k, i] * gate[i] * smooth
                gradient[b, k, y, x] = -weight / count * (gate[i] * smooth + back) * roi[i]
                released[b, k, y, x] = -2 * weight / count * gate[i] * smooth * roi[i]
    return -weight / count * total, gradient, released


@pytest.mark.parametrize("with_labels", [False, True])
def test_value_and_both_gradients_follow_the_formula(with_labels: bool) -> None:
    images, probs, boxes = inputs()
    labels = None
    if with_labels:
        labels = torch.zeros(2, 8, 6, dtype=torch.uint8)
        labels[:, 3:5, :4] = 255
    value, exact, released = loop_energy(images, probs, boxes, labels, 0.5, 40.0, 3.0)
    for gradient, expected in (("exact", exact), ("release", released)):
        wanted = probs.clone().requires_grad_()
        loss = DenseEnergy(0.5, 40.0, 3.0, scale=1.0, gradient=gradient)(images, wanted, boxes, labels)
        loss.backward()
        assert loss.item() == pytest.approx(value, rel=1e-9)
        np.testing.assert_allclose(wanted.grad, expected, atol=1e-12)


def test_is_of_the_order_of_the_exact_gaussian() -> None:
    images, probs, boxes = inputs(9, 9)
    smooth = torch.nn.functional.interpolate(images[..., :3, :3], size=(9, 9), mode="bilinear")
    ours = DenseEnergy(1.0, 60.0, 6.0, scale=1.0)(smooth, probs, boxes).item()
    exact, _, _ = loop_energy(smooth, probs, boxes, None, 1.0, 60.0, 6.0, exact=True)
    assert 0.4 < ours / exact < 1.0


def test_gradcheck() -> None:
    images, probs, boxes = inputs(6, 5, 2)
    energy = DenseEnergy(1.0, 40.0, 3.0, scale=1.0)
    # The gate holds the probabilities' maximum fixed: labels of 255 everywhere put it at 1 for good.
    labels = torch.full((2, 6, 5), 255, dtype=torch.uint8)
    assert torch.autograd.gradcheck(lambda p: energy(images, p, boxes, labels), (probs.requires_grad_(),))


def test_scale_halves_the_grid_and_the_position_sigma() -> None:
    images, probs, boxes = inputs(8, 6)
    small = DenseEnergy(1.0, 40.0, 4.0, scale=0.5)(images, probs, boxes)
    grid = torch.nn.functional.interpolate(images, size=(4, 3), mode="nearest")
    coarse = torch.nn.functional.interpolate(probs, size=(4, 3), mode="bilinear")
    roi = torch.zeros(2, 8, 6)
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        roi[i, y0:y1, x0:x1] = 1
    inner = [torch.nonzero(roi[i, ::2, ::2]) for i in range(2)]
    halves = torch.tensor([[p[:, 1].min(), p[:, 0].min(), p[:, 1].max() + 1, p[:, 0].max() + 1] for p in inner])
    assert small.item() == pytest.approx(DenseEnergy(1.0, 40.0, 2.0, scale=1.0)(grid, coarse, halves).item(), rel=1e-9)


def test_confident_and_outside_pixels_cost_nothing() -> None:
    images, probs, boxes = inputs()
    sure = torch.zeros_like(probs)
    sure[:, 1] = 1
    assert DenseEnergy(1.0, scale=1.0)(images, sure, boxes).item() == 0
    assert DenseEnergy(1.0, scale=1.0)(images, probs, torch.zeros(2, 4, dtype=torch.long)).item() == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1)])
def test_odd_sizes_and_half_precision(size: tuple[int, int]) -> None:
    images, probs, _ = inputs(*size)
    boxes = torch.tensor([[0, 0, size[1], size[0]]] * 2)
    whole = DenseEnergy(1.0)(images.float(), probs.float(), boxes)
    assert whole.isfinite() and whole.dtype == torch.float32
    half = DenseEnergy(1.0)(images.bfloat16(), probs.bfloat16(), boxes)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(whole.item(), rel=0.1)


def test_errors() -> None:
    images, probs, boxes = inputs()
    with pytest.raises(TagmaskError, match="NaN"):
        DenseEnergy()(images, probs * torch.nan, boxes)
    with pytest.raises(TagmaskError, match="divide them by 255"):
        DenseEnergy()(images * 255, probs, boxes)
    with pytest.raises(TagmaskError, match="boxes"):
        DenseEnergy()(images, probs, boxes[:1])
    with pytest.raises(TagmaskError, match="labels"):
        DenseEnergy()(images, probs, boxes, torch.zeros(2, 3, 3))
    with pytest.raises(TagmaskError, match="above 0"):
        DenseEnergy(sigma_xy=0)
    with pytest.raises(TagmaskError, match="exact"):
        DenseEnergy(gradient="other")  # type: ignore[arg-type]


def test_inside_compiled_code() -> None:
    images, probs, boxes = inputs()
    energy = DenseEnergy(1.0)
    compiled = torch.compile(lambda p: energy(images, p * 1.0, boxes), backend="eager")
    assert compiled(probs).item() == pytest.approx(energy(images, probs, boxes).item())


def test_threads_change_only_the_last_digits() -> None:
    images, probs, boxes = inputs(20, 24)
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            wanted = probs.clone().requires_grad_()
            loss = DenseEnergy(1.0)(images, wanted, boxes)
            loss.backward()
            found.append((loss.detach(), wanted.grad))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0], found[1])
