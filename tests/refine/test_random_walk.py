"""Random walk, radius graphs and affinities beside loops over positions in float64."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.refine import affinity_graph, path_affinity, pixel_affinity, radius_edges, random_walk

SIZES = [(1, 1), (1, 9), (8, 1), (2, 2), (6, 7)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense_walk(maps: Tensor, edges: Tensor, weights: Tensor, steps: int, beta: float) -> Tensor:
    """maps · T^steps from the equation, entry by entry."""
    count = maps[0].numel()
    affinity = [[float(i == j) for j in range(count)] for i in range(count)]
    for (i, j), weight in zip(edges.t().tolist(), weights.double().tolist()):
        affinity[i][j] = affinity[j][i] = weight**beta
    sums = [sum(affinity[k][j] for k in range(count)) for j in range(count)]
    transition = [[affinity[i][j] / sums[j] for j in range(count)] for i in range(count)]
    power = torch.linalg.matrix_power(torch.tensor(transition, dtype=torch.float64), steps)
    return (maps.double().flatten(1) @ power).view(maps.shape)


def line(height: int, width: int, first: int, second: int) -> list[tuple[int, int]]:
    """Positions of the rectangle between two whose distance from the straight line through both is below 1."""
    (y0, x0), (y1, x1) = divmod(first, width), divmod(second, width)
    length = math.hypot(y1 - y0, x1 - x0)
    found = []
    for y in range(height):
        for x in range(width):
            inside = min(y0, y1) <= y <= max(y0, y1) and min(x0, x1) <= x <= max(x0, x1)
            if inside and abs((y1 - y0) * (x - x0) - (x1 - x0) * (y - y0)) / length < 1 - 1e-9:
                found.append((y, x))
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("beta", [1.0, 8.0])
@pytest.mark.parametrize("steps", [1, 3, 256])
def test_equals_dense_power(size: tuple[int, int], beta: float, steps: int) -> None:
    edges, _ = radius_edges(*size, 3)
    weights = torch.rand(edges.shape[1], generator=seeded())
    maps = torch.randn(4, *size, generator=seeded(1))
    result = random_walk(maps, edges, weights, steps, beta)
    assert result.dtype == torch.float32
    expected = dense_walk(maps, edges, weights, steps, beta)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)


def test_weak_links_are_not_lost() -> None:
    """Values leak slowly between nearly closed regions, by terms below float32's rounding of one step's sum."""
    edges, _ = radius_edges(12, 12, 5)
    weights = torch.where(torch.rand(edges.shape[1], generator=seeded()) < 0.1, 0.9, 0.18)
    maps = torch.rand(3, 12, 12, generator=seeded(1))
    expected = dense_walk(maps, edges, weights, 256, 10)
    torch.testing.assert_close(random_walk(maps, edges, weights, 256, 10).double(), expected, rtol=0, atol=1e-6)


def test_any_graph_in_any_order() -> None:
    """Edges need not be a grid's, nor sorted, nor smaller end first."""
    pairs = torch.tensor([[0, 9], [11, 3], [3, 0], [7, 11], [2, 10]]).t()
    weights = torch.tensor([0.2, 1.0, 0.5, 0.0, 0.9])
    maps = torch.rand(2, 3, 4, generator=seeded())
    expected = dense_walk(maps, pairs, weights, 5, 2.0)
    order, swapped = torch.tensor([4, 2, 0, 1, 3]), pairs.flip(0)
    for edges, values in (
        (pairs, weights),
        (pairs[:, order], weights[order]),
        (swapped, weights),
        (pairs.int(), weights),
    ):
        result = random_walk(maps, edges, values, 5, 2.0).double()
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_zero_steps_and_empty_inputs() -> None:
    edges, _ = radius_edges(4, 5, 3)
    weights = torch.rand(edges.shape[1])
    maps = torch.rand(2, 4, 5)
    result = random_walk(maps, edges, weights, 0, 1.0)
    assert result.equal(maps) and result.data_ptr() != maps.data_ptr()
    assert random_walk(maps[:0], edges, weights, 9, 1.0).shape == (0, 4, 5)
    assert random_walk(maps, edges[:, :0], weights[:0], 9, 1.0).equal(maps)


