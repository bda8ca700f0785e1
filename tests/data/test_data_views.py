from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tagmask.config import ViewConfig, load_config
from tagmask.data import TrainViews, make_affine, warp
from tagmask.data import views as module
from tagmask.errors import ConfigError
from tagmask.types import Sample


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(height: int, width: int) -> Tensor:
    """An image whose red is the column and whose green is the row, blue the two mixed; all above 0."""
    y, x = torch.meshgrid(torch.arange(height) + 1.0, torch.arange(width) + 1.0, indexing="ij")
    return torch.stack([x / (width + 1), y / (height + 1), (x + y) / (height + width + 2)])


def sample(height: int, width: int, mask: bool = True, seed: int = 0) -> Sample:
    labels = torch.randint(0, 4, (height, width), generator=generator(seed)).to(torch.uint8)
    return Sample(coordinates(height, width), torch.tensor([1.0, 0.0]), labels if mask else None, "a")


def config(**values: object) -> ViewConfig:
    return ViewConfig.model_validate({"crop": 24, "scale": (1, 1), "local": {"count": 3, "size": 16}} | values)


SIZES = [(24, 24), (40, 31), (10, 60), (60, 10), (1, 30), (30, 1), (1, 1), (9, 13)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_crop_pad_and_flip_against_loops(size: tuple[int, int], flip: float) -> None:
    """At scale 1 the canvas holds the photo's pixels unchanged, moved by one offset, and nothing else."""
    height, width = size
    for seed in range(4):
        given = sample(height, width)
        found = TrainViews(config(flip=flip))(given, generator(seed))
        image, mask, (x0, y0, x1, y1) = found["image"], found["mask"], found["box"].tolist()
        assert image.shape == (3, 24, 24) and mask.shape == (24, 24) and mask.dtype == torch.uint8
        assert (x1 - x0, y1 - y0) == (min(width, 24), min(height, 24))
        left = round(float(image[0, y0, x1 - 1 if flip else x0]) * (width + 1)) - 1
        top = round(float(image[1, y0, x0]) * (height + 1)) - 1
        for y in range(24):
            for x in range(24):
                if x0 <= x < x1 and y0 <= y < y1:
                    source = (top + y - y0, left + (x1 - 1 - x if flip else x - x0))
                    assert torch.allclose(image[:, y, x], given.image[:, source[0], source[1]], atol=1e-6)
                    assert mask[y, x] == given.mask[source]  # type: ignore[index]
                else:
                    assert (image[:, y, x] == 0).all() and mask[y, x] == 255


def test_every_place_is_reached() -> None:
    views, rng = TrainViews(config(flip=0)), generator()
    boxes = {tuple(views(sample(20, 22, mask=False), rng)["box"].tolist()) for _ in range(200)}
    assert boxes == {(x, y, x + 22, y + 20) for x in range(3) for y in range(5)}
    corners = {float(views(sample(26, 24, mask=False), rng)["image"][1, 0, 0]) for _ in range(60)}
    assert len(corners) == 3


@pytest.mark.parametrize("size", SIZES)
def test_resize_keeps_mask_and_image_together(size: tuple[int, int]) -> None:
    height, width = size
    given = Sample(coordinates(height, width), None, (torch.arange(width) * 200 // width).repeat(height, 1).byte(), "a")
    for seed in range(3):
        found = TrainViews(config(scale=(0.5, 2)))(given, generator(seed))
        x0, y0, x1, y1 = found["box"].tolist()
        assert x1 > x0 and y1 > y0
        column = found["image"][0, y0:y1, x0:x1] * (width + 1) - 1
        labelled = found["mask"][y0:y1, x0:x1].float() / 200 * width
        # Resampled positions of image and mask agree to a pixel of the smaller grid, away from the photo's border.
        assert (column - labelled).abs().median() <= 1.5


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.6, 2.0])
def test_mask_pixels_are_the_nearest(factor: float) -> None:
    """Centre to centre, as the image is resized: output pixel i shows input pixel floor((i + ½) · old / new)."""
    given = sample(11, 9)
    found = TrainViews(config(scale=(factor, factor), flip=0))(given, generator())
    x0, y0, x1, y1 = found["box"].tolist()
    assert (x1 - x0, y1 - y0) == (round(9 * factor), round(11 * factor))
    for y in range(y1 - y0):
        for x in range(x1 - x0):
            source = (math.floor((y + 0.5) * 11 / (y1 - y0)), math.floor((x + 0.5) * 9 / (x1 - x0)))
            assert found["mask"][y0 + y, x0 + x] == given.mask[source]  # type: ignore[index]


def test_scale_multiplies_the_photos_own_size() -> None:
    found = TrainViews(config(scale=(0.5, 0.5)))(sample(20, 30, mask=False), generator())
    x0, y0, x1, y1 = found["box"].tolist()
    assert (x1 - x0, y1 - y0) == (15, 10) and found["mask"] is None


def test_a_square_comes_before_scale_and_instead_of_short_side() -> None:
    for short, scale, expected in ((None, 1, 20), (16, 1, 20), (None, 0.5, 10)):
        settings = config(square=20, short_side=short, scale=(scale, scale), flip=0)
        found = TrainViews(settings, frozenset({"photo"}))(sample(40, 20), generator())
        x0, y0, x1, y1 = found["box"].tolist()
        assert (x1 - x0, y1 - y0) == (expected, expected)
        assert (found["mask"][y0:y1, x0:x1] != 255).all()
        photo = found["views"]["photo"]
        assert photo.boxes.tolist() == [0, 0, 12, 24], "the whole photo keeps its shape"
        shown, inner = warp(found["image"][None], photo.affine[None])[0], (slice(None), slice(4, 20), slice(2, 10))
        assert (shown[inner] - photo.images[inner]).abs().max() < 0.06, "and its place in the main view is known"


def test_same_generator_same_views() -> None:
    views = TrainViews(config(scale=(0.5, 2), jitter=(0.4, 0.4, 0.4, 0.1), blur=0.5), frozenset(("strong", "local")))
    torch.manual_seed(1)
    one = views(sample(40, 30), generator(5))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two, other = views(sample(40, 30), generator(5)), views(sample(40, 30), generator(6))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one["image"], two["image"]) and not torch.equal(one["image"], other["image"])
    for name in ("strong", "local"):
        for part in ("images", "boxes", "affine"):
            assert torch.equal(getattr(one["views"][name], part), getattr(two["views"][name], part))


