from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tagmask.errors import TagmaskError
from tagmask.losses import affinity_labels, affinity_loss, downsample_labels


def loop_labels(labels: list[list[int]], radius: int) -> list[list[int]]:
    width = len(labels[0])
    flat = [label for row in labels for label in row]
    result = []
    for i, a in enumerate(flat):
        row = []
        for j, b in enumerate(flat):
            near = abs(i // width - j // width) <= radius and abs(i % width - j % width) <= radius
            row.append(int(a == b) if near and a != 255 and b != 255 else 255)
        result.append(row)
    return result


def loop_loss(affinity: torch.Tensor, labels: torch.Tensor) -> float:
    attraction, repulsion, positive, negative = 0.0, 0.0, 1, 1
    for a, label in zip(affinity.double().flatten().tolist(), labels.flatten().tolist()):
        if label == 1:
            attraction, positive = attraction + 1 - a, positive + 1
        elif label == 0:
            repulsion, negative = repulsion + a, negative + 1
    return 0.5 * attraction / positive + 0.5 * repulsion / negative


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(0, 7),
    st.sampled_from([torch.uint8, torch.int16, torch.int64]),
    st.integers(0, 1000),
)
def test_labels_equal_loops(batch: int, height: int, width: int, radius: int, dtype: torch.dtype, seed: int) -> None:
    choices = torch.tensor([0, 1, 2, 255])
    index = torch.randint(0, 4, (batch, height, width), generator=torch.Generator().manual_seed(seed))
    labels = choices[index].to(dtype)
    result = affinity_labels(labels, radius)
    assert result.dtype == torch.uint8 and result.shape == (batch, height * width, height * width)
    assert result.tolist() == [loop_labels(image, radius) for image in labels.tolist()]


def test_window_is_square_and_inclusive() -> None:
    pairs = affinity_labels(torch.zeros(1, 7, 7, dtype=torch.long), 2)[0, 24].view(7, 7)  # of the centre
    assert (pairs[1:6, 1:6] == 1).all()
    assert (pairs == 255).sum() == 49 - 25


def test_the_cached_window_stays_clean() -> None:
    labels = torch.tensor([[[0, 1, 255, 0]]])
    first = affinity_labels(labels, 1)
    expected = first.clone()
    first.fill_(7)
    assert affinity_labels(labels, 1).equal(expected)


def test_downsampling_takes_the_top_left() -> None:
    labels = torch.arange(2 * 8 * 12).view(2, 8, 12)
    assert downsample_labels(labels, (4, 4)).equal(labels[:, ::2, ::3])
    assert downsample_labels(labels.to(torch.uint8), (8, 12)).equal(labels.to(torch.uint8))
    odd = downsample_labels(labels, (3, 5))
    expected = [[[image[i * 8 // 3][j * 12 // 5] for j in range(5)] for i in range(3)] for image in labels.tolist()]
    assert odd.tolist() == expected
    floats = torch.nn.functional.interpolate(labels[:, None].float(), size=(4, 6), mode="nearest")[:, 0]
    assert downsample_labels(labels, (4, 6)).equal(floats.long())


@pytest.mark.parametrize("kind", ["both", "positive", "negative", "none"])
def test_loss_equals_loops(kind: str) -> None:
    choices = {"both": [0, 1, 255], "positive": [1, 255], "negative": [0, 255], "none": [255]}[kind]
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor(choices)[torch.randint(0, len(choices), (2, 6, 6), generator=generator)].to(torch.uint8)
    affinity = torch.rand(2, 6, 6, generator=generator, requires_grad=True)
    loss = affinity_loss(affinity, labels)
    assert loss.item() == pytest.approx(loop_loss(affinity.detach(), labels), rel=1e-5, abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, affinity)
    assert (gradient[labels == 1] < 0).all() and (gradient[labels == 0] > 0).all()
    assert (gradient[labels == 255] == 0).all()
    assert affinity_loss(affinity, labels.long()).equal(loss)


def test_counts_go_over_the_whole_batch() -> None:
    labels = torch.full((2, 2, 2), 255)
    labels[0], labels[1, 0, 0] = 1, 0
    affinity = torch.full((2, 2, 2), 0.25)
    assert affinity_loss(affinity, labels).item() == pytest.approx(0.5 * (4 * 0.75 / 5 + 0.25 / 2))


def test_left_out_pairs_may_be_anything() -> None:
    affinity = torch.tensor([[[0.5, float("nan")], [float("inf"), 0.5]]], requires_grad=True)
    loss = affinity_loss(affinity, torch.tensor([[[1, 255], [255, 1]]]))
    loss.backward()
    assert loss.isfinite() and affinity.grad is not None and affinity.grad.isfinite().all()


def test_gradcheck() -> None:
    affinity = torch.rand(2, 4, 4, dtype=torch.float64, requires_grad=True)
    labels = affinity_labels(torch.tensor([[[0, 1], [1, 255]], [[2, 2], [0, 2]]]), 1)
    assert torch.autograd.gradcheck(lambda x: affinity_loss(x, labels), (affinity,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    affinity, labels = torch.rand(1, 400, 400).to(dtype), torch.ones(1, 400, 400, dtype=torch.uint8)
    loss = affinity_loss(affinity, labels)  # 160,000 terms: beyond what float16 counts
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, affinity_loss(affinity.float(), labels))


def test_errors() -> None:
    with pytest.raises(TagmaskError, match=r"\(B,h,w\)"):
        affinity_labels(torch.zeros(4, 4, dtype=torch.long), 1)
    with pytest.raises(TagmaskError, match="float32"):
        affinity_labels(torch.zeros(1, 4, 4), 1)
    for radius in (-1, 1.5):
        with pytest.raises(TagmaskError, match="radius"):
            affinity_labels(torch.zeros(1, 4, 4, dtype=torch.long), radius)  # type: ignore[arg-type]
    for size in ((0, 4), (5, 4)):
        with pytest.raises(TagmaskError, match="cannot be downsampled"):
            downsample_labels(torch.zeros(1, 4, 4, dtype=torch.long), size)
    labels = torch.ones(1, 4, 4, dtype=torch.uint8)
    for affinity in (torch.rand(1, 3, 3), torch.rand(1, 1, 4, 4)):
        with pytest.raises(TagmaskError, match="Affinity loss"):
            affinity_loss(affinity, labels)
    with pytest.raises(TagmaskError, match="Affinity loss"):
        affinity_loss(torch.rand(1, 4, 5), torch.ones(1, 4, 5, dtype=torch.uint8))
