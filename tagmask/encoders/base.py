"""Base of all encoders: normalisation, recording of blocks, freezing, batch norm in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tagmask.config import EncoderConfig
from tagmask.errors import ConfigError
from tagmask.registry import Registry
from tagmask.types import Features

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """Pixels to features. Subclasses fill the attributes and write ``extract``.

    kind: 'cnn', 'vit', 'swin' or 'mit'. channels, strides: of the returned maps, coarsest last. depth: number of
    transformer blocks (0 for a CNN). heads: attention heads of each block that can be recorded. has_attention: whether
    ``attention``, ``queries`` and ``keys`` can be recorded. weights_origin: source of the weights, for the
    stamp on scores. mean, std: buffers (1,3,1,1), saved with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.kind = kind
        self.channels: list[int] = []
        self.strides: list[int] = []
        self.depth = 0
        self.heads: list[int] = []
        self.has_attention = False
        self.weights_origin = "none (random)"
        self.norm_eval = False
        self.frozen = False
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(
        self,
        images: Tensor,
        attention: Sequence[int] = (),
        queries: Sequence[int] = (),
        keys: Sequence[int] = (),
    ) -> Features:
        """Features of images, float (B,3,H,W) RGB in [0,1], of any size.

        attention, queries, keys: indices of the blocks to record; negative ones count from the last block. The keys of
        the result's dictionaries are non-negative. Recording changes no other output. Raises ConfigError when the
        encoder has no such blocks.
        """
        asked = [self.resolve(indices) for indices in (attention, queries, keys)]
        return self.extract((images - self.mean) / self.std, *asked)

    def extract(self, x: Tensor, attention: set[int], queries: set[int], keys: set[int]) -> Features:
        """Features of normalised images (B,3,H,W). The indices are valid and non-negative."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Switch off all gradients, and stay in evaluation mode (no drop path, fixed statistics) from now on."""
        self.frozen = True
        self.requires_grad_(False)
        self.eval()

    def freeze_to(self, stride: int, setting: str) -> None:
        """Let all layers that lead to the map of this stride learn nothing, as if the gradient were cut there.

        They are found by a pass of a small image: encoders name their layers differently. setting: named in the
        ConfigError that is raised where there is no map of that stride, or nothing behind it.
        """
        if stride not in self.strides[:-1]:
            raise ConfigError(
                f"{setting} freezes the layers up to the map of stride {stride}; this encoder has maps of strides "
                f"{self.strides}, of which the last has to learn."
            )
        training, parameters = self.training, [p for p in self.parameters() if p.requires_grad]
        if not parameters:
            return
        self.eval()
        with torch.enable_grad():
            value = self(torch.zeros(1, 3, 64, 64)).maps[self.strides.index(stride)].sum()
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        self.train(training)
        for parameter, gradient in zip(parameters, found):
            if gradient is not None:
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode and not self.frozen)
        if self.training and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def resolve(self, indices: Sequence[int]) -> set[int]:
        """Blocks to record as non-negative indices. Raises ConfigError when the encoder has no such blocks."""
        if not indices:
            return set()
        if not self.has_attention:
            raise ConfigError(
                f"Encoder '{type(self).__name__}' (kind '{self.kind}') has no global self-attention to record; "
                "pick a plain ViT such as encoder.name=vit_small_patch16_224, or switch off what reads attention."
            )
        wrong = [i for i in indices if not -self.depth <= i < self.depth]
        if wrong:
            raise ConfigError(f"This encoder has blocks 0 to {self.depth - 1}, but no blocks {wrong}.")
        return {i % self.depth for i in indices}


def norm_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Parameters of all normalisation layers in ``module``, each once: of modules with "norm" in their class's name."""
    found: dict[int, nn.Parameter] = {}
    for part in module.modules():
        if "norm" in type(part).__name__.lower():
            found.update((id(p), p) for p in part.parameters(recurse=False))
    return list(found.values())


def refuse(config: EncoderConfig, *settings: str) -> None:
    """Raise ConfigError where one of these settings, which the network does not have, is not at its default."""
    for name in settings:
        default = EncoderConfig.model_fields[name].default
        if getattr(config, name) != default:
            raise ConfigError(f"encoder.{name} is not for '{config.name}'; leave it at its default ({default}).")


def output_stride(config: EncoderConfig, default: int) -> int:
    """The configured output stride. Raises ConfigError for another than 8, 16 and 32."""
    stride = default if config.output_stride is None else config.output_stride
    if stride not in (8, 16, 32):
        raise ConfigError(f"encoder.output_stride is {stride}; '{config.name}' has 8, 16 or 32.")
    return stride


EncoderFactory = Callable[[EncoderConfig], Encoder]

ENCODERS: Registry[EncoderFactory] = Registry("encoder", "tagmask.encoders")
"""tagmask's own encoders by name. A constructor takes the configuration and loads its weights."""
