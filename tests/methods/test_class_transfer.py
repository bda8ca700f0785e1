"""``class_transfer``: the contract, and its CAMs against loops."""

from __future__ import annotations

import pytest
import torch

from tagmask.cam.class_association import association
from tagmask.methods import build_method
from tagmask.methods.class_transfer import ClassTransfer
from tests.methods.class_loops import shares
from tests.methods.contract import CLASSES, MethodContract, squares, tiny


class TestClassTransfer(MethodContract):
    settings = {"name": "class_transfer"}
    terms = {"cls": {"classifier"}}
    encoders = ("cnn",)
    updates = 60


def test_cams_follow_the_loop_as_training_feeds_them() -> None:
    torch.manual_seed(0)
    method = build_method(
        tiny({"name": "class_transfer", "photo": 0.25, "places": True}, "test_resnet"), CLASSES
    ).train()
    assert isinstance(method, ClassTransfer)
    batches = [squares(seed) for seed in range(3)]
    for step, batch in enumerate(batches):
        method.losses(batch, step)
    method.eval()
    body, seen = method.encoder.body, []
    with torch.no_grad():
        images = torch.cat([batch.images for batch in batches])
        for image in images:  # the network's own probabilities, by its own forward
            seen.append(body((image[None] - method.encoder.mean) / method.encoder.std)[0].softmax(0))
        weights = torch.tensor(shares(torch.stack(seen), torch.cat([batch.tags for batch in batches])))
        found, logits = method.cam_maps(images[:2]), method.encoder(images[:2]).maps[-1]
    for n in range(2):
        for k in range(CLASSES):
            own = [float(weights[k, s] * seen[n][s] ** 0.25) for s in range(len(seen[n]))]
            expected = sum(w / sum(own) * (logits[n, s] - logits[n].mean(0)) for s, w in enumerate(own))
            torch.testing.assert_close(found[n, k], expected, rtol=1e-3, atol=1e-5)


def test_objects_are_not_made_of_places_but_places_are() -> None:
    """A boat seen as speedboat (814) and lakeside (975), and a lake as lakeside and seashore (978)."""
    seen, photos = torch.zeros(3, 1000), torch.tensor([10.0, 10.0, 30.0])
    seen[:, 814] = torch.tensor([6.0, 0.0, 6.0])
    seen[:, 975] = torch.tensor([4.0, 6.0, 10.0])
    seen[:, 978] = torch.tensor([0.0, 3.0, 3.0])
    for places in (False, True):
        boat, lake = association(seen, photos, places)
        assert (boat[814] < 1, boat[975] > 0) == (places, places)
        assert lake[975] > 0.5 and float(lake.sum()) == float(lake[[975, 978]].sum()) == pytest.approx(1)
        assert float(boat.sum()) == pytest.approx(1)


def test_an_object_of_a_known_class_is_found_on_ground_that_every_photo_of_the_tag_shows() -> None:
    """Class 0 of the network is the thing, class 1 its ground, which all photos show, those of the other tag, too."""
    method = build_method(tiny({"name": "class_transfer"}, "test_resnet"), 2)
    assert isinstance(method, ClassTransfer)
    method.seen = torch.tensor([[4.0, 1.0], [1.0, 1.0], [6.0, 4.0]])
    method.photos = torch.tensor([5.0, 2.0, 10.0])
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 0, 0, 0], logits[0, 1, 1, 1] = 8.0, 6.0
    method.encoder.forward = lambda images: type("F", (), {"maps": [logits]})()  # type: ignore[method-assign]
    cams = method.cam_maps(torch.zeros(1, 3, 8, 8))
    assert cams[0, 0].argmax() == 0 and cams[0, 0, 1, 1] < 0
