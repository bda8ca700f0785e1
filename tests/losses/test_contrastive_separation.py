from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tagmask import tensors
from tagmask.errors import TagmaskError
from tagmask.losses import contrastive_separation
from tests.cosa_loops import separation_loops


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cams = torch.randn(3, 4, 3, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 2, 255])[torch.randint(0, 5, (3, 3, 5), generator=generator)]
    return cams, labels, torch.rand(3, 3, 5, generator=generator, dtype=torch.float64) * 1.5


@pytest.mark.parametrize("pairs", [2**18, 25], ids=["one strip", "strips"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("epsilon", "temperature"), [(1.0, 0.1), (0.5, 1.0), (2.0, 0.3)])
def test_equals_equations_9_and_10(
    monkeypatch: pytest.MonkeyPatch, pairs: int, seed: int, epsilon: float, temperature: float
) -> None:
    monkeypatch.setattr(tensors, "CPU_VALUES", pairs)
    cams, labels, doubt = example(seed)
    result = contrastive_separation(cams, labels, doubt, epsilon, temperature)
    assert result.item() == pytest.approx(separation_loops(cams, labels, doubt, epsilon, temperature), rel=1e-10)


@pytest.mark.parametrize("pairs", [2**18, 25], ids=["one strip", "strips"])
def test_gradient(monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    monkeypatch.setattr(tensors, "CPU_VALUES", pairs)
    cams, labels, doubt = example()
    cams.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: contrastive_separation(x, labels, doubt, 1.0, 0.5), (cams,), fast_mode=pairs == 25
    )
    contrastive_separation(cams, labels, doubt).backward()
    assert cams.grad is not None
    grad = cams.grad.permute(0, 2, 3, 1)
    assert not grad[(doubt > 1) | (labels == 255)].any() and grad.any(), "only Ω learns"


def test_no_matrix_of_all_pairs_is_made_or_kept() -> None:
    """On a grid of 32 x 32, a million pairs an image: strips of 2^18 on the way, and none of them afterwards."""
    generator = torch.Generator().manual_seed(0)
    side, images = 32, 2
    cams = torch.randn(images, 20, side, side, generator=generator).requires_grad_()
    labels = torch.randint(0, 3, (images, side, side), generator=generator)
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))
            return result

    with Watch():
        loss = contrastive_separation(cams, labels, torch.zeros(images, side, side))
        loss.backward()
    assert tensors.CPU_VALUES / 2 < max(sizes) <= tensors.CPU_VALUES < side**4
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        contrastive_separation(cams, labels, torch.zeros(images, side, side))
    assert max(saved) <= cams.numel(), "what waits for the backward pass is as large as the maps"


def test_separates_two_regions() -> None:
    labels = torch.tensor([[[0, 0, 1, 1]]])
    apart = torch.tensor([[[[1.0, 2.0, -1.0, -3.0]], [[-1.0, -2.0, 1.0, 3.0]]]])
    mixed = torch.ones_like(apart)
    sure = torch.zeros(1, 1, 4)
    low, high = (contrastive_separation(x, labels, sure).item() for x in (apart, mixed))
    assert low < 1e-6 and high == pytest.approx(math.log(3), rel=1e-5)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [255, 255, 1, 1]])
def test_no_positives_or_no_negatives_give_zero_and_no_nan(labels: list[int]) -> None:
    cams = torch.randn(1, 3, 1, 4, requires_grad=True)
    loss = contrastive_separation(cams, torch.tensor([[labels]]), torch.zeros(1, 1, 4))
    loss.backward()
    assert loss.item() == 0 and cams.grad is not None and not cams.grad.any()


def test_empty_region_is_zero() -> None:
    cams = torch.randn(2, 3, 2, 2, requires_grad=True)
    loss = contrastive_separation(cams, torch.ones(2, 2, 2).long(), torch.full((2, 2, 2), math.inf))
    loss.backward()
    assert loss.item() == 0 and cams.grad is not None and not cams.grad.any()


def test_images_without_anchors_do_not_count() -> None:
    cams, labels, doubt = example()
    doubt[1] = 5
    rest = contrastive_separation(cams[[0, 2]], labels[[0, 2]], doubt[[0, 2]])
    torch.testing.assert_close(contrastive_separation(cams, labels, doubt), rest)


def test_positions_of_other_images_are_no_negatives() -> None:
    cams, labels, doubt = example()
    alone = [contrastive_separation(cams[i : i + 1], labels[i : i + 1], doubt[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(contrastive_separation(cams, labels, doubt), torch.stack(alone).mean())


def test_scale_of_class_vectors_does_not_matter_and_small_temperatures_are_finite() -> None:
    cams, labels, doubt = example()
    torch.testing.assert_close(
        contrastive_separation(cams, labels, doubt), contrastive_separation(cams * 1e3, labels, doubt)
    )
    assert contrastive_separation(cams.float(), labels, doubt, temperature=1e-3).isfinite()


def test_half_precision_is_computed_in_float32() -> None:
    cams, labels, doubt = example()
    half = contrastive_separation(cams.bfloat16(), labels, doubt)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, contrastive_separation(cams.bfloat16().float(), labels, doubt))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(half, contrastive_separation(cams.bfloat16(), labels, doubt))


def test_wrong_input_is_refused() -> None:
    cams, labels, doubt = example()
    with pytest.raises(TagmaskError, match="Contrastive separation"):
        contrastive_separation(cams, labels[:, :2], doubt)
    with pytest.raises(TagmaskError, match="Contrastive separation"):
        contrastive_separation(cams, labels, doubt[:, :2])
    with pytest.raises(TagmaskError, match="temperature"):
        contrastive_separation(cams, labels, doubt, temperature=0.0)
