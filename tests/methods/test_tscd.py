"""``tscd``: the contract with and without attention, its equations, its phases, its variants."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tagmask.config import load_config
from tagmask.data.views import make_affine
from tagmask.encoders import Encoder
from tagmask.errors import ConfigError
from tagmask.methods import Method, build_method
from tagmask.methods.tscd import look, on_grid
from tagmask.types import Features
from tests.methods.contract import CLASSES, ENCODERS, MethodContract, SlowTraining, squares, tiny

SETTINGS: dict[str, Any] = {
    "name": "tscd", "warmup": 2, "head_options": {"embed": 16}, "cam_scales": [1.0], "high": 0.5, "low": 0.3,
    "points": 6, "affinity": "none", "energy": {"weight": 1e-4},
}  # fmt: skip
WEIGHTS = {"cls": 1.0, "seg": 0.1, "scd": 0.1, "equ": 0.1, "aux": 0.1, "reg": 0.01}
TERMS = {
    "cls": {"encoder", "classifier"},
    "seg": {"encoder", "decoder"},
    "scd": {"encoder", "decoder"},
    "equ": {"encoder", "classifier"},
    "reg": {"encoder", "decoder"},
}
ALL_OFF = {f"weight_{name}": 0.0 for name in ("seg", "scd", "equ", "aux", "reg")}


def build(encoder: str = "cnn", **changes: Any) -> Method:
    torch.manual_seed(0)
    return build_method(tiny(SETTINGS | changes, ENCODERS[encoder]), CLASSES).train()


def watch_encoder(method: Method) -> list[Any]:
    """Features of each pass from now on; the last map keeps its gradient."""
    passes: list[Any] = []

    def keep(module: Any, inputs: Any, features: Any) -> None:
        if features.maps[-1].requires_grad:
            features.maps[-1].retain_grad()
        passes.append(features)

    method.encoder.register_forward_hook(keep)
    return passes


class TestTSCD(MethodContract):
    # At the paper's 0.1 the total is at 0.9 of its start after 24 steps, and at 0.4 only after 40.
    settings = SETTINGS | {"cam_flip": False, "weight_equ": 0.02}
    terms = TERMS
    idle = [ALL_OFF, {name: 0.0 for name in ALL_OFF if name != "weight_aux"} | {"affinity": "none"}]


class TestTSCDWithAttention(SlowTraining):
    settings = SETTINGS | {"affinity": "attention", "affine": {"scale": 0.5, "flip": 0.5}, "weight_equ": 0.02}
    terms = TERMS | {"aux": {"encoder", "affinity"}}
    encoders = ("vit", "mit")
    encoder = "test_vit"


@pytest.mark.parametrize(
    ("changes", "step", "terms", "calls"),
    [
        ({}, 1, {"cls"}, 1),
        ({}, 2, {"cls", "seg", "scd", "equ", "reg"}, 3),
        ({"cam_flip": False}, 2, {"cls", "seg", "scd", "equ", "reg"}, 2),
        ({"weight_scd": 0.0}, 2, {"cls", "seg", "equ", "reg"}, 3),
        ({"weight_equ": 0.0}, 2, {"cls", "seg", "scd", "reg"}, 3),
        ({"weight_equ": 0.0, "weight_scd": 0.0}, 2, {"cls", "seg", "reg"}, 2),
        (ALL_OFF | {"weight_equ": 0.1}, 2, {"cls", "equ"}, 2),
        (ALL_OFF | {"weight_scd": 0.1}, 2, {"cls", "scd"}, 2),
        (ALL_OFF | {"weight_scd": 0.1, "scd_maps": "normalized"}, 2, {"cls", "scd"}, 4),
        ({"scd_maps": "normalized"}, 2, {"cls", "seg", "scd", "equ", "reg"}, 4),
        ({"scd_maps": "normalized", "weight_scd": 0.0}, 2, {"cls", "seg", "equ", "reg"}, 3),
        (ALL_OFF | {"weight_reg": 0.1}, 2, {"cls", "reg"}, 2),
        (ALL_OFF, 2, {"cls"}, 1),
    ],
)
def test_only_terms_with_a_weight_are_computed(changes: dict, step: int, terms: set[str], calls: int) -> None:
    """Passes: the batch (whose own maps are its CAM), its mirror images for the CAMs, the second view, and its mirror
    images for its CAMs."""
    method = build(**changes)
    passes = watch_encoder(method)
    decoded: list[int] = []
    method.decoder.register_forward_hook(lambda *_: decoded.append(1))  # type: ignore[union-attr]
    assert set(method.losses(squares(), step).terms) == terms
    assert len(passes) == calls
    assert len(decoded) == (bool(terms & {"seg", "reg", "scd"}) + ("scd" in terms))


def test_attention_is_recorded_only_where_it_is_used() -> None:
    method = build("vit", affinity="attention")
    passes = watch_encoder(method)
    method.losses(squares(), 1)
    assert not passes.pop().attention_logits, "not in warm-up"
    method.losses(squares(), 2)
    assert [sorted(p.attention_logits) for p in passes] == [[4, 5], [], []], "the batch's own pass only"
    off = build("vit", affinity="attention", weight_aux=0.0)
    assert off.affinity is None
    assert "aux" not in off.losses(squares(), 2).terms


def test_second_view_is_small() -> None:
    method = build()
    sizes: list[Any] = []
    method.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    method.losses(squares(), 2)
    assert sizes == [(64, 64), (64, 64), (19, 19)]


def in_double(method: Method) -> tuple[Method, Any]:
    """The method in evaluation mode and a batch, both in float64."""
    batch = squares()
    batch.images = batch.images.double()
    return method.double().eval(), batch


def test_classification_loss_equals_equation_13() -> None:
    method, batch = in_double(build())
    logits = method.classifier(method.encoder(batch.images).maps[-1])  # type: ignore[operator]
    total = 0.0
    for scores, tags in zip(logits.tolist(), batch.tags.tolist(), strict=True):
        for score, tag in zip(scores, tags, strict=True):
            p = 1 / (1 + math.exp(-score))
            total -= tag * math.log(p) + (1 - tag) * math.log(1 - p)  # printed without the minus
    assert method.losses(batch, 0).terms["cls"].item() == pytest.approx(total / (4 * CLASSES), rel=1e-9)


@pytest.mark.parametrize("kind", ["raw", "normalized"])
def test_equivariance_equals_equation_12(kind: str) -> None:
    """A halves the size: each value of A(m1) is the mean of four of m1. Normalized, both are, and of tags alone."""
    method, batch = in_double(build(affine={"scale": 0.5}, equ_maps=kind, **ALL_OFF | {"weight_equ": 0.1}))
    half = batch.images.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))
    m1, m2 = (method.class_maps(x).relu().detach() for x in (batch.images, half))  # type: ignore[operator]
    assert m1.shape[-2:] == (4, 4) and m2.shape[-2:] == (2, 2)
    total = 0.0
    for b in range(4):
        for c in range(CLASSES):
            cells = [(y, x) for y in range(2) for x in range(2)]
            warped = [sum(float(m1[b, c, 2 * y + i, 2 * x + j]) for i in (0, 1) for j in (0, 1)) / 4 for y, x in cells]
            seen = [float(m2[b, c, y, x]) for y, x in cells]
            if kind == "normalized":
                warped, seen = (
                    [float(batch.tags[b, c]) * (v - min(m)) / (max(m) - min(m) + 1e-5) for v in m]
                    for m in (warped, seen)
                )
            total += sum(abs(p - q) for p, q in zip(warped, seen, strict=True))
    expected = total / (4 * CLASSES * 4)
    assert expected > 0
    assert method.losses(batch, 5).terms["equ"].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["raw", "normalized"])
def test_smaller_maps_have_less_equivariance_loss_only_if_raw(kind: str) -> None:
    method, batch = in_double(build(equ_maps=kind, affine={"scale": 0.5}))
    weight = method.classifier.conv.weight.data  # type: ignore[union-attr]
    largest = weight * (10 / method.class_maps(batch.images).max().item())  # type: ignore[operator]
    values = []
    for factor in (1.0, 0.5, 0.1):
        weight.copy_(factor * largest)
        values.append(method.losses(batch, 5).terms["equ"].item())
    assert values[0] > 0
    factors = (1.0, 0.5, 0.1) if kind == "raw" else (1.0, 1.0, 1.0)
    assert values == pytest.approx([values[0] * factor for factor in factors], rel=1e-3)


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_total_equals_equation_15(variant: str) -> None:
    method, batch = in_double(build("vit", affinity="attention", variant=variant))
    losses = method.losses(batch, 5)
    assert set(losses.terms) == set(WEIGHTS) - ({"equ"} if variant == "release" else set())
    expected = sum(WEIGHTS[name] * term.item() for name, term in losses.terms.items())
    assert losses.total.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["raw", "normalized"])
def test_equivariance_has_gradient_into_both_branches(kind: str) -> None:
    method = build(weight_seg=0.0, weight_reg=0.0, equ_maps=kind)
    passes = watch_encoder(method)
    method.losses(squares(), 5).terms["equ"].backward()
    assert len(passes) == 2
    for features in passes:
        assert features.maps[-1].grad is not None and features.maps[-1].grad.abs().sum() > 0


@pytest.mark.parametrize(("detach", "maps"), [(True, "raw"), (False, "raw"), (True, "normalized")])
def test_class_maps_are_the_target_of_self_correspondence(detach: bool, maps: str) -> None:
    method = build(detach=detach, scd_maps=maps, weight_seg=0.0, weight_reg=0.0)
    passes = watch_encoder(method)
    method.losses(squares(), 5).terms["scd"].backward()
    weight = method.classifier.conv.weight  # type: ignore[union-attr]
    assert (weight.grad is None or not weight.grad.any()) == detach
    learning = [features.maps[-1].grad for features in passes if features.maps[-1].requires_grad]
    assert len(learning) == 2 and all(grad.abs().sum() > 0 for grad in learning), "both views teach the encoder"


def test_cams_without_gradient_are_no_target_that_learns() -> None:
    with pytest.raises(ConfigError, match="scd_maps"):
        build(detach=False, scd_maps="normalized")


def test_random_numbers_come_from_the_batch() -> None:
    method = build(affine={"flip": 0.5, "rotation": 10.0, "translation": 0.1}).eval()

    def terms(seed: int) -> dict[str, Tensor]:
        batch = squares()
        batch.generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed + 100)  # the global generator plays no part
        return method.losses(batch, 5).terms

    first = terms(1)
    torch.manual_seed(7)
    again, other = terms(1), terms(2)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert first["scd"] != other["scd"] and first["equ"] != other["equ"]


def test_points_differ_between_views_and_cover_the_maps() -> None:
    method, batch = build(points=30), squares()
    a, b = (method._draw_points(batch) for _ in range(2))  # type: ignore[operator]
    assert a.shape == (4, 900, 2) and not torch.equal(a, b)
    assert -1 <= a.min() < -0.99 and 0.99 < a.max() <= 1


def test_affine_of_the_second_view() -> None:
    batch = squares()
    assert build()._draw_affine(batch) is None, "a change of scale alone is a resize"  # type: ignore[operator]
    flips = build(affine={"flip": 1.0})._draw_affine(batch)  # type: ignore[operator]
    assert flips.shape == (4, 2, 3) and torch.equal(flips[2], make_affine(flip=True))
    drawn = build(affine={"rotation": 10.0, "translation": 0.2})._draw_affine(batch)  # type: ignore[operator]
    angles = torch.atan2(drawn[:, 1, 0], drawn[:, 0, 0]).rad2deg()
    assert angles.abs().max() <= 10 and len(angles.unique()) == 4 and (angles < 0).any() and (angles > 0).any()
    assert drawn[..., 2].abs().max() <= 0.2 and len(drawn[..., 2].unique()) == 8


def test_look_resizes_and_then_moves() -> None:
    maps = torch.rand(1, 2, 8, 8)
    small = maps.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))
    torch.testing.assert_close(look(maps, (4, 4), None), small)
    flipped = look(maps, (4, 4), make_affine(flip=True)[None])
    torch.testing.assert_close(flipped, small.flip(-1))
    turned = look(maps, (4, 4), make_affine(rotation=90.0)[None])
    torch.testing.assert_close(turned, small.rot90(1, (-2, -1)), atol=1e-5, rtol=0)


def test_what_the_second_view_does_not_show_of_the_image_does_not_count() -> None:
    """A view that is shifted nearly out of the image compares the little that is left."""
    near, far = (
        build(affine={"scale": 1.0, "translation": shift}, weight_seg=0.0, weight_scd=0.0, weight_reg=0.0)
        for shift in (0.0, 0.99)
    )
    for method in (near, far):
        method.eval()
    assert near.losses(squares(), 5).terms["equ"].item() == 0, "the same view twice"
    assert far._draw_affine(squares()).abs().max() > 0.5  # type: ignore[operator]

    class Outside(torch.nn.Module):
        """Class maps of 1 everywhere, whatever the image."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), CLASSES, *x.shape[-2:])

    far.classifier.conv = Outside()  # type: ignore[union-attr,assignment]
    assert far.losses(squares(), 5).terms["equ"].item() == pytest.approx(0, abs=1e-6), (
        "what lies outside is no disagreement"
    )


