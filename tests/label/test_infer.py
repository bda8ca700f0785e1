"""Inference on one photo: tiles, scales, working grid, unsure pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tagmask.config import MethodConfig, RunConfig, load_config
from tagmask.errors import ConfigError
from tagmask.label import Look
from tagmask.label.infer import Inference, best_labels, tile_starts
from tagmask.methods import Method, build_method
from tagmask.refine import PAR, DenseCRF
from tests.methods.contract import tiny
from tests.small_onnx import write_saliency

CLASSES = 3


class Pointwise(Method):
    """Logits that depend on each pixel alone: tiles and the whole photo must agree. Kept out of the registry."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__(MethodConfig(name="pointwise"), build_method(tiny({"name": "baseline"}), 1).encoder, classes)
        self.seen: list[tuple[int, ...]] = []

    def segment(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape[-2:]))
        return torch.cat([images, images.mean(1, keepdim=True)], 1) * 9

    def cams(self, images: Tensor, tags: Tensor | None = None, *_: Any) -> Tensor:
        self.seen.append(tuple(images.shape[-2:]))
        return images if tags is None else images * tags[:, :, None, None]


def config(**label: Any) -> RunConfig:
    return load_config({"label": {"refine": "none", "refine_masks": "none", **label}})


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def probabilities(inference: Inference, image: Tensor, tags: Tensor | None = None) -> Tensor:
    return inference.probabilities(image, inference.logits(image)[0], tags)


