from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tagmask import tensors
from tagmask.errors import TagmaskError
from tagmask.losses import self_correspondence


def read(maps: list, x: float, y: float) -> list[float]:
    """Values of maps (K,h,w) at a place of the image, −1 and 1 being its borders: bilinear, the border repeated."""
    height, width = len(maps[0]), len(maps[0][0])
    u = min(max((x + 1) / 2 * width - 0.5, 0), width - 1)
    v = min(max((y + 1) / 2 * height - 0.5, 0), height - 1)
    left, top = min(int(u), max(width - 2, 0)), min(int(v), max(height - 2, 0))
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    fx, fy = u - left, v - top
    return [
        (1 - fy) * ((1 - fx) * m[top][left] + fx * m[top][right])
        + fy * ((1 - fx) * m[bottom][left] + fx * m[bottom][right])
        for m in maps
    ]


def places(points: Tensor, *maps: Tensor) -> list[list[list[float]]]:
    """Places in the images of points (B,n,2), whose −1 and 1 are the larger map's corner pixels' centres."""
    height, width = (max(m.shape[axis] for m in maps) for axis in (-2, -1))
    return [[[x * (1 - 1 / width), y * (1 - 1 / height)] for x, y in image] for image in points.tolist()]


def cosine(p: list[float], q: list[float]) -> float:
    """Equations 3 and 6."""
    norms = math.sqrt(sum(v * v for v in p)) * math.sqrt(sum(v * v for v in q))
    return sum(v * w for v, w in zip(p, q, strict=True)) / norms if norms > 0 else 0.0


def loops(
    cam_a: Tensor, cam_b: Tensor, seg_a: Tensor, seg_b: Tensor, points_a: Tensor, points_b: Tensor, centered: bool
) -> float:
    """Equation 7, as a mean, from plain numbers in double precision."""
    agreement: list[list[list[float]]] = []
    total, count = 0.0, 0
    first, second = places(points_a, cam_a, seg_a), places(points_b, cam_b, seg_b)
    for i in range(len(cam_a)):
        maps = [x[i].double().tolist() for x in (cam_a, cam_b)]
        agreement.append([[cosine(read(maps[0], *p), read(maps[1], *q)) for q in second[i]] for p in first[i]])
    everything = [m for image in agreement for row in image for m in row]
    overall = sum(everything) / len(everything)
    for i in range(len(cam_a)):
        maps = [x[i].double().tolist() for x in (seg_a, seg_b)]
        for n, p in enumerate(first[i]):
            row = agreement[i][n]
            for k, q in enumerate(second[i]):
                m = row[k] - sum(row) / len(row) + overall if centered else row[k]
                total += m * max(cosine(read(maps[0], *p), read(maps[1], *q)), 0.0)
                count += 1
    return -total / count