class Pool(Encoder):
    """Class maps that follow any change of the view: the mean colour of each cell."""

    def __init__(self) -> None:
        super().__init__("cnn", (0, 0, 0), (1, 1, 1))

    def extract(self, x: Tensor, attention: set[int], queries: set[int], keys: set[int]) -> Features:
        return Features([torch.nn.functional.avg_pool2d(x, 8)])


@pytest.mark.parametrize("kind", ["raw", "normalized"])
@pytest.mark.parametrize(
    ("affine", "least"),
    [({"translation": 0.4}, 1e-7), ({"rotation": 30.0, "translation": 0.2, "flip": 0.5}, 1e-3)],
    ids=["shift", "turn"],
)
def test_maps_that_follow_the_view_have_no_equivariance_loss(affine: dict[str, float], least: float, kind: str) -> None:
    """On colours that rise evenly, where bilinear values and means of a cell are exact.

    Of a turned view some cells reach out of the image by a corner.
    """
    method = build(affine={"scale": 1.0} | affine, equ_maps=kind, **ALL_OFF | {"weight_equ": 0.1})
    method.encoder, method.classifier.conv = Pool(), torch.nn.Identity()  # type: ignore[union-attr]
    method.double()
    batch = squares()
    y, x = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 64), indexing="ij")
    batch.images = torch.stack([x, y, 0.3 + 0.3 * x + 0.2 * y]).double().expand(4, 3, 48, 64)
    assert method.losses(batch, 5).terms["equ"].item() <= least
    noise = squares(1)
    assert method.losses(noise, 5).terms["equ"].item() > 5e-3, "where values between pixels are not exact"


