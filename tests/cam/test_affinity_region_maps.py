"""Seeds, region maps, calibration and labels against loops from equations 2 to 10 of ECA."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tagmask.cam import PrototypeCalibration, affinity_region_maps, cam_seeds, region_labels
from tagmask.errors import TagmaskError
from tagmask.refine import VARM
from tests.region_loops import calibration_loops, map_loops, mean_tokens, seed_loops


def draw(seed: int = 0, images: int = 2, classes: int = 3, grid: tuple[int, int] = (4, 5)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cams = (1.6 * torch.rand(images, classes, *grid, generator=generator) - 0.6).clamp(0, 1)
    tags = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])[:images]
    return cams, tags


def some_valid(images: int = 2, grid: tuple[int, int] = (4, 5)) -> Tensor:
    valid = torch.ones(images, *grid, dtype=torch.bool)
    valid[0, :, -1] = False
    valid[-1, 0] = False
    return valid


@pytest.mark.parametrize("top", [0.05, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("background", "most"), [(None, None), (0.45, None), (None, 2)])
def test_seeds_equal_loops(top: float, background: float | None, most: int | None) -> None:
    for seed in range(3):
        cams, tags = draw(seed)
        valid = some_valid()
        found = cam_seeds(cams, tags, top, background, most, valid)
        assert torch.equal(found, seed_loops(cams, tags, top, background, most, valid))


def test_seeds_are_exclusive_tagged_valid_and_none_where_a_class_wins_nowhere() -> None:
    cams, tags = draw()
    cams[0, 2] = 0.01  # tagged, but below the background everywhere
    seeds = cam_seeds(cams, tags, 1.0, valid=some_valid())
    assert seeds.sum(1).max() == 1 and not seeds[(tags == 0).nonzero()[:, 0], 1 + (tags == 0).nonzero()[:, 1]].any()
    assert not seeds[:, :, :, :][~some_valid()[:, None].expand_as(seeds)].any()
    assert not seeds[0, 3].any() and seeds[1, 1].any()
    nothing = cam_seeds(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2), 0.3)
    assert nothing[0, 0].sum() == 3 and not nothing[:, 1:].any(), "without tags all is background"


@pytest.mark.parametrize("cue", ["minmax", "binary", "none"])
@pytest.mark.parametrize("chunk", [512, 3, 1])
def test_region_maps_equal_loops(cue: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[affinity_region_maps.__module__], "CHUNK", chunk)
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(2, 6, 4, 5, generator=generator) + 0.3
    query = torch.randn(2, 6, generator=generator) if cue != "none" else None
    cams, tags = draw(2)
    valid = some_valid()
    seeds = cam_seeds(cams, tags, 0.5, valid=valid)
    maps = affinity_region_maps(keys, query, seeds, 0.15, cue, -0.1, valid)  # type: ignore[arg-type]
    expected = map_loops(keys, query, seeds, 0.15, cue, -0.1, valid)
    assert expected[:, 1:].max() > 0.5 and (expected[:, 1] > 0).sum() > seeds[:, 1].sum()
    torch.testing.assert_close(maps.double(), expected, atol=1e-6, rtol=0)


def test_overlapping_seeds_count_for_each_class() -> None:
    keys = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    seeds = torch.zeros(1, 3, 3, 3, dtype=torch.bool)
    seeds[0, 1, 0, 0] = seeds[0, 2, 0, 0] = True
    maps = affinity_region_maps(keys, None, seeds, cue="none")
    assert torch.equal(maps[0, 1], maps[0, 2]) and maps[0, 1].max() > 0 and maps[0, 0].max() == 0


def test_two_objects_are_told_apart_from_one_seed_each() -> None:
    """Left half one kind of key, right half another, the middle row a third: regions are whole and pure."""
    keys = torch.zeros(1, 3, 5, 6)
    keys[0, 0, :, :3] = keys[0, 1, :, 3:] = 1
    keys[0, :, 2] = torch.tensor([0.0, 0.0, 1.0])[:, None]
    seeds = torch.zeros(1, 3, 5, 6, dtype=torch.bool)
    seeds[0, 0, 2, 0] = seeds[0, 1, 0, 0] = seeds[0, 2, 4, 5] = True
    maps = affinity_region_maps(keys, torch.tensor([[1.0, 1.0, -1.0]]), seeds)
    images = torch.rand(1, 3, 5, 6)
    labels = region_labels(maps, torch.ones(1, 2), images)
    expected = torch.zeros(1, 5, 6, dtype=torch.long)
    expected[0, :, :3], expected[0, :, 3:] = 1, 2
    expected[0, 2] = 0
    assert torch.equal(labels, expected)
    assert torch.equal(region_labels(maps, torch.tensor([[0.0, 1.0]]), images) == 2, expected == 2), "absent: no label"
    boxed = region_labels(maps, torch.ones(1, 2), images, boxes=torch.tensor([[1, 0, 6, 5]]))
    assert (boxed[:, :, 0] == 255).all() and torch.equal(boxed[:, :, 1:], expected[:, :, 1:])


def test_labels_are_refined_at_half_resolution_and_equal_loops() -> None:
    maps = torch.rand(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    tags, images = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]), torch.rand(2, 3, 8, 8)
    seen = []

    def refine(pictures: Tensor, scores: Tensor) -> Tensor:
        seen.append((pictures.shape, scores.clone()))
        return scores.roll(1, -1)

    labels = region_labels(maps, tags, images, refine)
    assert seen[0][0] == (2, 3, 4, 4) and seen[0][1].shape == (2, 3, 4, 4), "background and two tagged classes"
    rolled = torch.nn.functional.interpolate(maps.roll(1, -1), size=(8, 8), mode="bilinear")
    for b in range(2):
        allowed = [0, *(c + 1 for c in range(3) if tags[b, c] > 0)]
        for y in range(8):
            for x in range(8):
                values = [float(rolled[b, c, y, x]) for c in allowed]
                assert labels[b, y, x] == allowed[values.index(max(values))]


def test_a_refinement_below_0_cannot_make_an_untagged_class() -> None:
    """The second image carries two absent classes beside its own; VARM's weights are negative, too."""
    tags = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        maps, images = (torch.rand(2, n, side, side, generator=generator) for n, side in ((4, 8), (3, 64)))
        found = region_labels((maps - 0.6).clamp(min=0), tags, images, VARM())
        assert set(found[0].unique().tolist()) == {0, 1, 2, 3} and set(found[1].unique().tolist()) == {0, 3}
    below = region_labels(maps, tags, images, lambda _, scores: -scores)
    assert set(below[1].unique().tolist()) == {0, 3}


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returns, in bytes; views of ``given`` do not count."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.bytes, self.given = 0, given.untyped_storage().data_ptr()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() != self.given:
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return result


