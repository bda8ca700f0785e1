"""Affinities between positions from self-attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.errors import ConfigError
from tagmask.tensors import full


class AffinityHead(nn.Module):
    """A 1x1 convolution over the heads of several blocks' attention, then a sigmoid (AFA, CVPR 2022, section 3.2).

    heads: number of attention heads of each block, in the order of ``forward``'s blocks. symmetric: add the transposed
    attention, as AFA does, so that affinities are symmetric; TSCD (AAAI 2023, equation 14) does not. Initial weights
    are normal with standard deviation 0.01, so that affinities start near ½.

    >>> affinity = AffinityHead([8, 8])([torch.randn(2, 8, 49, 49), torch.randn(2, 8, 49, 49)])  # (2, 49, 49)
    """

    def __init__(self, heads: Sequence[int], symmetric: bool = True) -> None:
        super().__init__()
        self.heads = list(heads)
        self.symmetric = symmetric
        self.conv = nn.Conv2d(sum(self.heads), 1, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(1))  # not the convolution's: added once, after the transposed
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, attention_logits: Sequence[Tensor], prefix: int = 0) -> Tensor:
        """Affinities (B,N,N) in (0,1) of attention logits before scaling and softmax; float32 for half precision.

        attention_logits: one (B,heads,prefix+N,prefix+N) a block. prefix: number of leading tokens without a position
        in the image, which are dropped. Raises ConfigError for attention that is not square or of different sizes.
        """
        shapes = [tuple(logits.shape[-2:]) for logits in attention_logits]
        if len(set(shapes)) != 1 or shapes[0][0] != shapes[0][1]:
            raise ConfigError(
                f"Affinity needs attention from every position to every position on one grid, got {shapes}; let "
                "method.affinity_blocks name blocks of the encoder's last stage, or set method.affinity=none."
            )
        # Convolving block by block and transposing the single output channel equals joining and transposing all heads,
        # without a second copy of the step's largest tensor.
        parts = self.conv.weight.split(self.heads, dim=1)
        joined = torch.stack([F.conv2d(x, weight) for x, weight in zip(attention_logits, parts, strict=True)]).sum(0)
        joined = full(joined[:, 0, prefix:, prefix:])
        if self.symmetric:
            joined = joined + joined.mT
        return (joined + self.bias).sigmoid()