def test_an_affine_for_another_grid_moves_points_alike() -> None:
    """The same point of the image, in halves of it, by both grids' coordinates."""
    affine = torch.tensor([[[0.9, -0.3, 0.2], [0.4, 1.1, -0.5]]], dtype=torch.float64)
    moved = on_grid(affine, (48, 64), (6, 8))
    for u, v in ((-0.5, 0.25), (0.0, 0.0), (0.7, -0.6)):  # halves of the image
        ends = []
        for matrix, (height, width) in ((affine, (48, 64)), (moved, (6, 8))):
            point = torch.tensor([u / (1 - 1 / width), v / (1 - 1 / height), 1.0], dtype=torch.float64)
            ends.append(matrix[0] @ point * torch.tensor([1 - 1 / width, 1 - 1 / height], dtype=torch.float64))
        torch.testing.assert_close(*ends)
    torch.testing.assert_close(on_grid(affine, (48, 64), (48, 64)), affine)
    assert on_grid(affine, (48, 64), (1, 8)).isfinite().all()


def test_release_is_a_set_of_ordinary_switches() -> None:
    release = tiny(SETTINGS | {"variant": "release"}).method
    energy = {"weight": 1e-4, "sigma_rgb": 15.0, "sigma_xy": 100.0, "scale": 0.5, "gradient": "release"}
    assert (release.centered, release.weight_equ, release.scd_maps) == (True, 0.0, "normalized")  # type: ignore[attr-defined]
    assert release.refine_options == {"variant": "release"}  # type: ignore[attr-defined]
    assert release.energy.model_dump() == energy  # type: ignore[attr-defined]
    spelled = {
        "scd_maps": "normalized", "centered": True, "weight_equ": 0.0, "refine_options": {"variant": "release"},
        "energy": energy,
    }  # fmt: skip
    methods = [build(variant="release"), build(**spelled)]
    values = [m.eval().losses(squares(), 5).terms for m in methods]
    assert values[0].keys() == values[1].keys()
    assert all(torch.equal(value, values[1][name]) for name, value in values[0].items())