def test_strong_view_has_the_main_views_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    views = TrainViews(config(scale=(0.5, 2)), frozenset(("strong",)))
    with monkeypatch.context() as patch:
        patch.setattr(module, "photometric", lambda image, generator: image)
        found = views(sample(30, 20), generator(1))
        assert torch.equal(found["views"]["strong"].images, found["image"])
    changed = 0
    for seed in range(30):
        found = views(sample(30, 20), generator(seed))
        strong = found["views"]["strong"]
        x0, y0, x1, y1 = found["box"].tolist()
        outside = torch.ones(24, 24, dtype=torch.bool)
        outside[y0:y1, x0:x1] = False
        assert (strong.images[:, outside] == 0).all() and torch.equal(strong.boxes, found["box"])
        assert strong.images.min() >= 0 and strong.images.max() <= 1
        assert torch.equal(strong.affine, torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
        changed += not torch.equal(strong.images, found["image"])
    assert 20 <= changed < 30


@pytest.mark.parametrize("count", [0, 1, 3])
def test_strong_view_goes_through_as_many_operations_as_asked(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(module, "photometric", lambda image, generator: image / 2)
    views = TrainViews(config(strong=count), frozenset(("strong",)))
    found = views(sample(30, 20), generator(0))
    torch.testing.assert_close(found["views"]["strong"].images, found["image"] / 2**count)


def test_nine_operations_each_alone() -> None:
    image = torch.rand(3, 12, 12, generator=generator()) * 0.7 + 0.1
    seen = {}
    for seed in range(120):
        which = int(torch.randint(9, (), generator=generator(seed)))
        seen[which] = module.photometric(image, generator(seed))
    assert sorted(seen) == list(range(9)) and torch.equal(seen[0], image)
    for which in range(1, 9):
        assert seen[which].shape == image.shape and not torch.allclose(seen[which], image), which
    # Autocontrast (1) stretches each channel to the full range: written out.
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    assert torch.allclose(seen[1], (image - low) / (high - low), atol=1e-6)


def seeds_of(operation: int) -> list[int]:
    """Three seeds whose first number picks one of the nine operations."""
    return [seed for seed in range(200) if int(torch.randint(9, (), generator=generator(seed))) == operation][:3]


@pytest.mark.parametrize("operation", range(8))
def test_operations_on_colours_do_not_care_where_a_pixel_lies(operation: int) -> None:
    """Pixels in any other order come out in that order."""
    image = torch.rand(3, 10, 14, generator=generator(1))
    order = torch.randperm(140, generator=generator(2))
    mixed = image.flatten(1)[:, order].view(3, 10, 14)
    for seed in seeds_of(operation):
        expected = module.photometric(image, generator(seed)).flatten(1)[:, order].view(3, 10, 14)
        torch.testing.assert_close(module.photometric(mixed, generator(seed)), expected, atol=1e-5, rtol=0)


def test_sharpness_moves_nothing() -> None:
    """It looks at neighbours, so mirrored and shifted photos come out mirrored and shifted, and far pixels stay."""
    image = torch.rand(3, 10, 14, generator=generator(1))
    dot = torch.zeros(3, 10, 14)
    dot[:, 3, 4] = 1
    for seed in seeds_of(8):
        whole = module.photometric(image, generator(seed))
        for axis in (-1, -2):
            mirrored = module.photometric(image.flip(axis), generator(seed))
            torch.testing.assert_close(mirrored, whole.flip(axis), atol=1e-5, rtol=0)
            shifted = module.photometric(image.roll(2, axis), generator(seed)).roll(-2, axis)
            torch.testing.assert_close(shifted[:, 3:-3, 3:-3], whole[:, 3:-3, 3:-3], atol=1e-5, rtol=0)
        around = module.photometric(dot, generator(seed))
        assert around[0].argmax() == 3 * 14 + 4
        around[:, 2:5, 3:6] = 0
        assert not around.any()


@pytest.mark.parametrize("size", [*SIZES, (24, 50)])
def test_local_affine_finds_the_crop_in_the_main_view(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCAL_JITTER", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(module, "LOCAL_GREY", 0.0)
    views = TrainViews(config(), frozenset(("local",)))
    flipped = 0
    for seed in range(4):
        found = views(sample(*size), generator(seed))
        local = found["views"]["local"]
        assert local.images.shape == (3, 3, 16, 16) and local.boxes.shape == (3, 4) and local.affine.shape == (3, 2, 3)
        main = found["image"].expand(3, -1, -1, -1)
        assert torch.allclose(warp(main, local.affine, (16, 16)), local.images, atol=1e-5)
        for box, crop, affine in zip(local.boxes.tolist(), local.images, local.affine):
            inside = torch.zeros(16, 16, dtype=torch.bool)
            inside[box[1] : box[3], box[0] : box[2]] = True
            assert inside.any() and torch.equal((crop > 0).all(0), inside)
            flipped += bool(affine[0, 0] < 0)
    assert 0 < flipped < 12


def test_local_crops_are_augmented_inside_the_photo_only() -> None:
    views = TrainViews(config(), frozenset(("local",)))
    grey = 0
    for seed in range(40):
        local = views(sample(30, 9), generator(seed))["views"]["local"]
        for crop, (x0, y0, x1, y1) in zip(local.images, local.boxes.tolist()):
            outside = torch.ones(16, 16, dtype=torch.bool)
            outside[y0:y1, x0:x1] = False
            assert (crop[:, outside] == 0).all()
            grey += bool(torch.allclose(crop[0], crop[1]) and torch.allclose(crop[1], crop[2]))
    assert 10 < grey < 40  # a fifth of 120


def test_jitter_against_loops() -> None:
    image = torch.rand(3, 4, 5, generator=generator())
    bright = module.jitter(image, (0.4, 0, 0, 0), generator(3))
    ratio = (bright / image)[image < 0.6]
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), atol=1e-4) and 0.6 <= ratio[0] <= 1.4
    contrast = module.jitter(image, (0, 0.4, 0, 0), generator(3)).double()
    grey = sum(0.2989 * float(r) + 0.587 * float(g) + 0.114 * float(b) for r, g, b in image.flatten(1).T) / 20
    free = (contrast > 0) & (contrast < 1)
    factors = (contrast - grey)[free] / (image.double() - grey)[free]
    assert torch.allclose(factors, factors.median().expand_as(factors), atol=2e-2)
    assert module.jitter(image, (0, 0, 0, 0), generator()) is image


@pytest.mark.parametrize("size", [(6, 5), (1, 7), (1, 1)])
def test_blur_against_loops(size: tuple[int, int]) -> None:
    image = torch.rand(3, *size, generator=generator())
    rng = generator(4)
    torch.rand((), generator=rng, dtype=torch.float64)
    sigma = 0.1 + 1.9 * float(torch.rand((), generator=rng, dtype=torch.float64))
    reach, (height, width) = math.ceil(3 * sigma), size
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)]
    found = module.blur(image, 1.0, generator(4))
    for y in range(height):
        for x in range(width):
            for c in range(3):
                total = 0.0
                for i, wy in enumerate(weights):
                    for j, wx in enumerate(weights):
                        row, column = min(max(y + i - reach, 0), height - 1), min(max(x + j - reach, 0), width - 1)
                        total += wy * wx * float(image[c, row, column])
                assert abs(float(found[c, y, x]) - total / sum(weights) ** 2) < 1e-5
    assert module.blur(image, 0.0, generator(4)) is image