def test_isolated_positions_keep_their_value() -> None:
    edges, _ = radius_edges(5, 5, 3)
    weights = torch.rand(edges.shape[1], generator=seeded())
    weights[(edges == 12).any(0)] = 0
    maps = torch.rand(3, 5, 5, generator=seeded(1))
    result = random_walk(maps, edges, weights, 256, 1.0)
    assert result[:, 2, 2].equal(maps[:, 2, 2])
    assert (result - maps).abs().amax() > 0.1


def test_columns_are_normalised_not_rows() -> None:
    """A hub and its leaves: each position averages over its own neighbours."""
    edges = torch.tensor([[0, 0], [1, 2]])
    result = random_walk(torch.tensor([[[3.0, 0.0, 9.0]]]), edges, torch.ones(2), 1, 1.0)
    torch.testing.assert_close(result, torch.tensor([[[4.0, 1.5, 6.0]]]))


def test_zero_beta_counts_every_edge() -> None:
    edges = torch.tensor([[0], [1]])
    result = random_walk(torch.tensor([[[2.0, 4.0]]]), edges, torch.zeros(1), 1, 0.0)
    torch.testing.assert_close(result, torch.tensor([[[3.0, 3.0]]]))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 5),
    st.sampled_from([1, 2, 2.5, 5]),
    st.integers(0, 40),
    st.sampled_from([0.5, 1.0, 10.0]),
    st.integers(0, 1000),
)
def test_properties(height: int, width: int, maps: int, radius: float, steps: int, beta: float, seed: int) -> None:
    edges, _ = radius_edges(height, width, radius)
    weights = torch.rand(edges.shape[1], generator=seeded(seed))
    values = torch.randn(maps, height, width, generator=seeded(seed + 1))
    constant = torch.full((1, height, width), values[0, 0, 0].item())
    result = random_walk(torch.cat([values, constant, 2 * values[:1] - 3]), edges, weights, steps, beta)
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    assert ((result[:maps] >= low - 1e-6) & (result[:maps] <= high + 1e-6)).all()
    torch.testing.assert_close(result[maps : maps + 1], constant, rtol=1e-6, atol=0)
    torch.testing.assert_close(result[-1], 2 * result[0] - 3, rtol=0, atol=1e-5)
    alone = torch.cat([random_walk(one[None], edges, weights, steps, beta) for one in values])
    torch.testing.assert_close(result[:maps], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 3e-4), (torch.bfloat16, 2e-3), (torch.float64, 1e-12)]
)
def test_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    """Only the result is rounded to the maps' precision: half a unit in the last place."""
    edges, _ = radius_edges(6, 7, 2)
    maps = torch.rand(3, 6, 7, generator=seeded(), dtype=torch.float64).to(dtype)
    weights = torch.rand(edges.shape[1], generator=seeded(1)).to(dtype)
    result = random_walk(maps, edges, weights, 64, 2.0)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), dense_walk(maps, edges, weights, 64, 2.0), rtol=0, atol=tolerance)


