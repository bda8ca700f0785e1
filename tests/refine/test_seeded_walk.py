"""The seeded walk against its equation, assembled in loops and solved densely."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tagmask.errors import TagmaskError
from tagmask.refine import seeded_walk


def by_loops(image: torch.Tensor, prior: torch.Tensor, seeds: list[tuple[int, int, int]], beta: float, strength: float):
    labels, height, width = prior.shape
    count = height * width
    changes, pairs = [], []
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    one, other = image[:, y, x].double(), image[:, y + dy, x + dx].double()
                    changes.append(sum(float(a - b) ** 2 for a, b in zip(one, other, strict=True)))
                    pairs.append((y * width + x, (y + dy) * width + x + dx, math.hypot(dy, dx)))
    mean = sum(changes) / len(changes)
    laplacian = np.zeros((count, count))
    for change, (i, j, distance) in zip(changes, pairs, strict=True):
        weight = math.exp(-beta * change / mean) / distance
        laplacian[i, j] -= weight
        laplacian[j, i] -= weight
        laplacian[i, i] += weight
        laplacian[j, j] += weight
    known = {y * width + x: label for x, y, label in seeds}
    result = np.zeros((labels, count))
    for label in range(labels):
        matrix, right = laplacian + strength * np.eye(count), strength * prior[label].double().numpy().ravel()
        for place, seeded in known.items():
            matrix[place] = 0
            matrix[place, place], right[place] = 1, seeded == label
        result[label] = np.linalg.solve(matrix, right)
    return torch.from_numpy(result.reshape(labels, height, width))


@pytest.mark.parametrize("seeds", [[(2, 3, 1)], [(0, 0, 2), (4, 5, 1), (4, 5, 0)], []])
def test_the_walk_equals_its_equation(seeds: list[tuple[int, int, int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 6, 5, generator=generator)
    prior = torch.rand(3, 6, 5, generator=generator).softmax(0)
    found = seeded_walk(image, prior, torch.tensor(seeds).reshape(-1, 3), beta=2.0, strength=0.05)
    torch.testing.assert_close(found.double(), by_loops(image, prior, seeds, 2.0, 0.05), atol=1e-6, rtol=0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(0), torch.ones(6, 5), atol=1e-5, rtol=0)


def test_a_seed_fills_what_has_its_colour_and_stops_at_the_edge() -> None:
    image = torch.full((3, 20, 30), 0.2)
    image[:, 5:15, 10:25] = 0.8
    nothing = torch.zeros(2, 20, 30)
    nothing[0] = 1
    found = seeded_walk(image, nothing, torch.tensor([[12, 7, 1]])).argmax(0)
    wanted = torch.zeros(20, 30, dtype=torch.long)
    wanted[5:15, 10:25] = 1
    assert torch.equal(found, wanted)


def test_an_even_image_has_no_edges() -> None:
    prior = torch.rand(2, 4, 4).softmax(0)
    assert seeded_walk(torch.full((3, 4, 4), 0.5), prior, torch.tensor([[1, 1, 0]])).isfinite().all()
    assert seeded_walk(torch.full((3, 1, 1), 0.5), prior[:, :1, :1], torch.tensor([[0, 0, 1]])).flatten().tolist() == [
        0,
        1,
    ]


@pytest.mark.parametrize("seed", [[5, 0, 0], [0, 6, 0], [0, 0, 2], [-1, 0, 0]])
def test_seeds_outside_are_refused(seed: list[int]) -> None:
    with pytest.raises(TagmaskError, match="5x6 pixels and 2 labels"):
        seeded_walk(torch.rand(3, 6, 5), torch.rand(2, 6, 5), torch.tensor([seed]))