def test_warp_against_loops() -> None:
    rng = generator(1)
    maps = torch.rand(2, 3, 5, 7, generator=rng, dtype=torch.float64)
    affine = torch.stack([make_affine(True, 0.7, 30, (0.1, -0.2)), make_affine(False, 1.3, -80, (0.0, 0.3))]).double()
    found = warp(maps, affine, (4, 6))
    for b in range(2):
        for i in range(4):
            for j in range(6):
                point = (2 * j / 5 - 1, 2 * i / 3 - 1, 1.0)
                x, y = (sum(float(a) * p for a, p in zip(row, point)) for row in affine[b])
                x, y = (x + 1) / 2 * 6, (y + 1) / 2 * 4
                for k in range(3):
                    value = 0.0
                    for row in (math.floor(y), math.floor(y) + 1):
                        for column in (math.floor(x), math.floor(x) + 1):
                            if 0 <= row < 5 and 0 <= column < 7:
                                share = (1 - abs(y - row)) * (1 - abs(x - column))
                                value += share * float(maps[b, k, row, column])
                    assert abs(float(found[b, k, i, j]) - value) < 1e-9
    maps.requires_grad_()
    warp(maps, affine).sum().backward()
    assert maps.grad is not None and maps.grad.abs().sum() > 0


def test_warp_known_cases() -> None:
    maps = torch.rand(1, 2, 6, 6, generator=generator())
    assert torch.allclose(warp(maps, make_affine()[None]), maps, atol=1e-6)
    assert torch.allclose(warp(maps, make_affine(flip=True)[None]), maps.flip(-1), atol=1e-6)
    # A quarter turn: the view's right end shows what lies at the bottom of the main view.
    turned = warp(maps, make_affine(rotation=90)[None])
    assert torch.allclose(turned, torch.rot90(maps, 1, (-2, -1)), atol=1e-5)
    assert torch.allclose(warp(maps, make_affine(scale=0.2)[None], (2, 2)), maps[..., 2:4, 2:4], atol=1e-5)
    shifted = warp(maps, make_affine(translation=(0.4, 0.0))[None])
    assert torch.allclose(shifted[..., :5], maps[..., 1:], atol=1e-5)


def test_warp_under_autocast_and_of_half_precision_is_float32() -> None:
    maps = torch.rand(1, 2, 512, 512, generator=generator())
    affine = make_affine(rotation=7, translation=(0.123, -0.07))[None]
    expected = warp(maps, affine)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(warp(maps, affine), expected, atol=1e-4, rtol=0)
        halves = warp(maps.bfloat16(), affine)
    assert halves.dtype == torch.float32
    torch.testing.assert_close(halves, warp(maps.bfloat16().float(), affine))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="'weak'"):
        TrainViews(config(), frozenset(("weak",)))
    with pytest.raises(ConfigError, match=r"views\.local\.size \(32\)"):
        TrainViews(config(local={"size": 32}), frozenset(("local",)))
    with pytest.raises(ConfigError, match="scale="):
        load_config(overrides=["views.scale=[2, 1]"])
