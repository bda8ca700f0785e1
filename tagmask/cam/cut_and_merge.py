"""Run a network for small images on overlapping tiles of large ones, and average its maps where tiles overlap."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes, full


def cut_and_merge(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    tile: int = 224,
    stride: int = 112,
    at_once: int | None = None,
    fill: Tensor | None = None,
) -> Tensor:
    """Maps of images from the maps of their tiles, averaged where tiles overlap. Differentiable.

    Huo et al., Dual Progressive Transformations for Weakly Supervised Semantic Segmentation, "overlapping
    cutting-merging". Images are padded at the bottom and right to ``tile`` plus whole strides (with the paper's
    224 and 112: to the next multiple of 112, at least 224); the maps are cropped back to the images.

    forward: (n,3,tile,tile) → (n,K,t,t), where t divides ``tile`` and the ratio tile/t divides ``stride``.
    images: (B,3,H,W). tile, stride: pixels, 0 < stride ≤ tile. at_once: tiles in one call of ``forward``; default:
    all. fill: (1,3,1,1), the colour of the padding; default: 0. The paper pads with 0 in what its network sees: where
    ``forward`` normalises images itself that is their mean. Returns (B,K,ceil(H·t/tile),ceil(W·t/tile)), float32 for
    half-precision maps. Raises TagmaskError for another tile, stride or map size.

    Examples:
        >>> images = torch.rand(1, 3, 300, 500)
        >>> torch.allclose(cut_and_merge(lambda tiles: tiles, images, 224, 112), images)
        True
    """
    if not 0 < stride <= tile or (at_once is not None and at_once < 1):
        raise TagmaskError(
            f"Cut and merge: tile {tile}, stride {stride}, at_once {at_once}; the stride must be from 1 to the tile's "
            "side, and at_once at least 1."
        )
    check_shapes("Cut and merge", "images (B,3,H,W)", images)
    height, width = images.shape[-2:]
    down, across = (max(0, -(-(side - tile) // stride)) for side in (height, width))
    fill = images.new_zeros(1, 3, 1, 1) if fill is None else fill.to(images)
    padded = fill.repeat(len(images), 1, tile + down * stride, tile + across * stride)
    padded[..., :height, :width] = images
    tiles = padded.unfold(2, tile, stride).unfold(3, tile, stride)  # (B,3,rows,columns,tile,tile)
    tiles = tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    maps = torch.cat([forward(part) for part in tiles.split(at_once or len(tiles))])
    maps = full(maps)
    side = maps.shape[-1]
    ratio = tile // max(side, 1)
    if maps.dim() != 4 or maps.shape[-2] != side or ratio * side != tile or stride % ratio:
        raise TagmaskError(
            f"Cut and merge: tiles of {tile} pixels gave maps {tuple(maps.shape)}; they must be (n,K,t,t) with "
            f"{tile} a multiple of t, and the stride {stride} a multiple of {tile}/t. Change tile or stride."
        )
    size = (side + down * stride // ratio, side + across * stride // ratio)
    columns = maps.flatten(1).unflatten(0, (len(images), -1)).mT  # (B,K·t·t,tiles), as fold has them
    merged = F.fold(columns, size, side, stride=stride // ratio)
    ones = torch.ones_like(columns[:1, : side * side])
    merged = merged / F.fold(ones, size, side, stride=stride // ratio)
    return merged[..., : -(-height // ratio), : -(-width // ratio)]