@pytest.mark.parametrize("length,side", [(1, 8), (8, 8), (9, 8), (20, 8), (100, 32), (101, 7), (5, 1)])
def test_tiles_cover_everything_and_overlap_by_a_quarter(length: int, side: int) -> None:
    starts = tile_starts(length, side)
    covered = {p for s in starts for p in range(s, min(s + side, length))}
    assert covered == set(range(length))
    assert starts[0] == 0 and starts[-1] == max(0, length - side)
    assert all(b - a <= max(1, side - side // 4) for a, b in zip(starts, starts[1:], strict=False))


def test_tiles_agree_with_the_whole_photo() -> None:
    method = Pointwise()
    whole = probabilities(Inference(method, config()), photo(50, 70))
    method.seen.clear()
    tiled = probabilities(Inference(method, config(tile=24)), photo(50, 70))
    assert len(method.seen) == 3 * 4 and set(method.seen) == {(24, 24)}
    torch.testing.assert_close(tiled, whole)


def test_large_photos_are_tiled_by_themselves() -> None:
    method = Pointwise()
    Inference(method, config(max_side=32)).logits(photo(20, 40))
    assert set(method.seen) == {(20, 32)}


def test_a_tag_that_the_segmenter_finds_nowhere_is_taken_from_its_cam() -> None:
    image = torch.tensor([200, 180, 100], dtype=torch.uint8)[:, None, None].repeat(1, 6, 8)
    image[1, 2:4, :5] = 20  # there the third class has the largest CAM; its logit, a mean, wins nowhere
    image[0, 2:4, 2:5] = 20  # the second class wins, and background elsewhere
    tags = torch.tensor([0, 1, 1])
    plain, done = (Look(Inference(Pointwise(), config(complete=c)), image, tags).mask[0] for c in (False, True))
    assert plain.unique().tolist() == [0, 2] and (plain[2:4, 2:5] == 2).all()
    expected = plain.clone()
    expected[2:4, :2] = 3
    assert torch.equal(done, expected), "what the segmenter finds is its own"
    found = [Look(Inference(Pointwise(), config(complete=c)), image, torch.tensor([0, 1, 0])).mask[0] for c in (0, 1)]
    assert torch.equal(*found) and (found[0] == 2).any()
    assert not Inference(Pointwise(), config(source="cam")).completes
    faint = torch.full((3, 2, 2), 100, dtype=torch.uint8)  # all logits equal: one wins, with a probability of 0.5
    faint[1] = 103
    unsure = Look(Inference(Pointwise(), config(unsure=0.9)), faint, torch.tensor([1, 0, 0])).mask[0]
    assert (unsure == 255).all(), "found, though not surely"


def test_scales_and_flip_merge_as_named() -> None:
    image = photo(16, 12)
    x = image[None].float() / 255
    method = Pointwise()
    views = []
    for scale in (1.0, 0.5):
        small = F.interpolate(x, size=[round(16 * scale), round(12 * scale)], mode="bilinear", align_corners=False)
        logits = F.interpolate(method.segment(small), size=[16, 12], mode="bilinear", align_corners=False)[0]
        views += [logits, logits]  # a pointwise method commutes with the flip
    found = probabilities(Inference(method, config(scales=[1.0, 0.5], flip=True)), image)
    torch.testing.assert_close(found, torch.stack(views).mean(0).softmax(0))
    found = probabilities(Inference(method, config(scales=[1.0, 0.5], flip=True, merge="max")), image)
    torch.testing.assert_close(found, torch.stack(views).amax(0).softmax(0))


def test_tags_leave_the_other_classes_out_before_the_softmax() -> None:
    inference = Inference(Pointwise(), config())
    scores = probabilities(inference, photo(8, 8), torch.tensor([0.0, 1.0, 0.0]))
    assert scores[1].max() == 0 and scores[3].max() == 0
    torch.testing.assert_close(scores.sum(0), torch.ones(8, 8))


def test_the_working_grid_is_reduced_and_labels_have_the_photos_size() -> None:
    settings = config()
    settings.views.short_side = 16
    method = Pointwise()
    inference = Inference(method, settings)
    labels, scores = Look(inference, photo(64, 96)).prediction
    assert method.seen == [(16, 24)] and scores.shape == (4, 16, 24) and labels.shape == (64, 96)
    assert inference.cams(photo(10, 12), None).shape == (3, 10, 12), "small photos stay as they are"


def test_cams_of_large_photos_are_bounded() -> None:
    assert Inference(Pointwise(), config(max_side=32)).cams(photo(32, 64), torch.ones(3)).shape == (3, 16, 32)


@pytest.mark.parametrize("short", [None, 20])
def test_networks_see_a_square_and_maps_have_the_photos_shape(short: int | None) -> None:
    settings = config(square=32, scales=[1.0, 0.5], max_side=48)
    settings.views.short_side = short
    method, image = Pointwise(), photo(40, 60)
    inference = Inference(method, settings)
    working = inference.batch(image)
    grid = (40, 60) if short is None else (20, 30)
    assert working.shape[-2:] == grid
    square = F.interpolate(working, size=(32, 32), mode="bilinear", antialias=True).clamp(0, 1)
    logits = inference.logits(image, image)
    assert method.seen == [(32, 32), (16, 16)] and logits.shape == (2, CLASSES + 1, *grid), "no tiles"
    small = F.interpolate(square, size=(16, 16), mode="bilinear", align_corners=False)
    both = (method.segment(square) + F.interpolate(method.segment(small), (32, 32), mode="bilinear")) / 2
    torch.testing.assert_close(logits[:1], F.interpolate(both, size=grid, mode="bilinear"))
    method.seen.clear()
    reduced = inference.batch(image, 48)
    expected = F.interpolate(reduced, size=(32, 32), mode="bilinear", antialias=True).clamp(0, 1)
    expected = F.interpolate(expected, size=reduced.shape[-2:], mode="bilinear")[0]
    torch.testing.assert_close(inference.cams(image, torch.ones(3)), expected)
    method.class_scores = lambda images: torch.tensor([images.shape[1:]])  # type: ignore[method-assign]
    assert method.seen == [(32, 32)] and inference.class_scores(image).tolist() == [3, 32, 32]  # type: ignore[union-attr]
    labels, _ = Look(inference, image).prediction
    assert labels.shape == (40, 60)


def test_a_square_is_not_cut_into_tiles() -> None:
    with pytest.raises(ConfigError, match=r"square=32.*tile=16"):
        config(square=32, tile=16)


def test_masks_of_tagged_photos_are_refined_and_stay_probabilities() -> None:
    image = photo(20, 24)
    tags = torch.tensor([1.0, 0.0, 1.0])
    inference = Inference(Pointwise(), config(refine_masks="par", unsure=0.4))
    labels, scores = Look(inference, image, tags).mask
    plain = probabilities(inference, image, tags)
    expected = PAR()(image[None].float() / 255, plain[[0, 1, 3]][None])[0]
    expected = expected / expected.sum(0)
    torch.testing.assert_close(scores[[0, 1, 3]], expected)
    assert scores[2].max() == 0 and not torch.allclose(scores, plain)
    assert torch.equal(labels == 255, scores.amax(0) < 0.4)
    tiled = Look(Inference(Pointwise(), config(refine_masks="par", tile=8)), image, tags).mask[1]
    torch.testing.assert_close(tiled, Look(Inference(Pointwise(), config(tile=8)), image, tags).mask[1])


def test_the_random_field_sees_the_photo_and_the_possible_classes() -> None:
    image = photo(20, 24)
    tags = torch.tensor([1.0, 0.0, 1.0])
    inference = Inference(Pointwise(), config(crf="afa", refine_masks="none"))
    plain = probabilities(Inference(Pointwise(), config()), image, tags)
    scores = Look(inference, image, tags).mask[1]
    expected = DenseCRF.preset("afa")(image[None], plain[[0, 1, 3]][None])[0]
    torch.testing.assert_close(scores[[0, 1, 3]], expected)
    assert scores[2].max() == 0 and not torch.allclose(scores, plain, atol=1e-3)
    tiled = probabilities(Inference(Pointwise(), config(crf="afa", tile=8)), image)
    torch.testing.assert_close(tiled, probabilities(Inference(Pointwise(), config(tile=8)), image))
    with pytest.raises(ConfigError, match="'afb'"):
        Inference(Pointwise(), config(crf="afb"))


@pytest.mark.parametrize("size", [(6, 5), (13, 11)])
def test_best_labels_equal_the_largest_of_the_resized_scores(size: tuple[int, int]) -> None:
    scores = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0)).softmax(0)
    full = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
    best, expected = full.max(0)
    found = best_labels(scores, torch.zeros(3, *size), unsure=0.28)
    assert torch.equal(found, torch.where(best < 0.28, torch.tensor(255), expected).byte())
    assert (found == 255).any() and (found != 255).any()


