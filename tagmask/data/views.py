"""Training views: one random geometry for image, mask and box, and further looks at the same pixels.

Geometry is drawn first and photometry is applied to the photo alone, so padding stays zero in every view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tagmask.config import ViewConfig
from tagmask.errors import ConfigError
from tagmask.types import IGNORE, Sample, View

VIEWS = frozenset(("strong", "local", "photo"))
LOCAL_JITTER = (0.4, 0.4, 0.2, 0.1)
LOCAL_GREY = 0.2
BLUR_SIGMA = (0.1, 2.0)


def reduction(size: Sequence[int], short_side: int | None) -> float:
    """Factor in (0,1] that brings the short side of a photo (H,W) down to ``short_side``; 1 where it is not larger."""
    return 1.0 if short_side is None else min(1.0, short_side / min(size))


class TrainViews:
    """Augments one sample for training.

    Main view: resize by a factor from ``config.scale`` of the photo's own size (or of the square ``config.square``),
    flip, random crop to a square of ``config.crop`` with zero padding where the photo is smaller (placed at random),
    colour jitter, Gaussian blur with a standard deviation of 0.1 to 2 pixels. 'strong' in ``wanted``: the main view's
    pixels after ``config.strong`` of the nine photometric operations of RandAugment (Cubuk et al. 2020), one after the
    other; the main view is then the weak one. With 0 both are the same.
    'local' in ``wanted``: square crops of the main view's geometry, anywhere in the photo, flipped at random, with
    jitter .4/.4/.2/.1 and grey at .2 of their own (ECA). 'photo': the whole photo, its long side brought to
    ``config.crop`` and zero padding at the right or bottom, as it is in each step: unflipped, photometry left out (it
    draws no random number).
    Raises ConfigError on unknown views and on local crops larger than the main one.
    """

    def __init__(self, config: ViewConfig, wanted: frozenset[str] = frozenset()) -> None:
        if not wanted <= VIEWS:
            raise ConfigError(f"unknown view '{min(wanted - VIEWS)}'; there are {', '.join(sorted(VIEWS))}.")
        if "local" in wanted:
            check_local(config)
        self.config = config
        self.wanted = frozenset(wanted)

    def __call__(self, sample: Sample, generator: Generator) -> dict[str, Any]:
        """Keys: 'image' (3,S,S) float32 in [0,1]; 'box' long (4,); 'mask' uint8 (S,S), 255 on padding, or None;
        'views': View by name without the batch dimension ('local' has the crops' dimension first).

        Every random number comes from ``generator``.
        """
        config, side = self.config, self.config.crop
        photo, mask, box, from_photo = self._geometry(sample, generator)
        main = blur(jitter(photo, config.jitter, generator), config.blur, generator)
        views = {}
        if "strong" in self.wanted:
            strong = main
            for _ in range(config.strong):
                strong = photometric(strong, generator)
            views["strong"] = View(_place(strong, box, side), torch.tensor(box), torch.eye(3)[:2])
        if "local" in self.wanted:
            canvas = _place(photo, box, side)
            crops = [self._local(canvas, box, generator) for _ in range(config.local.count)]
            views["local"] = View(*(torch.stack(parts) for parts in zip(*crops)))
        if "photo" in self.wanted:
            views["photo"] = self._photo(sample.image, from_photo)
        return {"image": _place(main, box, side), "box": torch.tensor(box), "mask": mask, "views": views}

    def _geometry(
        self, sample: Sample, generator: Generator
    ) -> tuple[Tensor, Tensor | None, list[int], list[tuple[float, float]]]:
        """The photo's visible part, the mask on the canvas, and the box of that part on the canvas.

        Last, for x and y, (a,b): what lies at the fraction f of the photo's side lies at a·f + b pixels of the canvas.
        """
        image, mask, side = sample.image, sample.mask, self.config.crop
        factor = _uniform(generator, *self.config.scale)
        if self.config.square is None:
            factor *= reduction(image.shape[-2:], self.config.short_side)
            height, width = (max(1, round(n * factor)) for n in image.shape[-2:])
        else:
            height = width = max(1, round(self.config.square * factor))
        left, x0, x1 = _window(width, side, generator)
        top, y0, y1 = _window(height, side, generator)
        flip = _uniform(generator) < self.config.flip
        image = F.resize(image, [height, width], antialias=True)
        image = image[:, top : top + y1 - y0, left : left + x1 - x0].clamp(0, 1)
        if flip:
            image = image.flip(-1)
        if mask is not None:
            mask = F.resize(mask[None], [height, width], InterpolationMode.NEAREST_EXACT)
            mask = mask[:, top : top + y1 - y0, left : left + x1 - x0]
            mask = _place(mask.flip(-1) if flip else mask, [x0, y0, x1, y1], side, IGNORE)[0]
        across = (-width, x1 + left) if flip else (width, x0 - left)
        return image, mask, [x0, y0, x1, y1], [across, (height, y0 - top)]

    def _photo(self, image: Tensor, from_photo: list[tuple[float, float]]) -> View:
        """The whole photo; from_photo: as ``_geometry`` gives it."""
        side = self.config.crop
        height, width = (max(1, round(n * side / max(image.shape[-2:]))) for n in image.shape[-2:])
        box = [0, 0, width, height]
        whole = _place(F.resize(image, [height, width], antialias=True).clamp(0, 1), box, side)
        affine = torch.zeros(2, 3, dtype=torch.float64)
        for axis, ((a, b), length) in enumerate(zip(from_photo, (width, height))):
            # What is at e pixels of this canvas is at a/length·e + b of the main one; points ±1 are at ½ and side - ½.
            affine[axis, axis] = a / length
            affine[axis, 2] = (a / length * side + 2 * b - side) / (side - 1)
        return View(whole, torch.tensor(box), affine.float())

    def _local(self, canvas: Tensor, box: list[int], generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        size = self.config.local.size
        bounds = (local_starts(box[i], box[i + 2], size, self.config.crop) for i in (0, 1))
        starts = [first + _integer(generator, last - first + 1) for first, last in bounds]
        return local_crop(canvas, box, starts, size, self.config.flip, generator)


def check_local(config: ViewConfig) -> None:
    """Raise ConfigError for local crops larger than the main view."""
    if config.local.size > config.crop:
        raise ConfigError(f"views.local.size ({config.local.size}) is larger than views.crop ({config.crop}).")


def local_starts(low: int, high: int, size: int, side: int) -> tuple[int, int]:
    """First and last pixel that a local crop of ``size`` may start at, on a canvas of ``side``.

    It lies inside the photo, which goes from ``low`` to ``high``, where the photo is larger than it, else over all of
    the photo.
    """
    first, last = sorted((low, high - size))
    return max(first, 0), min(last, side - size)


def local_crop(
    canvas: Tensor, box: Sequence[int], start: Sequence[int], size: int, flip: float, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A local view (ECA): the square of ``size`` at ``start`` (x,y), flipped at random, with colours of its own.

    canvas: (3,S,S) in [0,1], on any device; box: of its photo. generator: on the CPU. Returns the crop (3,size,size),
    the box of the photo in it, long (4,), and the affine (2,3) to the canvas, as a View has them.
    """
    x, y = start
    flipped = _uniform(generator) < flip
    x0, y0 = max(box[0] - x, 0), max(box[1] - y, 0)
    x1, y1 = min(box[2] - x, size), min(box[3] - y, size)
    crop = canvas[:, y : y + size, x : x + size]
    if flipped:
        crop, x0, x1 = crop.flip(-1), size - x1, size - x0
    photo = jitter(crop[:, y0:y1, x0:x1], LOCAL_JITTER, generator)
    if _uniform(generator) < LOCAL_GREY:
        photo = F.rgb_to_grayscale(photo, num_output_channels=3)
    inner = [x0, y0, x1, y1]
    return _place(photo, inner, size), torch.tensor(inner), crop_affine(x, y, size, canvas.shape[-1], flipped)


def _window(length: int, side: int, generator: Generator) -> tuple[int, int, int]:
    """Where to cut the resized photo, and begin and end of the cut piece on the canvas."""
    if length >= side:
        return _integer(generator, length - side + 1), 0, side
    begin = _integer(generator, side - length + 1)
    return 0, begin, begin + length


def _place(photo: Tensor, box: list[int], side: int, value: float = 0) -> Tensor:
    x0, y0, x1, y1 = box
    return nnf.pad(photo, (x0, side - x1, y0, side - y1), value=value)


def _uniform(generator: Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _integer(generator: Generator, count: int) -> int:
    return int(torch.randint(count, (), generator=generator))


def jitter(image: Tensor, amounts: tuple[float, float, float, float], generator: Generator) -> Tensor:
    """Brightness, contrast and saturation times 1 ± amount and hue plus ± amount (of a turn), in random order.

    image: float (3,H,W) in [0,1]. Amounts of 0 leave the image as it is.
    """
    steps = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    if not any(amounts):
        return image
    for i in torch.randperm(4, generator=generator).tolist():
        centre, lowest = (0.0, -0.5) if i == 3 else (1.0, 0.0)
        drawn = _uniform(generator, max(centre - amounts[i], lowest), centre + amounts[i])
        if amounts[i]:
            image = steps[i](image, drawn)
    return image


def blur(image: Tensor, probability: float, generator: Generator) -> Tensor:
    """Gaussian blur, standard deviation 0.1 to 2 pixels, with the given probability. image: float (3,H,W)."""
    chance, sigma = _uniform(generator), _uniform(generator, *BLUR_SIGMA)
    if chance >= probability:
        return image
    reach = math.ceil(3 * sigma)
    # Reflection needs more pixels than the reach: repeat the edge first, so that slivers can be blurred, too.
    wide = F.pad(image, [reach], padding_mode="edge")
    return F.gaussian_blur(wide, [2 * reach + 1] * 2, [sigma] * 2)[:, reach:-reach, reach:-reach].contiguous()


def photometric(image: Tensor, generator: Generator) -> Tensor:
    """One of RandAugment's nine operations that leave geometry alone, each equally likely. image: float (3,H,W).

    Identity, autocontrast, equalize, solarize (threshold 0 to 1), posterize (4 to 7 bits), and brightness, contrast,
    colour and sharpness (factor 0.1 to 1.9, RandAugment's full range).
    """
    which, amount = _integer(generator, 9), _uniform(generator)
    factor = 0.1 + 1.8 * amount
    operations: list[Callable[[], Tensor]] = [
        lambda: image,
        lambda: F.autocontrast(image),
        lambda: F.equalize(image),
        lambda: F.solarize(image, amount),
        lambda: F.posterize(image, 4 + int(4 * amount)),
        lambda: F.adjust_brightness(image, factor),
        lambda: F.adjust_contrast(image, factor),
        lambda: F.adjust_saturation(image, factor),
        lambda: F.adjust_sharpness(image, factor),
    ]
    return operations[which]()


def crop_affine(x: int, y: int, size: int, side: int, flip: bool) -> Tensor:
    """Affine (2,3) from points of a square crop at pixel (x,y) to points of the view of ``side`` it was cut from."""
    shift = tuple((2 * start + size - 1) / (side - 1) - 1 for start in (x, y))
    return make_affine(flip, (size - 1) / (side - 1), translation=(shift[0], shift[1]))


def make_affine(
    flip: bool = False, scale: float = 1.0, rotation: float = 0.0, translation: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    """Affine (2,3) from points of a view to points of the main view: flip, then scale, rotate, shift.

    Points are (x,y) in [-1,1]; rotation in degrees, positive from x towards y (clockwise on screen); translation in
    the same units as the points. A scale below 1 makes the view look closer.
    """
    cosine, sine = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    sign = -1.0 if flip else 1.0
    along_x = [sign * scale * cosine, -scale * sine, translation[0]]
    along_y = [sign * scale * sine, scale * cosine, translation[1]]
    return torch.tensor([along_x, along_y], dtype=torch.float32)


def warp(maps: Tensor, affine: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Look at maps (B,K,h,w) of the main view through views' affines (B,2,3) → (B,K,*size), size as given or (h,w).

    The output's pixel at point p is the bilinear value of ``maps`` at ``affine`` · (p,1), where −1 and 1 are the
    corner pixels' centres; points outside give 0. Differentiable. Half-precision maps, and those under autocast, are
    looked at in float32: half-precision points are off by pixels.
    """
    height, width = size or maps.shape[-2:]
    with torch.autocast(maps.device.type, enabled=False):
        if maps.dtype in (torch.float16, torch.bfloat16):
            maps = maps.float()
        grid = nnf.affine_grid(affine.to(maps), [maps.shape[0], 1, height, width], align_corners=True)
        return nnf.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
