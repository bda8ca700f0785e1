"""The LargeFOV head: dilated convolutions on the last map, in two forms."""

from __future__ import annotations

from torch import Tensor, nn

from tagmask.errors import ConfigError
from tagmask.registry import HEADS
from tagmask.types import Features


@HEADS.register("largefov")
class LargeFOV(nn.Module):
    """Two hidden convolutions with ReLU, then a 1x1, after Chen et al., 2015 (arXiv 1412.7062).

    Maps the encoder's last map, (B,channels[-1],h,w), to logits (B,num_outputs,h,w). Options: variant of the hidden
    convolutions: 'two', both 3x3 and dilated, as in end-to-end methods, or 'deeplab', a dilated 3x3 and a 1x1, as in
    that paper, whose hidden channels are 1024 and whose dilation is 12 at stride 8; dilation; hidden channels; dropout
    after each ReLU. Initial weights: He et al.'s in the hidden layers, normal with standard deviation 0.01 in the last;
    biases 0. Raises ConfigError for another variant.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_outputs: int,
        dilation: int = 5,
        hidden: int = 512,
        dropout: float = 0.0,
        variant: str = "two",
    ) -> None:
        super().__init__()
        if variant not in ("two", "deeplab"):
            raise ConfigError(f"Head 'largefov': variant is two or deeplab, got {variant!r}.")
        self.conv1 = nn.Conv2d(channels[-1], hidden, 3, padding=dilation, dilation=dilation)
        if variant == "two":
            self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
        else:
            self.conv2 = nn.Conv2d(hidden, hidden, 1)
        self.out = nn.Conv2d(hidden, num_outputs, 1)
        self.dropout = nn.Dropout2d(dropout)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, features: Features) -> Tensor:
        """Logits (B,num_outputs,h,w) on the grid of the last map."""
        x = self.dropout(self.conv1(features.maps[-1]).relu())
        x = self.dropout(self.conv2(x).relu())
        return self.out(x)