def test_threads_and_modes() -> None:
    edges, affinity = path_affinity(torch.rand(9, 8, generator=seeded()), 4)
    maps = torch.rand(5, 9, 8, generator=seeded(1))
    expected = random_walk(maps, edges, affinity, 20, 3.0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with torch.inference_mode(), torch.autocast("cpu"):
            torch.testing.assert_close(random_walk(maps, edges, affinity, 20, 3.0), expected)
    finally:
        torch.set_num_threads(before)
    gradient = random_walk(maps.requires_grad_(), edges, affinity.requires_grad_(), 20, 3.0)
    assert not gradient.requires_grad and gradient.equal(expected)


def test_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        random_walk(torch.rand(1, 2, 2), torch.tensor([[0], [1]]), torch.ones(1), 2, 1.0)


def test_errors() -> None:
    maps, edges, weights = torch.rand(2, 3, 4), torch.tensor([[0, 1], [1, 2]]), torch.tensor([0.5, 0.5])
    bad = [
        ((maps[0], edges, weights, 1, 1.0), r"maps \(K,h,w\)"),
        ((maps, edges.t()[:, :1], weights, 1, 1.0), r"edges \(2,E\)"),
        ((maps, edges, weights[:1], 1, 1.0), r"weights \(E,\)"),
        ((maps.long(), edges, weights, 1, 1.0), "floating-point maps"),
        ((maps, edges.float(), weights, 1, 1.0), "int64 or int32"),
        ((maps, edges, weights, -1, 1.0), "steps"),
        ((maps, edges, weights, 1.5, 1.0), "steps"),
        ((maps, edges, weights, 1, -1.0), "beta"),
        ((maps, edges, weights, 1, math.nan), "beta"),
        ((maps / 0, edges, weights, 1, 1.0), "NaN or infinite"),
        ((maps, edges + 10, weights, 1, 1.0), "3x4 have the positions 0 to 11"),
        ((maps, edges - 1, weights, 1, 1.0), "from -1"),
        ((maps, edges, weights * 2.5, 1, 1.0), r"in \[0,1\]"),
        ((maps, edges, -weights, 1, 1.0), r"in \[0,1\]"),
        ((maps, edges, weights * math.nan, 1, 1.0), "without NaN"),
        ((maps, torch.tensor([[0, 0], [1, 1]]), weights, 1, 1.0), r"\(0, 1\) is there twice"),
        ((maps, torch.tensor([[0, 1], [1, 0]]), weights, 1, 1.0), r"\(0, 1\) is there twice"),
        ((maps, torch.tensor([[0, 5], [1, 5]]), weights, 1, 1.0), "self-loops"),
        ((maps, edges.to("meta"), weights, 1, 1.0), "one device"),
    ]
    for arguments, message in bad:
        with pytest.raises(TagmaskError, match=message):
            random_walk(*arguments)


@pytest.mark.parametrize("size", [*SIZES, (3, 12)])
@pytest.mark.parametrize("radius", [1, 1.1, 2, math.sqrt(2), 5, 20])
def test_radius_edges_are_all_pairs_once(size: tuple[int, int], radius: float) -> None:
    height, width = size
    edges, offsets = radius_edges(height, width, radius)
    assert edges.dtype == offsets.dtype == torch.int64 and edges.shape[0] == offsets.shape[1] == 2
    found = [tuple(sorted(pair)) for pair in edges.t().tolist()]
    count = height * width
    near = {
        (i, j)
        for i in range(count)
        for j in range(i + 1, count)
        if (i // width - j // width) ** 2 + (i % width - j % width) ** 2 < radius * radius
    }
    assert len(found) == len(set(found)) and set(found) == near
    steps = torch.stack([edges[1] // width - edges[0] // width, edges[1] % width - edges[0] % width], 1)
    assert torch.unique_consecutive(steps, dim=0).equal(offsets)  # grouped by offset, in that order


def test_radius_edges_of_the_papers() -> None:
    edges, offsets = radius_edges(94, 125, 5)
    assert len(offsets) == 34
    assert edges.shape[1] == sum((94 - dy) * (125 - abs(dx)) for dy, dx in offsets.tolist())
    assert radius_edges(94, 125, 5)[0] is edges  # built once


def test_cached_edges_from_inference_mode_serve_training() -> None:
    features = torch.rand(3, 5, 11, requires_grad=True)
    with torch.inference_mode():
        edges, _ = radius_edges(5, 11, 2)
    pixel_affinity(features, edges).sum().backward()
    assert features.grad is not None and features.grad.abs().sum() > 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_pixel_affinity_equals_loops(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity_graph, "BLOCK", 40)  # several blocks
    features = torch.randn(6, 4, 5, generator=seeded())
    edges, _ = radius_edges(4, 5, 3)
    flat = features.double().flatten(1).tolist()
    expected = []
    for i, j in edges.t().tolist():
        distance = sum(abs(channel[i] - channel[j]) for channel in flat)
        expected.append(math.exp(-distance / (len(flat) if reduction == "mean" else 1)))
    result = pixel_affinity(features, edges, reduction)
    torch.testing.assert_close(result, torch.tensor(expected), rtol=1e-5, atol=1e-7)
    assert pixel_affinity(features.half(), edges, reduction).dtype == torch.float32
    assert pixel_affinity(features, edges[:, :0], reduction).shape == (0,)
    exact = features.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pixel_affinity(x, edges, reduction), (exact,))


def test_pixel_affinity_errors() -> None:
    features, edges = torch.rand(3, 2, 2), torch.tensor([[0, 1], [1, 2]])
    bad = [
        ((features[0], edges), r"features \(D,h,w\)"),
        ((features, edges[0]), r"edges \(2,E\)"),
        ((features, edges, "median"), "median"),
        ((features * math.nan, edges), "NaN"),
        ((features, edges + 2), "positions 0 to 3"),
        ((features, edges - 1), "from -1"),
    ]
    for arguments, message in bad:
        with pytest.raises(TagmaskError, match=message):
            pixel_affinity(*arguments)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("radius", [1, 2, 6])
def test_path_affinity_equals_loops(size: tuple[int, int], radius: int) -> None:
    height, width = size
    boundary = torch.rand(2, height, width, generator=seeded())
    edges, affinity = path_affinity(boundary, radius)
    assert edges.equal(radius_edges(height, width, radius)[0]) and affinity.shape == (2, edges.shape[1])
    for b, image in enumerate(boundary.tolist()):
        for (i, j), got in zip(edges.t().tolist(), affinity[b].tolist()):
            assert got == pytest.approx(1 - max(image[y][x] for y, x in line(height, width, i, j)), abs=1e-7)
        assert path_affinity(boundary[b], radius)[1].equal(affinity[b])


def test_no_line_slips_through_a_diagonal() -> None:
    boundary = torch.eye(7).flip(1)
    edges, affinity = path_affinity(boundary, 5)
    side = torch.arange(49) // 7 + torch.arange(49) % 7 - 6  # sign: which side of the diagonal, 0 on it
    crosses = side[edges[0]] * side[edges[1]] <= 0
    assert (affinity[crosses] == 0).all()
    maps = (side.view(1, 7, 7) < 0).float()
    assert random_walk(maps, edges, affinity, 64, 1.0).equal(maps)


def test_padding_a_boundary_with_ones_changes_nothing() -> None:
    """What IRN's caller does: the added positions stay alone, so that the walk inside is the same."""
    boundary, maps = torch.rand(6, 8, generator=seeded()), torch.rand(2, 6, 8, generator=seeded(1))
    plain = random_walk(maps, *path_affinity(boundary, 4), 32, 2.0)
    padded = torch.nn.functional.pad(boundary, (4, 4, 4, 4), value=1.0)
    wide = random_walk(torch.nn.functional.pad(maps, (4, 4, 4, 4)), *path_affinity(padded, 4), 32, 2.0)
    torch.testing.assert_close(wide[:, 4:-4, 4:-4], plain)


def test_path_affinity_gradients() -> None:
    # Values far enough apart that no small step changes which one is the maximum.
    order = torch.randperm(40, generator=seeded()).view(2, 4, 5)
    boundary = ((order.double() + 0.5) / 40).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: path_affinity(x, 4)[1], (boundary,), fast_mode=True)
    for kind in (boundary, (order % 2).double().requires_grad_()):  # the second is full of ties
        edges, affinity = path_affinity(kind, 4)
        weights = torch.rand(affinity.shape, generator=seeded(1), dtype=torch.float64)
        (got,) = torch.autograd.grad((affinity * weights).sum(), kind)
        plain = kind.detach().clone().requires_grad_()
        paths = [line(4, 5, i, j) for i, j in edges.t().tolist()]
        highest = torch.stack([torch.stack([plain[:, y, x] for y, x in path], 1).amax(1) for path in paths], 1)
        (expected,) = torch.autograd.grad(((1 - highest) * weights).sum(), plain)
        torch.testing.assert_close(got, expected)


def test_path_affinity_half_precision() -> None:
    boundary = torch.rand(5, 6, generator=seeded()).bfloat16().requires_grad_()
    _, affinity = path_affinity(boundary, 3)
    assert affinity.dtype == torch.float32
    assert affinity.equal(path_affinity(boundary.float(), 3)[1])
    affinity.sum().backward()
    assert boundary.grad is not None and boundary.grad.dtype == torch.bfloat16 and boundary.grad.abs().sum() > 0


def test_graph_errors() -> None:
    for radius in (0, -1, math.nan, math.inf):
        with pytest.raises(TagmaskError, match="radius"):
            radius_edges(3, 3, radius)
        with pytest.raises(TagmaskError, match="radius"):
            path_affinity(torch.rand(3, 3), radius)
    with pytest.raises(TagmaskError, match="0x3"):
        radius_edges(0, 3, 2)
    with pytest.raises(TagmaskError, match=r"\(h,w\) or \(B,h,w\)"):
        path_affinity(torch.rand(1, 1, 3, 3), 2)
    with pytest.raises(TagmaskError, match="floating-point"):
        path_affinity(torch.ones(3, 3, dtype=torch.long), 2)
    for values in (torch.full((3, 3), 1.5), torch.full((3, 3), -0.1), torch.full((3, 3), math.nan)):
        with pytest.raises(TagmaskError, match=r"in \[0,1\]"):
            path_affinity(values, 2)
