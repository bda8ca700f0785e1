"""The two layouts of ResNets: where a bottleneck strides. Files do not state theirs; it is known by their content."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from tagmask.config import EncoderConfig
from tagmask.encoders.weight_files import State
from tagmask.errors import WeightsError

V1_MEAN = (0.485, 0.458, 0.408)
V1_EPS = 1.001e-5
EPS = 1e-5
"""Of batch norm in layout 'default'."""

KNOWN = {"d2b5b820ee3ae035": "v1"}
"""Layouts of published ResNet files by ``fingerprint``."""
NAMED_V1 = re.compile(r"resne[xt]*t\d+[_-]v1(?![a-z0-9.]|[_-]5)")
"""Beginning of the names, in small letters, under which v1 files of any depth are passed on."""


def has_layouts(network: nn.Module) -> bool:
    """Whether the network has bottlenecks, and only plain ones, which both layouts are made of."""
    blocks = _bottlenecks(network)
    return bool(blocks) and all(isinstance(block.aa, nn.Identity) for block in blocks)


def set_layout(network: nn.Module, v1: bool) -> None:
    """Give every bottleneck its stride in the first 1x1 convolution (v1) or in the 3x3, in place; any number of times.

    In a stage that dilates instead of striding, the first 3x3 comes after the stage's stride in v1, so it has the
    dilation of its stage. In the other layout it comes before, and has that of the stage before.
    """
    before = 1
    for block in _bottlenecks(network):
        first, middle = block.conv1, block.conv2
        stride = max(first.stride, middle.stride)
        first.stride, middle.stride = (stride, (1, 1)) if v1 else ((1, 1), stride)
        dilation = block.dilation if v1 else before
        middle.dilation = middle.padding = (dilation, dilation)
        before = block.dilation
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = V1_EPS if v1 else EPS


def undilate(network: nn.Module) -> bool:
    """Let all 3x3 convolutions of a ResNet have dilation 1, in place; False, with nothing done, for another network.

    A stage that keeps its resolution then sees what is near, as in the ResNets of IRN's code, whose stages stride by
    2, 2, 2 and 1.
    """
    blocks = [module for module in network.modules() if isinstance(module, BasicBlock | Bottleneck)]
    for block in blocks:
        block.dilation = 1  # what ``set_layout`` goes by
        for module in block.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.dilation = module.padding = (1, 1)
    return bool(blocks)


def _bottlenecks(network: nn.Module) -> list[Bottleneck]:
    return [module for module in network.modules() if isinstance(module, Bottleneck)]


def fingerprint(state: State) -> str:
    """The start of a hash of a ResNet-50's first and last convolution, which identifies published files.

    Of values rounded to float16: a file has the same one when it was saved in half precision.
    """
    digest = hashlib.sha256()
    for key in ("conv1.weight", "layer4.2.conv3.weight"):
        if key in state:
            digest.update(state[key].half().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def file_layout(state: State, path: Path, config: EncoderConfig) -> str | None:
    """The layout of weights, where their content tells it; else None.

    Raises WeightsError if ``config.layout`` is another one, which would load and give wrong features. It is also raised
    where the file's name alone says v1 and ``config.layout`` is auto: names are less sure, so the user has to say it.
    """
    layout = KNOWN.get(fingerprint(state))
    if layout is not None and config.layout not in ("auto", layout):
        raise WeightsError(
            f"{path}: these ResNet weights are of layout '{layout}' by their content, but encoder.layout is "
            f"'{config.layout}'; they would load and give wrong features. Leave encoder.layout at auto."
        )
    if layout is None and config.layout == "auto" and NAMED_V1.match(path.stem.lower()):
        raise WeightsError(
            f"{path}: by its name this is a ResNet of layout 'v1', which its content does not tell. Set "
            "encoder.layout=v1, or encoder.layout=default if the name is wrong."
        )
    return layout