def test_what_the_user_sets_goes_before_the_variant() -> None:
    config = tiny(SETTINGS | {"variant": "release", "centered": False, "refine_options": {"beta": 0.0}}).method
    assert config.centered is False and config.weight_equ == 0  # type: ignore[attr-defined]
    assert config.refine_options == {"variant": "release", "beta": 0.0}  # type: ignore[attr-defined]
    other = tiny(SETTINGS | {"variant": "release", "refine": "par"}).method
    assert other.refine_options == {}, "VARM's options are not PAR's"  # type: ignore[attr-defined]
    config.points = 3  # type: ignore[attr-defined]
    assert config.centered is False, "setting one value later brings no preset back"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"method\.variant"):
        tiny(SETTINGS | {"variant": "published"})


def test_a_saved_configuration_reads_back_the_same() -> None:
    config = tiny(SETTINGS | {"variant": "release", "weight_equ": 0.05})
    again = load_config(config.model_dump(mode="json"))
    assert again.method == config.method


def test_encoder_without_attention_is_refused() -> None:
    for encoder in ("cnn", "swin"):
        with pytest.raises(ConfigError, match=r"method\.affinity\b"):
            build(encoder, affinity="attention")


def test_wrong_blocks_are_refused() -> None:
    for blocks in ([], [-7], [0, 6], [5, -1]):
        with pytest.raises(ConfigError, match=r"method\.affinity_blocks"):
            build("vit", affinity="attention", affinity_blocks=blocks)
