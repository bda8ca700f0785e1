"""PAR, PAMR and VARM pixel by pixel in float64, from the equations in their docstrings."""

from __future__ import annotations

import math

import numpy as np


def neighbours(dilations):
    return [(d * a, d * b) for d in dilations for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]


def at(grid, i, j):
    """Value at row i, column j of (...,H,W), the border's value beyond it."""
    height, width = grid.shape[-2:]
    return grid[..., min(max(i, 0), height - 1), min(max(j, 0), width - 1)]


def softmax(values):
    top = max(values)
    exps = [math.exp(v - top) for v in values]
    return [e / sum(exps) for e in exps]


def std(samples):
    mean = sum(samples) / len(samples)
    return math.sqrt(sum((s - mean) ** 2 for s in samples) / (len(samples) - 1))


def par_weights(image, i, j, dilations, w1, w2):
    offsets = neighbours(dilations)
    colours = [at(image, i + y, j + x) for y, x in offsets]
    energies = []
    for colour in colours:
        parts = [(abs(colour[c] - image[c, i, j]) / (std([k[c] for k in colours]) + 1e-8) / w1) ** 2 for c in range(3)]
        energies.append(-sum(parts) / 3)
    distances = [math.hypot(y, x) for y, x in offsets]
    position = softmax([-((d / (std(distances) + 1e-8) / w1) ** 2) for d in distances])
    return [a + w2 * b for a, b in zip(softmax(energies), position)]


def pamr_weights(image, i, j, dilations):
    offsets = neighbours(dilations)
    window = [(d * a, d * b) for d in dilations for a in (-1, 0, 1) for b in (-1, 0, 1)]
    samples = [at(image, i + y, j + x) for y, x in window]
    energies = []
    for y, x in offsets:
        colour = at(image, i + y, j + x)
        parts = [abs(colour[c] - image[c, i, j]) / (1e-8 + 0.1 * std([s[c] for s in samples])) for c in range(3)]
        energies.append(-sum(parts) / 3)
    return softmax(energies)


def varm_weights(image, i, j, dilations, alpha, beta, variant):
    height, width = image.shape[-2:]
    offsets = neighbours(dilations)
    colours = [at(image, i + y, j + x) for y, x in offsets]
    if variant == "paper":
        column = max(j - 1, 0)
    else:
        column = min(j + 1, width - 1)
    row = min(i + 1, height - 1)
    energies, variation = [], []
    for (y, x), colour in zip(offsets, colours):
        parts = [
            (alpha * abs(colour[c] - image[c, i, j])) ** 2 / (std([k[c] for k in colours]) + 1e-8) ** 2
            for c in range(3)
        ]
        energies.append(-sum(parts) / 3)
        sideways = (at(image, i + y, column + x) - colour) ** 2
        down = (at(image, row + y, j + x) - colour) ** 2
        variation.append(sum(sideways + down) / 3)
    return [a - beta * b for a, b in zip(softmax(energies), softmax(variation))]


def refine(image, maps, iterations, dilations, weights):
    """image (3,H,W), maps (K,H,W) float64; weights(image, i, j) → list over neighbours(dilations)."""
    height, width = image.shape[-2:]
    table = {(i, j): weights(image, i, j) for i in range(height) for j in range(width)}
    for _ in range(iterations):
        result = np.zeros_like(maps)
        for (i, j), values in table.items():
            for weight, (y, x) in zip(values, neighbours(dilations)):
                result[:, i, j] += weight * at(maps, i + y, j + x)
        maps = result
    return maps