def test_only_a_chunk_of_rows_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 4,096 nodes, 512 pixels in patches of 8, no tensor is larger than a chunk of rows or the keys' maps."""
    nodes, chunk = 4096, 64
    monkeypatch.setattr(sys.modules[affinity_region_maps.__module__], "CHUNK", chunk)
    keys = torch.randn(2, 8, 64, 64)
    seeds = torch.zeros(2, 3, 64, 64, dtype=torch.bool)
    seeds[:, 0, :20], seeds[:, 1, 40:45] = True, True
    with Largest(keys) as seen:
        maps = affinity_region_maps(keys, None, seeds, cue="none")
    assert seen.bytes <= 4 * chunk * nodes < 4 * nodes * nodes / 50
    assert maps.max() > 0.9


def test_the_cue_copies_no_more_than_one_images_keys() -> None:
    keys, query = torch.randn(8, 32, 16, 16), torch.randn(8, 32)
    seeds = torch.zeros(8, 3, 16, 16, dtype=torch.bool)
    seeds[:, 1, 0, 0] = True
    with Largest(keys) as seen:
        affinity_region_maps(keys, query, seeds, cue="minmax")
    assert seen.bytes <= keys[0].numel() * keys.element_size()


def test_prototypes_and_calibration_equal_loops() -> None:
    generator = torch.Generator().manual_seed(3)
    calibration = PrototypeCalibration(classes=3, channels=4, momentum=0.8)
    prototypes: list[list[float] | None] = [None] * 3
    for step in range(3):
        tokens = torch.randn(2, 4, 3, 3, generator=generator)
        seeds = torch.rand(2, 3, 3, 3, generator=generator) > 0.6
        seeds[:, 2] = False
        seeds[0, 1] &= step > 0
        calibration.update(tokens, seeds)
        for c, fresh in enumerate(mean_tokens(tokens, seeds)):
            old = prototypes[c]
            if fresh is not None:
                prototypes[c] = fresh if old is None else [0.8 * o + 0.2 * f for o, f in zip(old, fresh, strict=True)]
    assert calibration.seen.tolist() == [True, True, False]
    for c in range(2):
        torch.testing.assert_close(calibration.prototypes[c], torch.tensor(prototypes[c]))
    maps, tags = torch.rand(2, 3, 3, 3, generator=generator), torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    valid = some_valid(2, (3, 3))
    for rescale, exponent, least in ((False, 2.0, 1), (True, 1.5, 2)):
        calibration.rescale, calibration.exponent, calibration.least_classes = rescale, exponent, least
        result = calibration(maps, tokens, tags, valid)
        expected = calibration_loops(maps, tokens, prototypes, tags, valid, exponent, rescale, least)
        torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=0)
        assert torch.equal(result[:, 2], maps[:, 2]) and not torch.equal(result[0, 0], maps[0, 0])
        assert torch.equal(result[1], maps[1]) == (least == 2), "one tag"


