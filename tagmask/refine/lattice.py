"""Permutohedral lattice: approximate Gaussian filtering over arbitrary features, in linear time."""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.refine.threads import cut, each_image, for_each, worker_count
from tagmask.tensors import check_shapes

PARTIALS = 4
"""Most threads that splat one image: each has its own copy of the lattice, and the copies are summed."""
KEPT = 2**26
"""Largest working array, in bytes, that a thread keeps for its next call; there are three, 201 MB in all."""
CPU = torch.device("cpu")


@functools.cache
def kernels() -> Any:
    """numba's kernels, imported at first use, which takes seconds. None without numba, which is optional: the torch
    operations below give the same, more slowly."""
    try:
        from tagmask.refine import lattice_numba
    except ImportError:
        return None
    return lattice_numba


def lanes(channels: int, device: torch.device) -> int:
    """Number of columns, padding included, that ``add_rows`` needs for the channels."""
    if not _compiled(device):
        return channels
    width: int = kernels().LANES
    return -(-channels // width) * width


def _compiled(device: torch.device) -> bool:
    return device.type == "cpu" and kernels() is not None


class PermutohedralLattice:
    """Approximate Gaussian filter exp(−½|f_p − f_q|²) over feature vectors f, for a batch of point sets.

    Adams, Baek and Davis, Fast High-Dimensional Filtering Using the Permutohedral Lattice, Eurographics 2010. As in
    Krähenbühl and Koltun's dense CRF, only lattice points next to a feature exist. The sum is *not* normalised and
    includes a point's own value. It is lower than the exact one, because values that the blur moves to missing lattice
    points are lost.

    features: (B,N,d) floats, divided by the standard deviations of the Gaussian; float64 stays, others become float32.

    Built once, used for any number of ``filter`` calls. Memory: N·(d+1)·16 bytes an image (18 MB for 375×500 pixels
    and five features), and two to five times the lattice points' values in a call of ``filter``. On a CPU with numba
    each thread keeps its working arrays for the next call, three of at most 67 MB.

    On a CPU numba's kernels are used, if it is installed. Raises TagmaskError for features that are not (B,N,d) or not
    finite, and for more lattice points than integers can number (standard deviations far too small).
    """

    @torch.compiler.disable
    def __init__(self, features: Tensor) -> None:
        check_shapes("The lattice", "features (B,N,d)", features)
        if not torch.isfinite(features).all():
            raise TagmaskError("The lattice's features hold NaN or infinite values.")
        kind: Any = _CompiledLattice if _compiled(features.device) else _TorchLattice
        features = features.detach() if features.dtype == torch.float64 else features.detach().float()
        self.count, self.points = features.shape[:2]
        self.device = features.device
        self.images: list[Any] = [None] * self.count
        self.normalized = False

        def build(i: int) -> None:
            self.images[i] = kind(features[i].contiguous())

        self._each_image(build)

    @torch.compiler.disable
    def filter(self, values: Tensor) -> Tensor:
        """The Gaussian sums of values (B,K,N), any K → (B,K,N) in their dtype; differentiable in the values.

        Half precision is computed in float32. Raises TagmaskError for another shape.
        """
        check_shapes("This lattice", f"values ({self.count},K,{self.points})", values)
        if not values.is_floating_point():
            raise TagmaskError(f"The lattice filters floating-point values, got {values.dtype}; take values.float().")
        return _Filter.apply(values, self, False)

    @torch.compiler.disable
    def normalize(self) -> PermutohedralLattice:
        """From now on ``filter`` applies D^-½ K D^-½ with D = K·1 (symmetric normalisation). Returns itself."""
        if self.normalized:
            return self
        self.normalized = True

        def scale(i: int) -> None:
            lattice = self.images[i]
            shape = (self.points, lanes(1, self.device))
            ones = torch.ones(shape, dtype=lattice.weights.dtype, device=self.device)
            sums = torch.zeros_like(ones)
            lattice.add_rows(ones, sums, 1.0)
            lattice.weights = lattice.weights * (sums[:, :1] + 1e-20).rsqrt()

        self._each_image(scale)
        return self

    def _each_image(self, work: Callable[[int], None]) -> None:
        if self.points > 0:
            each_image(work, self.count, self.device)


class _Filter(torch.autograd.Function):
    """The filter is linear, so its gradient is the transposed filter: the blurs in reverse order."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lattice: PermutohedralLattice, transposed: bool) -> Tensor:
        ctx.lattice, ctx.transposed = lattice, transposed
        dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
        channels, device = values.shape[1], lattice.device
        result = torch.empty_like(values)

        def work(i: int) -> None:
            rows = torch.zeros(lattice.points, lanes(channels, device), dtype=dtype, device=device)
            rows[:, :channels] = values[i].T
            sums = torch.zeros_like(rows)
            lattice.images[i].add_rows(rows, sums, 1.0, transposed)
            result[i] = sums[:, :channels].T

        lattice._each_image(work)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Filter.apply(grads[0], ctx.lattice, not ctx.transposed), None, None


def positions(height: int, width: int, device: torch.device) -> Tensor:
    """(H·W,2) pixel coordinates (x,y)."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1).float()


_kept = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """A working array of this thread, uninitialised, valid until the next call with the same name.

    Its memory is kept for reuse, up to ``KEPT`` bytes: new allocations took a third of the time of a dense CRF.
    """
    size = math.prod(shape)
    if size * np.dtype(dtype).itemsize > KEPT:
        return np.empty(shape, dtype)
    kept = getattr(_kept, name, None)
    if kept is None or kept.dtype != dtype or kept.size < size:
        kept = np.empty(size, dtype)
        setattr(_kept, name, kept)
    return kept[:size].reshape(shape)


class _Geometry:
    """Scales features of d dimensions to lattice coordinates, and numbers the lattice points."""

    def __init__(self, features: Tensor) -> None:
        d = features.shape[1]
        axis = torch.arange(1, d + 1, dtype=torch.float64)
        # Adams et al., section 3: the blurs add up to a variance of 2(d+1)²/3 in the lattice's coordinates.
        self.scale = (math.sqrt(2 / 3) * (d + 1) / torch.sqrt(axis * (axis + 1))).to(features)
        self.d = d
        # Bounds of the coordinates: those of the features, with a margin for a simplex and its neighbours.
        low, high = (features.amin(0), features.amax(0)) if len(features) else (features.new_zeros(d),) * 2
        low, high = (low * self.scale).double().cpu(), (high * self.scale).double().cpu()
        lowest, highest = [], []
        for j in range(d):
            lowest.append(math.floor(low[j:].sum() - (j * high[j - 1] if j else 0)) - 3 * (d + 1))
            highest.append(math.ceil(high[j:].sum() - (j * low[j - 1] if j else 0)) + 3 * (d + 1))
        sizes = [b - a + 1 for a, b in zip(lowest, highest)]
        if math.prod(sizes) >= 2**62:
            raise TagmaskError(
                f"The features spread over {math.prod(sizes):.1g} lattice points, too many to number; "
                "divide them by larger standard deviations."
            )
        strides = list(itertools.accumulate(sizes[:-1], lambda a, b: a * b, initial=1))
        self.lowest = torch.tensor(lowest, device=features.device)
        self.strides = torch.tensor(strides, device=features.device)
        # A neighbour along axis j is one less in every coordinate but j, where it is d more.
        self.steps = [sum(s * (d if i == j else -1) for i, s in enumerate(strides)) for j in range(d + 1)]
        self.alpha = 1 / (1 + 2.0**-d)


class _TorchLattice:
    """One image's lattice in torch operations, for GPUs and where numba is not installed.

    On a GPU the sums' order, and with it their last digits, vary from call to call unless
    ``torch.use_deterministic_algorithms(True)`` is set.
    """

    def __init__(self, features: Tensor) -> None:
        geometry = _Geometry(features)
        d = geometry.d
        scaled = features * geometry.scale
        suffix = scaled.flip(1).cumsum(1).flip(1)
        zero = suffix.new_zeros(len(features), 1)
        # Elevate onto the hyperplane whose coordinates sum to 0.
        factor = torch.arange(d + 1, device=features.device)
        elevated = torch.cat([suffix, zero], 1) - factor * torch.cat([zero, scaled], 1)
        # The nearest lattice point of colour 0: round to multiples of d+1, then correct the sum by rank.
        down = torch.floor(elevated / (d + 1)) * (d + 1)
        nearest = torch.where(down + (d + 1) - elevated < elevated - down, down + (d + 1), down)
        excess = (nearest.sum(1, keepdim=True) / (d + 1)).round()
        rank = (elevated - nearest).argsort(dim=1, descending=True, stable=True).argsort(dim=1) + excess
        nearest -= (d + 1) * torch.floor(rank / (d + 1))
        rank = torch.remainder(rank, d + 1).long()
        # Barycentric weights from the differences of the sorted residuals.
        residual = torch.empty_like(elevated).scatter_(1, rank, (elevated - nearest) / (d + 1)).flip(1)
        self.weights = residual - torch.cat([residual[:, -1:] - 1, residual[:, :-1]], 1)
        points = []
        for k in range(d + 1):
            corner = nearest.long() + torch.where(rank <= d - k, k, k - (d + 1))
            points.append(((corner[:, :d] - geometry.lowest) * geometry.strides).sum(1))
        numbers, index = torch.unique(torch.stack(points, 1), return_inverse=True)
        self.index = index
        self.size = len(numbers)
        self.alpha = geometry.alpha
        self.neighbours = [tuple(self._find(numbers, numbers + sign * s) for sign in (1, -1)) for s in geometry.steps]

    def _find(self, numbers: Tensor, wanted: Tensor) -> Tensor:
        """Positions of ``wanted`` in the sorted ``numbers``; if missing, that of the row of zeros at the end."""
        place = torch.searchsorted(numbers, wanted).clamp_(max=max(0, self.size - 1))
        return torch.where(numbers[place] == wanted, place, self.size)

    def add_rows(self, values: Tensor, result: Tensor, factor: float, transposed: bool = False) -> None:
        """result (N,K) += factor · filtered values (N,K)."""
        weights = self.weights.to(values.dtype)
        lattice = values.new_zeros(self.size + 1, values.shape[1])
        corners = range(weights.shape[1])
        for k in corners:
            lattice.index_add_(0, self.index[:, k], values * weights[:, k, None])
        for before, after in reversed(self.neighbours) if transposed else self.neighbours:
            blurred = lattice[before]
            blurred += lattice[after]
            lattice[:-1].add_(blurred, alpha=0.5)
        for k in corners:
            result.addcmul_(lattice[self.index[:, k]], weights[:, k, None], value=factor * self.alpha)


class _CompiledLattice:
    """One image's lattice with numba's kernels, on a CPU."""

    def __init__(self, features: Tensor) -> None:
        geometry = _Geometry(features)
        count, corners = len(features), geometry.d + 1
        points = features.numpy()
        keys = scratch("keys", (count, corners), np.int64)
        weights = np.empty((count, corners), points.dtype)
        scale, lowest, strides = geometry.scale.numpy(), geometry.lowest.numpy(), geometry.strides.numpy()
        _spread(count, lambda p: kernels().embed(points[p], scale, lowest, strides, keys[p], weights[p]))
        self.index, numbers, table = kernels().number(keys)
        self.size = len(numbers)
        self.neighbours = np.empty((corners, 2, self.size), np.int32)
        steps = np.array(geometry.steps)
        _spread(self.size, lambda p: kernels().find(numbers, table, steps, p.start, p.stop, self.neighbours))
        self.weights = torch.from_numpy(weights)
        self.alpha = geometry.alpha

    def add_rows(self, values: Tensor, result: Tensor, factor: float, transposed: bool = False) -> None:
        """result (N,K) += factor · filtered values (N,K); K as ``lanes`` gives it."""
        source, out = values.numpy(), result.numpy()
        weights = self.weights.to(values.dtype).numpy()
        bands = cut(len(source), min(worker_count(CPU), PARTIALS))
        # A part a thread, so that no two write the same lattice point.
        shape = (self.size + 1, source.shape[1])
        parts, spare = scratch("parts", (len(bands), *shape), source.dtype), scratch("spare", shape, source.dtype)
        spans = np.zeros((len(bands), 2), np.int64)  # rows of the lattice that each band of pixels touches

        def splat(band: slice) -> None:
            t = bands.index(band)
            spans[t] = kernels().span(self.index, band.start, band.stop)
            parts[t, spans[t, 0] : spans[t, 1]] = 0
            kernels().splat(source, self.index, weights, band.start, band.stop, parts[t])

        for_each(splat, bands, CPU)
        # The blurs alternate between two arrays: start in the one for which the last blur writes ``spare``.
        old, new = (parts[0], spare) if len(self.neighbours) % 2 else (spare, parts[0])
        _spread(self.size, lambda p: kernels().merge(parts, spans, p.start, p.stop, old))
        old[-1] = new[-1] = 0  # the value of missing neighbours
        for pair in reversed(self.neighbours) if transposed else self.neighbours:
            _spread(self.size, lambda p: kernels().blur(old, pair, p.start, p.stop, new))  # noqa: B023 (called at once)
            old, new = new, old
        factors = np.full(weights.shape[1], factor * self.alpha, source.dtype)
        _spread(len(out), lambda p: kernels().slice_rows(spare, self.index, weights, factors, p.start, p.stop, out))


def _spread(length: int, work: Callable[[slice], None]) -> None:
    """0..length divided among the threads."""
    for_each(work, cut(length, worker_count(CPU)), CPU)
