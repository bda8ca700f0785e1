"""Local views around objects: where they lie, what they show, and that ``eca`` learns from them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tagmask.config import ViewConfig
from tagmask.data.views import warp
from tagmask.errors import ConfigError
from tagmask.losses import cam_correspondence
from tagmask.methods import build_method
from tagmask.methods.common.local_views import object_views
from tagmask.methods.eca import local_labels
from tagmask.types import View
from tests.methods.contract import SIZE, squares
from tests.methods.test_eca import LOCAL, build, tiny_of_all


def views(count: int = 8, size: int = LOCAL, flip: float = 0.5) -> ViewConfig:
    return ViewConfig.model_validate({"crop": SIZE, "flip": flip, "local": {"count": count, "size": size}})


def corners(view: View) -> Tensor:
    """(B,N,2): first pixel (x,y) of each crop on the main image, by its affine."""
    size = view.images.shape[-1]
    centre = view.affine[..., 2]  # of the crop's middle, in [-1,1]
    return ((centre + 1) / 2 * (SIZE - 1) - (size - 1) / 2).round().long()


def test_crops_lie_around_pixels_of_objects() -> None:
    batch = squares()
    labels = torch.zeros(4, SIZE, SIZE, dtype=torch.long)
    labels[:, :4] = 255
    labels[0, 30, 31] = 2  # in the middle: the crop's middle
    labels[1, 2, 3] = 1  # in a corner: the crop stays inside
    labels[2, 58, 60] = 3  # the photo ends at row 60
    found = object_views(batch, labels, views())
    assert found.images.shape == (4, 8, 3, LOCAL, LOCAL) and found.affine.shape == (4, 8, 2, 3)
    places = corners(found)
    half = LOCAL // 2
    assert (places[0] == torch.tensor([31 - half, 30 - half])).all()
    assert (places[1] == 0).all()
    assert (places[2] == torch.tensor([SIZE - LOCAL, SIZE - 4 - LOCAL])).all()
    assert len(places[3].unique(dim=0)) > 2, "no object: anywhere in the photo"
    assert (places >= 0).all() and (places[..., 1] + LOCAL <= SIZE - 4).all()


def test_each_pixel_of_an_object_is_as_likely() -> None:
    batch = squares()
    labels = torch.zeros(4, SIZE, SIZE, dtype=torch.long)
    labels[:, 20:24, 30] = 1
    labels[:, 30, 30] = 3
    rows = corners(object_views(batch, labels, views(count=250)))[..., 1].flatten() + LOCAL // 2
    shares = [(rows == y).float().mean().item() for y in (20, 21, 22, 23, 30)]
    assert sum(shares) == pytest.approx(1) and all(abs(share - 0.2) < 0.05 for share in shares)


def test_pixels_are_those_of_the_main_image_in_other_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = squares()
    labels = (torch.rand(4, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) > 0.9).long()
    plain = object_views(batch, labels, views())
    again = object_views(squares(), labels, views())
    assert torch.equal(plain.images, again.images), "one seed, one view"
    other = object_views(batch, labels, views())
    assert not torch.equal(plain.affine, other.affine), "the generator has moved on"
    monkeypatch.setattr("tagmask.data.views.jitter", lambda image, amounts, generator: image)
    monkeypatch.setattr("tagmask.data.views.LOCAL_GREY", 0.0)
    same = object_views(squares(), labels, views())
    assert (same.affine[..., 0, 0] < 0).any() and (same.affine[..., 0, 0] > 0).any(), "some are flipped"
    for n in range(8):
        shown = warp(batch.images, same.affine[:, n], (LOCAL, LOCAL))
        torch.testing.assert_close(shown, same.images[:, n], atol=1e-5, rtol=0)
    assert not torch.equal(same.images, plain.images)


def test_padding_of_a_small_photo_stays_black() -> None:
    batch = squares()
    batch.boxes[:] = torch.tensor([10, 20, 30, 40])
    batch.images *= 0
    batch.images[:, :, 20:40, 10:30] = 0.5
    labels = torch.zeros(4, SIZE, SIZE, dtype=torch.long)
    labels[:, 30, 20] = 1
    found = object_views(batch, labels, views())
    for image, box in zip(found.images.flatten(0, 1), found.boxes.flatten(0, 1).tolist()):
        x0, y0, x1, y1 = box
        assert (x1 - x0, y1 - y0) == (20, 20), "all of the photo"
        assert (image[:, y0:y1, x0:x1] > 0).all() and torch.equal(image.amax(0) > 0, inside_of(box))


def inside_of(box: list[int]) -> Tensor:
    x0, y0, x1, y1 = box
    found = torch.zeros(LOCAL, LOCAL, dtype=torch.bool)
    found[y0:y1, x0:x1] = True
    return found


def test_eca_compares_class_maps_in_them() -> None:
    method, batch = build(local="object").eval(), squares()
    assert "local" not in batch.views
    labels = torch.randint(0, 3, (4, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    found = method._correspondence(batch, labels)
    local = object_views(squares(), labels, method.views)
    raw = method.classifier.cam(method.encoder(local.images.flatten(0, 1)).maps[-1])
    torch.testing.assert_close(found, 2 * cam_correspondence(raw, local_labels(labels, local, (2, 2)).flatten(0, 1)))
    losses = build(local="object").losses(squares(), 2)
    assert {"cls", "seg", "region", "corr"} == set(losses.terms) and losses.total.isfinite()


def test_local_views_larger_than_the_main_one_are_refused() -> None:
    config = tiny_of_all({"name": "eca", "affinity": "none"}, views={"local": {"size": 2 * SIZE}})
    with pytest.raises(ConfigError, match=r"views\.local\.size\b"):
        build_method(config, 3)