def test_labels_from_cams_use_the_threshold_and_the_tags() -> None:
    image = photo(9, 7)
    inference = Inference(Pointwise(), config(source="cam", threshold=0.5))
    labels, _ = Look(inference, image, torch.tensor([1.0, 0.0, 1.0])).mask
    values = image.float() / 255
    for y in range(9):
        for x in range(7):
            red, blue = values[0, y, x], values[2, y, x]
            expected = 0 if max(red, blue) <= 0.5 else 1 if red >= blue else 3
            assert labels[y, x] == expected


def test_saliency_scores_the_background_of_tagged_photos_alone(tmp_path: Path) -> None:
    network = str(write_saliency(tmp_path / "net.onnx"))
    image, tags = photo(24, 40), torch.tensor([1, 0, 1])
    plain, guided = (Inference(Pointwise(), with_guide(guide)) for guide in (None, network))
    factor = F.interpolate(guided.background_factor(image), size=(24, 40), mode="bilinear")[0, 0]  # type: ignore[arg-type]
    assert 0.1 < factor.min() < factor.max() < 2
    one, other = Look(guided, image, tags), Look(plain, image, tags)
    assert torch.equal(one.cams, other.cams) and torch.equal(one.prediction[1], other.prediction[1])
    for y in range(0, 24, 5):
        for x in range(0, 40, 7):
            expected = [float(value) for value in other.limited[:, y, x]]
            expected[0] *= float(factor[y, x])
            assert one.limited[:, y, x].tolist() == pytest.approx(
                [value / sum(expected) for value in expected], abs=1e-5
            )
            assert float(one.refined[0, y, x]) == pytest.approx(0.3 * float(factor[y, x]), abs=1e-5)
            assert torch.equal(one.refined[1:, y, x], other.refined[1:, y, x])
    assert Look(guided, image, torch.zeros(3)).limited[0].min() == 1, "nothing is in it, whatever is salient"


def with_guide(network: str | None) -> RunConfig:
    return load_config(
        {"label": {"refine": "none", "refine_masks": "none", "threshold": 0.3}, "guides": {"saliency": network}}
    )
