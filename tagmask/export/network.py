"""A run's segmenter as one network: photos in, labels out, for torch.export and ONNX."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import torch
from timm.layers import padding
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.errors import ConfigError
from tagmask.label.infer import Inference, as_square, scaled
from tagmask.types import IGNORE

EXAMPLE = (2, 213, 320, 3)
"""Shape of the photos that a network is traced with: all sides are dynamic, so they only must not be special."""


class Network(nn.Module):
    """What ``Inference`` does without tags, but for the dense CRF and tiles.

    Takes photos uint8 (B,H,W,3), RGB; gives labels uint8 (B,H,W), 255 where less sure than ``label.unsure``, and the
    probability of each label, float32 (B,H,W). Raises ConfigError for a method without a segmenter, and for Swins.
    """

    def __init__(self, inference: Inference) -> None:
        super().__init__()
        inference.need_segmenter()
        if getattr(inference.method.encoder, "kind", "") == "swin":
            raise ConfigError(
                "A Swin cannot be exported: tracing its windows for all sizes does not end. Teach a segmenter on "
                "another encoder with this run's masks (--labels-of)."
            )
        self.config, self.short_side = inference.config, inference.short_side
        self.method = copy.deepcopy(inference.method).cpu().float().eval().requires_grad_(False)

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        images = photos.permute(0, 3, 1, 2).float() / 255
        full = images.shape[-2:]
        size = list(full)
        if self.short_side is not None:
            short: Any = torch.sym_min(*full)
            wanted: Any = torch.sym_min(short, self.short_side)
            size = [scaled(side, wanted, short) for side in full]
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True).clamp(0, 1)
        if self.config.square is None:
            logits = self.logits(images)
        else:
            logits = F.interpolate(self.logits(as_square(images, self.config.square)), size=size, mode="bilinear")
        scores = F.interpolate(logits.softmax(1), size=list(full), mode="bilinear")
        best, labels = scores.max(dim=1)
        labels = labels.to(torch.uint8)
        if self.config.unsure:
            labels = labels.masked_fill(best < self.config.unsure, IGNORE)
        return labels, best

    def logits(self, images: Tensor) -> Tensor:
        """(B,C+1,h,w) of images (B,3,h,w), over all scales and mirror images as ``label`` says."""
        size = list(images.shape[-2:])
        found = []
        for scale in self.config.scales:
            ratio = Fraction(scale).limit_denominator(1000)
            sides = [scaled(side, ratio.numerator, ratio.denominator) for side in size]
            seen = images if scale == 1 else F.interpolate(images, size=sides, mode="bilinear")
            if self.config.flip:
                seen = torch.cat([seen, seen.flip(-1)])
            logits = self.method.segment(seen)  # type: ignore[operator]
            if self.config.flip:
                logits, mirrored = logits.chunk(2)
                found.append(F.interpolate(mirrored.flip(-1), size=size, mode="bilinear"))
            found.append(F.interpolate(logits, size=size, mode="bilinear"))
        together = torch.stack(found)
        return together.amax(0) if self.config.merge == "max" else together.mean(0)


def program(network: Network) -> torch.export.ExportedProgram:
    """The network traced by torch.export, for any number of photos of any size."""
    side = torch.export.Dim.DYNAMIC
    photos = torch.zeros(EXAMPLE, dtype=torch.uint8)
    before, padding.get_same_padding = padding.get_same_padding, same_padding
    try:
        traced = torch.export.export(network, (photos,), dynamic_shapes=({0: side, 1: side, 2: side},), strict=False)
    finally:
        padding.get_same_padding = before
    for node in traced.graph.nodes:  # lines of code, with the paths of this computer
        node.meta.pop("stack_trace", None)
    return traced


def same_padding(x: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Pixels that TensorFlow's padding "same" adds to a side of x pixels; a sum, but for kernels below the stride.

    It stands for timm's own while a network is traced: with the maximum in that one, tracing takes minutes.
    """
    rest = (kernel_size - 1) * dilation + 1 - stride
    return rest + (-x) % stride if rest >= 0 else max(rest + (-x) % stride, 0)
