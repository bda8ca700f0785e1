"""PAR, PAMR and VARM beside their straightforward form.

That form is written as the operators are usually described: a loop over images and over thresholds, all neighbours
stacked by one-hot dilated convolutions, the weights computed anew for each threshold. Where there is a GPU, ``bytes``
is a yardstick: a copy that moves, once an iteration, as many bytes as the weights and the maps in and out have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from alternatives import Case
from tagmask.refine import PAMR, PAR, VARM

OPERATORS: dict[str, Callable[[], torch.nn.Module]] = {
    "par": PAR,
    "pamr": PAMR,
    "varm": VARM,
    "varm-release": lambda: VARM(variant="release"),
}
SIZES = {  # images, maps of one threshold, thresholds, height, width
    "small": (16, 3, 2, 112, 112),
    "photo": (1, 15, 1, 213, 320),
    "step": (4, 3, 2, 256, 256),
    "label": (1, 21, 1, 512, 512),
}
TARGET = ">= 20x faster, <= 1/3 of the memory of plain"
DILATIONS = (1, 2, 4, 8, 12, 24)


def cases() -> list[Case]:
    found = []
    for operator in OPERATORS:
        for name, size in SIZES.items():
            count, maps, thresholds, height, width = size
            shape = f"{count} images, {maps} maps x {thresholds} thresholds, {height}x{width}"
            forms = {"ours": partial(ours, operator, size), "plain": partial(plain, operator, size)}
            if torch.cuda.is_available():
                forms["bytes"] = partial(necessary_bytes, size)
            found.append(Case(operator, name, shape, forms, TARGET if name in ("step", "label") else ""))
    return found


def ours(operator: str, size: tuple, device: torch.device) -> Callable[[], Tensor]:
    module = OPERATORS[operator]()
    module(*inputs(1, 2, 32, 32, device))  # threads and kernels are loaded
    count, maps, thresholds, height, width = size
    images, scores = inputs(count, maps * thresholds, height, width, device)
    return lambda: module(images, scores)


def necessary_bytes(size: tuple, device: torch.device) -> Callable[[], Tensor]:
    count, maps, thresholds, height, width = size
    moved = (8 * len(DILATIONS) + 2 * maps * thresholds) * count * height * width  # floats, in and out together
    source = torch.ones(moved // 2, device=device)
    target = torch.empty_like(source)

    def run() -> Tensor:
        for _ in range(10):
            target.copy_(source)
        return source.new_empty(0)

    return run


def plain(operator: str, size: tuple, device: torch.device) -> Callable[[], Tensor]:
    straightforward(operator, *inputs(1, 2, 32, 32, device), 2)
    count, maps, thresholds, height, width = size
    images, scores = inputs(count, maps * thresholds, height, width, device)
    return lambda: straightforward(operator, images, scores, thresholds)


def inputs(count: int, maps: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Smooth colours with noise, so that standard deviations are those of photos; maps that sum to 1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    images = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    images = (images + 0.05 * torch.rand(images.shape, generator=generator)).clamp(0, 1)
    return images.to(device), torch.rand(count, maps, height, width, generator=generator).softmax(1).to(device)


@torch.no_grad()
def straightforward(operator: str, images: Tensor, maps: Tensor, thresholds: int) -> Tensor:
    """Images one by one, thresholds one by one."""
    results = []
    for image, scores in zip(images, maps):
        parts = []
        for part in scores[None].chunk(thresholds, 1):
            kernel = weights(operator, image[None])
            for _ in range(10):
                part = (stack(part) * kernel[:, None]).sum(2)
            parts.append(part)
        results.append(torch.cat(parts, 1))
    return torch.cat(results)


def weights(operator: str, image: Tensor) -> Tensor:
    """(1,3,H,W) → (1,48,H,W), by the equations, all neighbours at once."""
    around, own = stack(image), image[:, :, None]
    if operator == "pamr":
        std = stack(image, centre=True).std(2, keepdim=True)
        return torch.softmax(-((around - own).abs() / (1e-8 + 0.1 * std)).mean(1), 1)
    std = around.std(2, keepdim=True) + 1e-8
    if operator == "par":
        steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
        distance = torch.tensor([d * (a * a + b * b) ** 0.5 for d in DILATIONS for a, b in steps], device=image.device)
        position = torch.softmax(-((distance / (distance.std() + 1e-8) / 0.3) ** 2), 0)
        colour = -(((around - own).abs() / std / 0.3) ** 2).mean(1)
        return torch.softmax(colour, 1) + 0.01 * position[None, :, None, None]
    if operator == "varm":
        beside = torch.cat([around[..., :1], around[..., :-1]], -1)
    else:
        beside = torch.cat([around[..., 1:], around[..., -1:]], -1)
    below = torch.cat([around[..., 1:, :], around[..., -1:, :]], -2)
    variation = ((beside - around) ** 2 + (below - around) ** 2).mean(1)
    colour = -((4 * (around - own).abs()) ** 2 / std**2).mean(1)
    return torch.softmax(colour, 1) - 0.01 * torch.softmax(variation, 1)


def stack(x: Tensor, centre: bool = False) -> Tensor:
    """(1,C,H,W) → (1,C,48,H,W), or 54 with the centre of each window, by convolution with one-hot 3×3 kernels."""
    places = [i for i in range(9) if centre or i != 4]
    kernels = torch.eye(9, device=x.device)[places].view(-1, 1, 3, 3)
    parts = []
    for d in DILATIONS:
        padded = F.pad(x, (d, d, d, d), mode="replicate").transpose(0, 1)
        parts.append(F.conv2d(padded, kernels, dilation=d))
    return torch.cat(parts, 1)[None]
