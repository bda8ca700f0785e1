"""WideResNet-38, model A1 of "Wider or Deeper" (Wu, Shen and van den Hengel, 2016, arXiv 1611.10080), dilated."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tagmask.config import EncoderConfig
from tagmask.encoders.base import ENCODERS, IMAGENET_MEAN, IMAGENET_STD, Encoder, output_stride, refuse
from tagmask.encoders.weights import load_pretrained, renamed
from tagmask.types import Features


@ENCODERS.register("wide_resnet38")
class WideResNet38(Encoder):
    """Stages B2, B3, B4, B5 and B7 of the network as AffinityNet, SEAM and RCM use it, finest first.

    Map i is (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])), each after batch norm and ReLU: those of the
    next stage's first block for B2 to B5 (blocks activate their input), the closing pair for B7. Those papers have
    ``config.output_stride`` 8, which None stands for; at 16 and 32 (as on ImageNet) B5, then also B6 stride instead
    of dilating. ``config.norm_eval`` keeps batch norm at its stored statistics in training. Dropout of whole channels
    in B6 (0.3) and B7 (0.5) is active in training.
    width: channels of the first convolution, of which all others are multiples; 64 is the network, smaller ones serve
    trials.
    """

    def __init__(self, config: EncoderConfig, width: int = 64) -> None:
        refuse(config, "blocks", "dilate", "drop_path")
        stride = output_stride(config, 8)
        super().__init__("cnn", IMAGENET_MEAN, IMAGENET_STD)
        self.body = ResNet38(width, stride)
        weights = load_pretrained(self.body, config, lambda state: renamed(state, MXNET))
        self.channels = [width * factor for factor in (2, 4, 8, 16, 64)]
        self.strides = [2, 4, 8, min(stride, 16), stride]
        self.weights_origin = weights.origin
        self.norm_eval = config.norm_eval
        self.checkpointing = config.checkpointing

    def extract(self, x: Tensor, attention: set[int], queries: set[int], keys: set[int]) -> Features:
        body = self.body
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        x = body.conv1a(x)
        maps = []
        for name in body.blocks:
            block = getattr(body, name)
            x, activated = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            if name in ("b3", "b4", "b5", "b6"):
                maps.append(activated)
        maps.append(F.relu(body.bn7(x)))
        return Features(maps=maps)


class ResNet38(nn.Module):
    """The network's layers under the names that converted checkpoints have (b2, b2_1, ...); see ``WideResNet38``."""

    def __init__(self, width: int, output_stride: int) -> None:
        super().__init__()
        w = width
        self.conv1a = nn.Conv2d(3, w, 3, padding=1, bias=False)
        self.blocks: list[str] = []
        inputs = w
        # name, blocks, inner channels, outer channels, stride of the first block, dilation after that stride
        for name, count, inner, outer, stride, dilation in [
            ("b2", 3, 2 * w, 2 * w, 2, 1),
            ("b3", 3, 4 * w, 4 * w, 2, 1),
            ("b4", 6, 8 * w, 8 * w, 2, 1),
            ("b5", 3, 8 * w, 16 * w, 1 if output_stride < 16 else 2, max(1, 16 // output_stride)),
        ]:
            for i in range(count):
                first = i == 0
                block = Block(inputs, inner, outer, stride if first else 1, 1 if first else dilation, dilation)
                self._add(f"{name}_{i}" if i else name, block)
                inputs = outer
        dilation = 32 // output_stride
        self._add("b6", Bottleneck(16 * w, 32 * w, 1 if output_stride < 32 else 2, dilation, dropout=0.3))
        self._add("b7", Bottleneck(32 * w, 64 * w, 1, dilation, dropout=0.5))
        self.bn7 = nn.BatchNorm2d(64 * w)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def _add(self, name: str, block: nn.Module) -> None:
        self.add_module(name, block)
        self.blocks.append(name)


class Block(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, and a shortcut. Returns (output, activated input)."""

    def __init__(
        self, inputs: int, inner: int, outer: int, stride: int, first_dilation: int, second_dilation: int
    ) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = _conv3x3(inputs, inner, stride, first_dilation)
        self.bn_branch2b1 = nn.BatchNorm2d(inner)
        self.conv_branch2b1 = _conv3x3(inner, outer, 1, second_dilation)
        self.projects = inputs != outer or stride != 1
        if self.projects:
            self.conv_branch1 = nn.Conv2d(inputs, outer, 1, stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        activated = F.relu(self.bn_branch2a(x))
        shortcut = self.conv_branch1(activated) if self.projects else x
        inner = F.relu(self.bn_branch2b1(self.conv_branch2a(activated)))
        return shortcut + self.conv_branch2b1(inner), activated


class Bottleneck(nn.Module):
    """1x1, dilated 3x3 and 1x1 convolution with dropout before the last two. Returns (output, activated input)."""

    def __init__(self, inputs: int, outer: int, stride: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, outer // 4, 1, stride, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(outer // 4)
        self.conv_branch2b1 = _conv3x3(outer // 4, outer // 2, 1, dilation)
        self.bn_branch2b2 = nn.BatchNorm2d(outer // 2)
        self.conv_branch2b2 = nn.Conv2d(outer // 2, outer, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(inputs, outer, 1, stride, bias=False)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        activated = F.relu(self.bn_branch2a(x))
        inner = F.relu(self.bn_branch2b1(self.conv_branch2a(activated)))
        inner = F.relu(self.bn_branch2b2(self.conv_branch2b1(self.dropout(inner))))
        return self.conv_branch1(activated) + self.conv_branch2b2(self.dropout(inner)), activated


MXNET = [
    (r"^(?:arg|aux):", ""),
    (r"^res(\d)a_", r"b\1.conv_"),
    (r"^res(\d)b(\d)_", r"b\1_\2.conv_"),
    (r"^bn(\d)a_", r"b\1.bn_"),
    (r"^bn(\d)b(\d)_", r"b\1_\2.bn_"),
    (r"_(?:weight|gamma)$", ".weight"),
    (r"_beta$", ".bias"),
    (r"_moving_(mean|var)$", r".running_\1"),
]
"""The authors' names, as 'arg:res2b1_branch2a_weight' and 'aux:bn7_moving_mean', to names here.

Those of the PyTorch conversions that AffinityNet and its successors share ('b2_1.conv_branch2a.weight') are names here.
"""


def _conv3x3(inputs: int, outputs: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)