def test_prototypes_are_means_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with the same images: sums double, means stay."""
    tokens, seeds = torch.randn(2, 4, 3, 3), torch.rand(2, 3, 3, 3) > 0.5
    alone, together = PrototypeCalibration(3, 4), PrototypeCalibration(3, 4)
    alone.update(tokens, seeds)
    calls = []

    def doubled(value: Tensor) -> Tensor:
        calls.append(1)
        return 2 * value

    monkeypatch.setattr("tagmask.comm.all_sum", doubled)
    together.update(tokens, seeds)
    assert len(calls) == 2
    torch.testing.assert_close(together.prototypes, alone.prototypes)


def test_state_is_saved() -> None:
    one, two = PrototypeCalibration(3, 4), PrototypeCalibration(3, 4)
    one.update(torch.randn(1, 4, 2, 2), torch.tensor([True, False, True]).view(1, 3, 1, 1).expand(1, 3, 2, 2))
    two.load_state_dict(one.state_dict())
    assert two.seen.tolist() == [True, False, True] and torch.equal(two.prototypes, one.prototypes)


def test_images_without_valid_positions_give_nothing_and_nothing_is_nan() -> None:
    valid = torch.zeros(1, 3, 3, dtype=torch.bool)
    seeds = cam_seeds(torch.rand(1, 2, 3, 3), torch.ones(1, 2), 0.3, valid=valid)
    assert not seeds.any()
    maps = affinity_region_maps(torch.randn(1, 4, 3, 3), torch.randn(1, 4), seeds, valid=valid)
    assert maps.abs().max() == 0
    calibration = PrototypeCalibration(2, 4)
    calibration.update(torch.randn(1, 4, 3, 3), seeds[:, 1:])
    assert not calibration.seen.any()
    assert calibration(maps[:, 1:], torch.zeros(1, 4, 3, 3), torch.ones(1, 2), valid).isfinite().all()


def test_half_precision_is_counted_in_float32() -> None:
    keys = torch.randn(1, 8, 4, 4).bfloat16()
    seeds = torch.rand(1, 3, 4, 4) > 0.5
    with torch.autocast("cpu", torch.bfloat16):
        maps = affinity_region_maps(keys.float(), None, seeds, cue="none")
    assert torch.equal(maps, affinity_region_maps(keys.float(), None, seeds, cue="none"))
    assert torch.equal(maps, affinity_region_maps(keys, None, seeds, cue="none")) and maps.dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    keys, seeds = torch.zeros(2, 4, 3, 3), torch.zeros(2, 3, 3, 3, dtype=torch.bool)
    with pytest.raises(TagmaskError, match=r"CAM seeds"):
        cam_seeds(torch.zeros(2, 3, 4, 4), torch.zeros(2, 2), 0.3)
    with pytest.raises(TagmaskError, match="share.*got 0"):
        cam_seeds(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3), 0)
    with pytest.raises(TagmaskError, match="valid"):
        cam_seeds(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3), 0.3, valid=torch.ones(2, 4, 3))
    with pytest.raises(TagmaskError, match="affinity_region_maps"):
        affinity_region_maps(keys, None, seeds[..., :2], cue="none")
    with pytest.raises(TagmaskError, match="'minmax'"):
        affinity_region_maps(keys, None, seeds)
    with pytest.raises(TagmaskError, match="got 'soft'"):
        affinity_region_maps(keys, None, seeds, cue="soft")  # type: ignore[arg-type]
    calibration = PrototypeCalibration(2, 4)
    for wrong in (seeds, seeds[:1, 1:], seeds[:, 1:, :2]):
        with pytest.raises(TagmaskError, match="Calibration"):
            calibration.update(keys, wrong)
    with pytest.raises(TagmaskError, match="Calibration"):
        calibration(torch.zeros(2, 2, 3, 3), keys, torch.ones(2, 3))
    with pytest.raises(TagmaskError, match="region_labels"):
        region_labels(torch.zeros(2, 3, 3, 3), torch.zeros(2, 3), torch.zeros(2, 3, 6, 6))
