"""Random walk beside the squared dense transition matrix, path affinities beside gathered index tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alternatives import Case
from tagmask.refine import path_affinity, radius_edges, random_walk

RADIUS = 5
STEPS = 256
BETA = 10
PHOTO = (94, 125)  # 375×500 at stride 4
SMALL = (36, 48)


def boundary(size: tuple[int, int], device: torch.device) -> Tensor:
    """Smooth ground near 0 with closed lines near 1, as a boundary network gives it."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    rings = torch.exp(-(((y.square() + x.square()).sqrt() * 6 % 2 - 1) / 0.3).square())
    return (0.8 * rings + 0.15 * torch.rand(size, generator=generator)).to(device)


def inputs(size: tuple[int, int], maps: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    edges, weights = path_affinity(boundary(size, device), RADIUS)
    return torch.rand(maps, *size, generator=torch.Generator().manual_seed(1)).to(device), edges, weights


def ours(size: tuple[int, int], maps: int) -> Callable[[torch.device], Callable[[], Tensor]]:
    def form(device: torch.device) -> Callable[[], Tensor]:
        random_walk(*inputs((8, 8), 2, device), steps=2, beta=BETA)
        values, edges, weights = inputs(size, maps, device)
        return lambda: random_walk(values, edges, weights, steps=STEPS, beta=BETA)

    return form


def squaring(size: tuple[int, int], maps: int) -> Callable[[torch.device], Callable[[], Tensor]]:
    """The straightforward form: all N×N transitions, squared until they are those of 256 steps."""

    def form(device: torch.device) -> Callable[[], Tensor]:
        values, edges, weights = inputs(size, maps, device)

        def run() -> Tensor:
            transition = torch.eye(values[0].numel(), device=device)
            transition[edges[0], edges[1]] = weights**BETA
            transition[edges[1], edges[0]] = weights**BETA
            transition /= transition.sum(0, keepdim=True)
            for _ in range(STEPS.bit_length() - 1):
                transition = transition @ transition
            return (values.flatten(1) @ transition).view_as(values)

        return run

    return form


def paths(device: torch.device) -> Callable[[], Tensor]:
    path_affinity(boundary((8, 8), device), RADIUS)
    values = boundary(PHOTO, device)
    radius_edges(*PHOTO, RADIUS, device)
    return lambda: path_affinity(values, RADIUS)[1]


def gathered_paths(device: torch.device) -> Callable[[], Tensor]:
    """The straightforward form: for each offset, the flat positions of all paths, gathered and reduced."""
    height, width = PHOTO
    values = boundary(PHOTO, device)
    positions = torch.arange(height * width, device=device).view(height, width)
    tables = []
    for dy in range(RADIUS):
        for dx in range(1 - RADIUS, RADIUS):
            if (dy, dx) > (0, 0) and dy * dy + dx * dx < RADIUS * RADIUS:
                first = positions[: height - dy, max(0, -dx) : width - max(0, dx)].flatten()
                steps = [
                    y * width + x
                    for y in range(dy + 1)
                    for x in range(min(0, dx), max(0, dx) + 1)
                    if (dy * x - dx * y) ** 2 < dy * dy + dx * dx
                ]
                tables.append(first + torch.tensor(steps, device=device)[:, None])

    def run() -> Tensor:
        flat = values.flatten()
        return torch.cat([1 - flat[table].amax(0) for table in tables])

    return run


def cases() -> list[Case]:
    return [
        Case(
            "walk",
            "photo",
            f"20x{PHOTO[0]}x{PHOTO[1]}, radius {RADIUS}, {STEPS} steps",
            {"ours": ours(PHOTO, 20), "dense squaring": squaring(PHOTO, 20)},
            ">= 100x dense squaring; <= 1 s, 150 MB",
        ),
        Case(
            "walk",
            "small",
            f"20x{SMALL[0]}x{SMALL[1]}, radius {RADIUS}, {STEPS} steps",
            {"ours": ours(SMALL, 20), "dense squaring": squaring(SMALL, 20)},
            "",
        ),
        Case(
            "path-affinity",
            "photo",
            f"{PHOTO[0]}x{PHOTO[1]}, radius {RADIUS}",
            {"ours": paths, "gathered": gathered_paths},
            "",
        ),
    ]
