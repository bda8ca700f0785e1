from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from tagmask.cam import cut_and_merge
from tagmask.errors import TagmaskError

SIZES = [(8, 8), (3, 5), (8, 9), (12, 8), (13, 21), (16, 20)]


def slow(forward: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, tile: int, stride: int) -> torch.Tensor:
    """One image (3,H,W), tile by tile and position by position, in float64."""
    height, width = image.shape[-2:]
    tops, lefts = [0], [0]
    while tops[-1] + tile < height:
        tops.append(tops[-1] + stride)
    while lefts[-1] + tile < width:
        lefts.append(lefts[-1] + stride)
    black = torch.zeros(3, tops[-1] + tile, lefts[-1] + tile)
    black[:, :height, :width] = image
    found: dict[tuple[int, int], list[torch.Tensor]] = {}
    ratio = 1
    for top in tops:
        for left in lefts:
            maps = forward(black[None, :, top : top + tile, left : left + tile])[0].double()
            ratio = tile // maps.shape[-1]
            for y in range(maps.shape[-2]):
                for x in range(maps.shape[-1]):
                    found.setdefault((top // ratio + y, left // ratio + x), []).append(maps[:, y, x])
    rows, columns = -(-height // ratio), -(-width // ratio)
    means = [[torch.stack(found[y, x]).mean(0) for x in range(columns)] for y in range(rows)]
    return torch.stack([torch.stack(row, 1) for row in means], 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [2, 4, 6, 8])
def test_equals_loops(size: tuple[int, int], stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, 3, 3, generator=generator)
    images = torch.rand(2, 3, *size, generator=generator)

    def forward(tiles: torch.Tensor) -> torch.Tensor:
        assert tiles.shape[1:] == (3, 8, 8)
        return F.conv2d(tiles, weight, stride=2, padding=1)  # padding: a tile's edge differs from its middle

    result = cut_and_merge(forward, images, 8, stride)
    assert result.shape == (2, 5, -(-size[0] // 2), -(-size[1] // 2))
    expected = torch.stack([slow(forward, image, 8, stride) for image in images])
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_padding_has_the_colour_that_is_given() -> None:
    fill = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1)
    images, seen = torch.rand(2, 3, 10, 7), []
    cut_and_merge(lambda tiles: seen.append(tiles) or tiles, images, 8, 4, fill=fill)
    tiles = seen[0].view(2, 2, 3, 8, 8)  # image, row: two tiles below each other
    assert torch.equal(tiles[:, 0, :, :, :7], images[:, :, :8])
    assert torch.equal(tiles[:, 1, :, :6, :7], images[:, :, 4:])
    assert torch.equal(tiles[:, :, :, :, 7:], fill.expand(2, 2, 3, 8, 1))
    assert torch.equal(tiles[:, 1, :, 6:], fill.expand(2, 3, 2, 8))


@pytest.mark.parametrize("size", SIZES)
def test_a_pointwise_function_goes_through_unchanged(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size)
    torch.testing.assert_close(cut_and_merge(lambda tiles: 2 * tiles - 1, images, 8, 4), 2 * images - 1)


def test_overlaps_are_means_over_the_number_of_tiles() -> None:
    """Tiles that each say their own number: 336 pixels make four, and one place in nine is of all of them."""

    def numbered(tiles: torch.Tensor) -> torch.Tensor:
        return torch.arange(1.0, len(tiles) + 1).view(-1, 1, 1, 1).expand(-1, 1, 14, 14)

    merged = cut_and_merge(numbered, torch.rand(1, 3, 336, 336), 224, 112)
    assert merged.shape == (1, 1, 21, 21), "the paper's Table 2"
    blocks = merged[0, 0].unflatten(0, (3, 7)).unflatten(2, (3, 7)).transpose(1, 2).flatten(2)
    assert torch.equal(blocks.amax(-1), blocks.amin(-1))
    expected = torch.tensor([[1.0, 1.5, 2.0], [2.0, 2.5, 3.0], [3.0, 3.5, 4.0]])
    torch.testing.assert_close(blocks.amax(-1), expected)


@pytest.mark.parametrize(
    ("size", "count"), [((224, 224), 1), ((100, 30), 1), ((225, 224), 2), ((336, 336), 4), ((448, 448), 9)]
)
def test_number_of_tiles_and_zero_padding(size: tuple[int, int], count: int) -> None:
    seen = []

    def forward(tiles: torch.Tensor) -> torch.Tensor:
        seen.append(tiles)
        return tiles[:, :, ::16, ::16]

    result = cut_and_merge(forward, torch.ones(1, 3, *size), 224, 112)
    assert len(seen) == 1 and seen[0].shape == (count, 3, 224, 224)
    assert result.shape[-2:] == (-(-size[0] // 16), -(-size[1] // 16))
    steps = [max(0, -(-(side - 224) // 112)) for side in size]
    height, width = (side - 112 * n for side, n in zip(size, steps, strict=True))
    last = seen[0][-1, 0]
    assert last[:height, :width].all() and last.sum() == height * width, "the rest of the last tile is padding"


def test_tiles_of_all_images_go_together_or_in_parts() -> None:
    images = torch.rand(3, 3, 12, 12)
    counts: list[int] = []

    def forward(tiles: torch.Tensor) -> torch.Tensor:
        counts.append(len(tiles))
        return tiles

    whole = cut_and_merge(forward, images, 8, 4)
    parts = cut_and_merge(forward, images, 8, 4, at_once=5)
    assert counts == [12, 5, 5, 2]
    assert torch.equal(whole, parts)


def test_gradient() -> None:
    images = torch.rand(1, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: cut_and_merge(lambda tiles: F.conv2d(tiles, weight, stride=2).sin(), x, 4, 2), (images,)
    )


def test_half_precision_is_averaged_in_float32() -> None:
    assert cut_and_merge(lambda tiles: tiles.bfloat16(), torch.rand(1, 3, 12, 12), 8, 4).dtype == torch.float32


def test_refusals() -> None:
    images = torch.rand(1, 3, 16, 16)
    for tile, stride, at_once in ((8, 0, None), (8, 9, None), (8, 4, 0)):
        with pytest.raises(TagmaskError, match="stride"):
            cut_and_merge(lambda tiles: tiles, images, tile, stride, at_once)
    for forward in (
        lambda tiles: tiles[..., :3, :3],
        lambda tiles: tiles[..., :4],
        lambda tiles: tiles.flatten(1),
        lambda tiles: tiles[..., :2, :2],  # a ratio of 4 does not divide the stride
    ):
        with pytest.raises(TagmaskError, match="Change tile or stride"):
            cut_and_merge(forward, images, 8, 2)
    with pytest.raises(TagmaskError, match="images"):
        cut_and_merge(lambda tiles: tiles, images[0], 8, 4)
