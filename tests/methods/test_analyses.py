"""What methods show of a photo, and their other maps, against loops and networks that are called by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tagmask.cam.maps import resize
from tagmask.encoders.guide import Guidance
from tagmask.encoders.timm_vit import TimmViT
from tagmask.errors import ConfigError
from tagmask.methods import build_method
from tagmask.methods.base import whole_image
from tests.cosa_loops import assignment_loops, perplexity_loops
from tests.methods import cosa_parts, test_crt, test_eca, test_eca_regions, test_rcm_mam
from tests.methods.contract import CLASSES, SIZE, scales_and_mirrors, tiny
from tests.region_loops import calibration_loops, cosine_loops, map_loops, seed_loops

TAGS = torch.tensor([[1.0, 0.0, 1.0]])


def image(height: int = 48, width: int = 40) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def cosa() -> Any:
    """Two networks that differ, and thresholds that do."""
    method = cosa_parts.build().eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for network in (method.online, method.assigner):
            for part in (network.classifier, network.auxiliary):
                part.conv.weight.uniform_(generator=generator)  # no CAM is 0 everywhere
        for parameter in method.encoder.parameters():
            parameter.mul_(1.1)
    method.thresholds["main"].value.fill_(0.35)
    method.thresholds["aux"].value.fill_(0.6)
    return method


def test_other_cams_and_segmenters_are_those_of_the_other_parts(cosa: Any) -> None:
    x = image()
    assert set(cosa.others()) == {"aux", "online", "aux_online"}
    networks = {"": cosa.assigner, "online": cosa.online}
    for name, network in networks.items():

        def main(images: Tensor, network: Any = network) -> Tensor:
            return F.conv2d(network.encoder(images).maps[-1], network.classifier.conv.weight)

        def auxiliary(images: Tensor, network: Any = network) -> Tensor:
            return F.conv2d(network.encoder(images).maps[-2], network.auxiliary.conv.weight)

        with torch.no_grad():
            found = cosa.cams(x, TAGS, [1.0, 0.5], which=name or "main")
            torch.testing.assert_close(found[0, [0, 2]], scales_and_mirrors(main, x, [1.0, 0.5])[0, [0, 2]])
            assert found[0, 1].max() == 0
            found = cosa.cams(x, None, [1.0], False, which=f"aux_{name}" if name else "aux")
            torch.testing.assert_close(found, scales_and_mirrors(auxiliary, x, [1.0], flip=False))
            logits = resize(network.decoder(network.encoder(x)), (48, 40))
            torch.testing.assert_close(cosa.segmenter(name or "main")(x), logits)
    assert set(cosa_parts.build(inference="online").others()) == {"aux", "assignment", "aux_assignment"}
    assert set(cosa_parts.build(swap=False).others()) == {"aux"}
    untrained = cosa_parts.build(**cosa_parts.without("cls_aux", "c2s_aux", "csc"))
    assert set(untrained.others()) == {"online"}


def test_maps_that_there_are_not_are_refused(cosa: Any) -> None:
    with pytest.raises(ConfigError, match="which='nonsense'.*main, aux, online"):
        cosa.cams(image(), which="nonsense")
    with pytest.raises(ConfigError, match="which='aux'.*main, online"):
        cosa.segmenter("aux")
    with pytest.raises(ConfigError, match="which='aux'"):
        build_method(tiny({"name": "baseline"}), CLASSES).cams(image(), which="aux")


@pytest.mark.parametrize("low", [None, 0.2])
def test_labels_by_confidence_and_perplexity_equal_loops(cosa: Any, low: float | None) -> None:
    cosa.config = cosa.config.model_copy(update={"low": low, "cam_scales": [1.0, 0.5]})
    x = image()
    by_confidence = cosa.analyses()["confidence"].look(x, TAGS)
    by_perplexity = cosa.analyses()["perplexity"].look(x, TAGS)
    assert list(by_confidence) == list(by_perplexity) == ["main", "aux"]
    for which, xi in (("main", 0.35), ("aux", 0.6)):
        cams = cosa.cams(x, TAGS, [1.0, 0.5], which=which)
        labels, confidence = assignment_loops(cams.double(), TAGS > 0, float(torch.tensor(xi)), low)
        assert torch.equal(by_confidence[which][0], labels[0]) and torch.equal(by_perplexity[which][0], labels[0])
        torch.testing.assert_close(by_confidence[which][1].double(), confidence[0])
        doubt = perplexity_loops(confidence, float(torch.tensor(xi)), 0.8, 1.0)[0]
        torch.testing.assert_close(by_perplexity[which][1].double(), doubt, rtol=1e-4, atol=1e-5)
        assert len(labels.unique()) > 2


@pytest.mark.parametrize("name", test_eca_regions.OWN)
def test_regions_that_are_shown_equal_loops_and_teach_nothing(name: str) -> None:
    _, given = test_eca_regions.given()
    method = test_eca.build(**test_eca_regions.OWN[name], gate=0.9).eval()
    cfg, x = method.config, image(SIZE, SIZE)
    keys, query, valid = given["keys"][:1], given["query"][:1], torch.ones(1, 8, 8, dtype=torch.bool)
    method.guide = lambda _: Guidance(keys, query, valid)
    method.refiner = None
    if method.calibration is not None:
        method.calibration.prototypes.copy_(given["prototypes"])
        method.calibration.seen.fill_(True)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    with torch.inference_mode():
        found = method.analyses()["regions"].look(x, TAGS)
        tokens = resize(method.encoder(x).maps[-1], (8, 8))
        cams = resize(method.cams(x, None, [1.0], False), (8, 8))
        labels = method.cut(whole_image(x, TAGS), cams, torch.full((1, CLASSES), 9.0))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    tags = TAGS
    if name == "release":
        tags = TAGS * torch.tensor([[float((labels == c + 1).any()) for c in range(CLASSES)]])
    seeds = seed_loops(cams, tags, cfg.seeds, cfg.seed_background, None, valid)
    raw = map_loops(keys, query, seeds, cfg.gamma, cfg.guide.cue, cfg.guide.cut, valid)
    calibrated = raw.clone()
    if method.calibration is not None:
        how = (cfg.calibration.exponent, cfg.calibration.rescale, cfg.calibration.least_classes)
        prototypes: list[Any] = given["prototypes"].tolist()
        calibrated[:, 1:] = calibration_loops(raw[:, 1:], tokens, prototypes, tags, valid, *how)
    if name == "release":
        raw[:, 0], calibrated[:, 0] = raw[:, 0].clamp(0.1, 0.6), calibrated[:, 0].clamp(0.1, 0.6)
    assert torch.equal(found["seeds"], seeds[0])
    for part, expected in (("raw", raw), ("calibrated", calibrated)):
        torch.testing.assert_close(found[f"carm_{part}"].double(), expected[0], atol=1e-5, rtol=0)
        fine = resize(expected.float(), (SIZE, SIZE))[0]
        shown = [0, *(c + 1 for c in range(CLASSES) if tags[0, c] > 0)]
        best = torch.tensor(shown)[fine[shown].max(0).indices]
        assert (found[f"labels_{part}"] != best).float().mean() < 0.01  # equal values but for rounding


def test_affinity_of_a_place_equals_loops() -> None:
    _, given = test_eca_regions.given()
    method = test_eca.build(gamma=0.2).eval()
    keys = given["keys"][:1, :, :6, :7]
    method.guide = lambda _: Guidance(keys, None, torch.ones(1, 6, 7, dtype=torch.bool))
    for place, (row, column) in {(0.0, 0.0): (0, 0), (0.5, 0.99): (5, 3), (1.0, 0.4): (2, 6)}.items():
        found = method.analyses()["affinity"].look(image(), TAGS, place)
        for y in range(6):
            for a in range(7):
                cosine = cosine_loops(keys[0, :, row, column].double().tolist(), keys[0, :, y, a].double().tolist())
                assert float(found["affinity"][y, a]) == pytest.approx(max(cosine, 0.0), abs=1e-6)
                assert int(found["connected"][y, a]) == (cosine > 0.2)


def test_a_guide_of_whole_photos_sees_the_same() -> None:
    found = []
    for view in ("crop", "photo"):
        method = test_eca.build(guide=test_eca.GUIDE | {"view": view}).eval()
        found.append(method.analyses()["affinity"].look(image(64, 48), TAGS, (0.2, 0.8))["affinity"])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    assert found[0].shape == (4, 3) and found[0].max() > 0.99


def test_without_a_guide_there_are_no_regions() -> None:
    assert test_eca.build(weight_region=0).analyses() == {}


def test_cosines_of_loops_equal_passes_by_hand() -> None:
    method = test_crt.build(tile=None, loops=3).eval()
    encoder, x = method.encoder, image(32, 48)
    assert isinstance(encoder, TimmViT)
    with torch.no_grad():
        before = encoder._embed((x - encoder.mean) / encoder.std)[0]
        expected = []
        for _ in range(3):
            after = before
            for block in encoder.model.blocks:
                after = block(after)
            pairs = zip(before[0].double().tolist(), after[0].double().tolist())
            cosines = [cosine_loops(a, b) for a, b in pairs]
            expected.append(sum(cosines) / len(cosines))
            before = before + after
        found = method.analyses()["loops"].look(x, TAGS)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in encoder.model.blocks)
    assert test_crt.build(loops=0).analyses() == {}


def test_cosines_of_loops_do_not_depend_on_tiles_at_once() -> None:
    x = image(64, 64)
    found = []
    for at_once in (3, 16):
        found.append(test_crt.build(tiles_at_once=at_once, stride=48).eval().analyses()["loops"].look(x, TAGS))
    torch.testing.assert_close(found[0], found[1])
    assert len(found[0]) == 2 and all(-1 <= value <= 1 and not math.isnan(value) for value in found[0].tolist())


def test_region_masks_are_those_of_equations_1_and_2() -> None:
    method = test_rcm_mam.build().eval()
    method.support = None  # as in a model that was saved
    x = image()
    with torch.inference_mode():
        found = method.analyses()["regions"].look(x, TAGS)["regions"]
        maps = method.class_maps(x)
        grid = (maps.shape[-2], maps.shape[-1])
        total = torch.zeros(CLASSES, *grid)
        for scale in method.config.scales:
            size = (round(48 * scale), round(40 * scale))
            one = resize(method.class_maps(resize(x, size)), grid)[0].relu()
            total += one / one.amax((-2, -1), keepdim=True).clamp(min=1e-5) / len(method.config.scales)
    total = total / total.amax((-2, -1), keepdim=True).clamp(min=1e-5)
    for y in range(grid[0]):
        for a in range(grid[1]):
            value, c = max((float(total[c, y, a]), c) for c in range(CLASSES) if TAGS[0, c] > 0)
            expected = c + 1 if value > method.config.threshold else 0
            assert found[:, y, a].tolist() == [k == expected for k in range(CLASSES + 1)]
