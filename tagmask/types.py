"""What flows between the rooms: Sample, View, Batch, Features, Losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORE = 255
"""Label of pixels that take part in no loss and no score."""


@dataclass(frozen=True)
class Sample:
    """One photo at its own size.

    image: float32 (3,H,W) RGB in [0,1]. tags: float32 (C,) of 0/1, or None where the image is unlabelled.
    mask: uint8 (H,W) label map (0 background, 1..C, 255 ignore), or None.
    """

    image: Tensor
    tags: Tensor | None
    mask: Tensor | None
    id: str


@dataclass
class View:
    """Another look at the images of a batch.

    images: (B,3,h,w) in [0,1], or (B,N,3,h,w) for N local crops. boxes: long (B,4) or (B,N,4), valid pixels
    (x0,y0,x1,y1), half-open. affine: float32 (B,2,3) or (B,N,2,3), takes a point (x,y,1) of this view to the
    matching point of the batch's main images; both in [-1,1], where -1/1 are the corner pixels' centres.
    """

    images: Tensor
    boxes: Tensor
    affine: Tensor


@dataclass
class Batch:
    """What a method sees in one training step.

    images: float32 (B,3,H,W) RGB in [0,1]. tags: float32 (B,C) of 0/1. boxes: long (B,4), the pixels that are
    photo and not padding, (x0,y0,x1,y1), half-open. views: further views by name. masks: uint8 (B,H,W), filled
    only for methods that declare ``reads_masks``. generator: the method's only source of random numbers, which it
    takes by ``draw``. first, whole: the place of the first image in the batch of the step, which processes and
    accumulated parts share, and how many images that has; 0: it is this one.
    """

    images: Tensor
    tags: Tensor
    boxes: Tensor
    views: dict[str, View]
    ids: list[str]
    generator: torch.Generator
    masks: Tensor | None = None
    first: int = 0
    whole: int = 0

    def draw(self, kind: Callable[..., Tensor], *shape: int) -> Tensor:
        """Random numbers (B, *shape) of ``kind``, torch.rand or torch.randn, on the images' device.

        An image's numbers do not depend on how the batch of the step is shared: they are drawn for all of it.
        """
        images = self.whole or len(self.images)
        drawn = kind(images, *shape, generator=self.generator, device=self.generator.device)
        return drawn[self.first : self.first + len(self.images)].to(self.images.device)

    def to(self, device: torch.device | str, generator: torch.Generator | None = None) -> Batch:
        """A copy on another device. A generator cannot move: pass the one of that device."""

        def move(value: Any) -> Any:
            return None if value is None else value.to(device, non_blocking=True)

        views = {
            name: View(**{f.name: move(getattr(view, f.name)) for f in fields(view)})
            for name, view in self.views.items()
        }
        return replace(
            self,
            images=move(self.images),
            tags=move(self.tags),
            boxes=move(self.boxes),
            masks=move(self.masks),
            views=views,
            generator=generator or self.generator,
        )


@dataclass
class Features:
    """What an encoder gives back.

    maps: list of (B,D,h,w), coarsest last. class_token: (B,D) of the last block, for ViTs. attention_logits,
    queries, keys: by block index, filled only for the blocks that were asked for; attention_logits are
    (B,heads,N,M) before scaling and softmax, queries and keys (B,heads,N,d); N counts the ``prefix`` tokens
    (class, register, distillation), which come first.
    """

    maps: list[Tensor]
    class_token: Tensor | None = None
    attention_logits: dict[int, Tensor] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    prefix: int = 0


@dataclass
class Losses:
    """Named scalar terms, unweighted, for the log, and the weighted sum that is differentiated."""

    terms: dict[str, Tensor]
    total: Tensor