def case(dtype: torch.dtype = torch.float32, n: int = 6, m: int = 5, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    cams = [draw(2, 3, 4, 5).relu(), draw(2, 3, 3, 2).relu()]
    segs = [draw(2, 4, 4, 5), draw(2, 4, 3, 2)]
    points = [torch.rand(2, k, 2, generator=generator, dtype=torch.float64).to(dtype) * 2.4 - 1.2 for k in (n, m)]
    return [*cams, *segs, *points]


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("pairs", [2**20, 7], ids=["one strip", "strips of one row"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_loops_at_the_same_points(
    monkeypatch: pytest.MonkeyPatch, centered: bool, pairs: int, seed: int
) -> None:
    monkeypatch.setattr(tensors, "CPU_VALUES", pairs)
    inputs = case(seed=seed)
    assert self_correspondence(*inputs, centered).item() == pytest.approx(loops(*inputs, centered), abs=1e-6)
    exact = case(torch.float64, seed=seed)
    assert self_correspondence(*exact, centered).item() == pytest.approx(loops(*exact, centered), abs=1e-12)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("pairs", [2**20, 7], ids=["one strip", "strips of one row"])
def test_gradcheck_into_all_four_maps(monkeypatch: pytest.MonkeyPatch, centered: bool, pairs: int) -> None:
    monkeypatch.setattr(tensors, "CPU_VALUES", pairs)
    *maps, points_a, points_b = case(torch.float64)
    maps[:2] = [x + 0.1 for x in maps[:2]]  # away from vectors of zeros, where a cosine has no derivative
    for x in maps:
        x.requires_grad_()
    strips = pairs == 7  # computed one after another: too slow to move every value by itself
    loss = lambda *x: self_correspondence(*x, points_a, points_b, centered)  # noqa: E731
    assert torch.autograd.gradcheck(loss, maps, fast_mode=strips)


def test_a_detached_target_gets_no_gradient_and_changes_no_other() -> None:
    cam_a, cam_b, seg_a, seg_b, *points = case()
    cams = [cam_a.requires_grad_(), cam_b.requires_grad_()]
    segs = [seg_a.requires_grad_(), seg_b.requires_grad_()]
    both = torch.autograd.grad(self_correspondence(*cams, *segs, *points), [*cams, *segs])
    assert all(g.abs().sum() > 0 for g in both)
    target = [x.detach() for x in cams]
    alone = torch.autograd.grad(self_correspondence(*target, *segs, *points), segs)
    for a, b in zip(both[2:], alone, strict=True):
        torch.testing.assert_close(a, b)


def test_pairs_whose_segmentations_disagree_count_nothing() -> None:
    points = torch.zeros(1, 1, 2)
    cam = torch.ones(1, 2, 1, 1)
    one, other = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1), torch.tensor([-2.0, 4.0]).view(1, 2, 1, 1)
    assert self_correspondence(cam, cam, one, other, points, points).item() == 0
    assert self_correspondence(cam, cam, one, 3 * one, points, points).item() == pytest.approx(-1)


def test_points_are_corner_centres_and_beyond_is_the_border() -> None:
    cam = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # (1,2,1,2): two orthogonal vectors side by side
    seg = torch.ones(1, 1, 1, 2)

    def agreement(x: float, y: float) -> float:
        a, b = (torch.tensor([[[value, 0.0]]]) for value in (x, y))
        return -self_correspondence(cam, cam, seg, seg, a, b).item()

    assert agreement(-1, -1) == pytest.approx(1) and agreement(-1, 1) == pytest.approx(0)
    assert agreement(-1, 0) == pytest.approx(math.sqrt(0.5))
    assert agreement(-1, -3) == pytest.approx(1) and agreement(-1, 3) == pytest.approx(0)


@pytest.mark.parametrize("centered", [False, True])
def test_maps_of_different_sizes_are_read_at_the_same_places(centered: bool) -> None:
    """Logits finer than their class maps in one view; in the other coarser along one axis, finer along the other."""
    inputs = case(torch.float64)
    inputs[2:4] = [torch.randn(2, 4, *size, dtype=torch.float64) for size in ((16, 15), (2, 6))]
    assert self_correspondence(*inputs, centered).item() == pytest.approx(loops(*inputs, centered), abs=1e-12)


def test_every_position_of_a_finer_segmentation_gets_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    cams = [torch.rand(1, 3, 32, 32, generator=generator) for _ in range(2)]
    segs = [torch.rand(1, 4, 128, 128, generator=generator).requires_grad_() for _ in range(2)]
    many, few = (torch.rand(1, n, 2, generator=generator) * 2 - 1 for n in (160_000, 4))
    self_correspondence(*cams, *segs, many, few).backward()
    assert segs[0].grad is not None and segs[0].grad.abs().sum(1).gt(0).all()


def test_vectors_of_zeros_agree_with_nothing_and_stay_finite() -> None:
    cam_a, cam_b, seg_a, seg_b, *points = case()
    seg_a.requires_grad_()
    loss = self_correspondence(torch.zeros_like(cam_a), cam_b, seg_a, seg_b, *points)
    loss.backward()
    assert loss.item() == 0 and seg_a.grad is not None and (seg_a.grad == 0).all()


def test_half_precision_and_autocast_are_computed_in_float32() -> None:
    inputs = case()
    halves = [x.bfloat16() for x in inputs[:4]]
    expected = self_correspondence(*(x.float() for x in halves), *inputs[4:])
    with torch.autocast("cpu", torch.bfloat16):
        loss = self_correspondence(*halves, *inputs[4:])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("wide", [0, 2, 4], ids=["class maps", "segmentations", "points"])
def test_mixed_types_are_brought_to_the_widest(wide: int) -> None:
    inputs = [x.detach() for x in case()]
    inputs[wide : wide + 2] = [x.double() for x in inputs[wide : wide + 2]]
    inputs[3] = inputs[3].requires_grad_()
    loss = self_correspondence(*inputs)
    loss.backward()
    assert loss.dtype == (torch.float32 if wide == 4 else torch.float64)
    assert loss.item() == pytest.approx(loops(*(x.detach() for x in inputs), False), abs=1e-6)
    assert inputs[3].grad is not None and inputs[3].grad.dtype == inputs[3].dtype


def test_no_tensor_of_all_pairs_is_made() -> None:
    """At 40 x 40 points a view, 2.56 million pairs an image."""
    generator = torch.Generator().manual_seed(0)
    n, images = 1600, 4
    points = [torch.rand(images, n, 2, generator=generator) * 2 - 1 for _ in range(2)]
    cams = [torch.rand(images, 20, 8, 8, generator=generator) for _ in range(2)]
    segs = [torch.randn(images, 21, 8, 8, generator=generator).requires_grad_() for _ in range(2)]
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))
            return result

    with Watch():
        self_correspondence(*cams, *segs, *points).backward()
    assert tensors.CPU_VALUES / 2 < max(sizes) <= 2 * tensors.CPU_VALUES < n * n  # a strip of M and one of S


def test_errors() -> None:
    cam_a, cam_b, seg_a, seg_b, points_a, points_b = case()
    with pytest.raises(TagmaskError, match="class maps"):
        self_correspondence(cam_a, cam_b[:, :2], seg_a, seg_b, points_a, points_b)
    with pytest.raises(TagmaskError, match="segmentation maps"):
        self_correspondence(cam_a, cam_b, seg_a[:1], seg_b[:1], points_a, points_b)
    with pytest.raises(TagmaskError, match=r"points \(B,n,2\)"):
        self_correspondence(cam_a, cam_b, seg_a, seg_b, points_a[..., :1], points_b)
    with pytest.raises(TagmaskError, match="no image"):
        self_correspondence(*(x[:0] for x in (cam_a, cam_b, seg_a, seg_b, points_a, points_b)))
    with pytest.raises(TagmaskError, match="no point"):
        self_correspondence(cam_a, cam_b, seg_a, seg_b, points_a[:, :0], points_b)
