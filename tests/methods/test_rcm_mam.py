"""``rcm_mam``: the contract, its equations, its phases, its memory of prototypes, its variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tagmask.cam import peak_normalize
from tagmask.config import load_config
from tagmask.errors import ConfigError
from tagmask.methods import build_method
from tagmask.methods.rcm_mam import RCMMAM, Network
from tagmask.reproduce import read_table
from tagmask.reproduce.configure import configure
from tagmask.training import load_model, save_model
from tests.methods.contract import CLASSES, ENCODERS, MethodContract, scales_and_mirrors, squares, tiny

SETTINGS: dict[str, Any] = {
    "name": "rcm_mam", "features": 16, "attention_warmup": 5, "momentum": 0.9, "cam_scales": [1.0, 0.5],
}  # fmt: skip
TRAINED = {"encoder", "projection", "classifier"}


def build(encoder: str = "cnn", **changes: Any) -> RCMMAM:
    torch.manual_seed(0)
    method = build_method(tiny(SETTINGS | changes, ENCODERS[encoder]), CLASSES).train()
    assert isinstance(method, RCMMAM)
    return method


def support_of(method: RCMMAM) -> Network:
    assert method.support is not None
    return Network(**method.support)


def apart(method: RCMMAM) -> RCMMAM:
    """The method with a support network that differs from the trained one."""
    with torch.no_grad():
        for part in support_of(method):
            for parameter in part.parameters():
                parameter.add_(0.1 * parameter.std().nan_to_num() * torch.randn_like(parameter))
        support_of(method).classifier.conv.weight.mul_(3)
    return method


def count_passes(method: RCMMAM) -> list[tuple[bool, int]]:
    """(whether the support network, side of the images) of each pass from now on."""
    passes: list[tuple[bool, int]] = []
    method.encoder.register_forward_pre_hook(lambda m, i: passes.append((False, i[0].shape[-1])))
    if method.support is not None:
        support_of(method).encoder.register_forward_pre_hook(lambda m, i: passes.append((True, i[0].shape[-1])))
    return passes


class TestRCMMAM(MethodContract):
    # With 16 features and weights of 1, cls stays at ln 2 for 40 steps while the features are contrasted.
    settings = SETTINGS | {"scales": [0.5, 1.0], "features": 64, "weight_rcm": 0.1, "weight_mam": 0.1}
    terms = {"cls": TRAINED, "rcm": {"encoder", "projection"}, "mam": TRAINED}
    idle = [{"weight_rcm": 0, "attention": "none"}, {"weight_rcm": 0, "weight_mam": 0}]


@pytest.mark.parametrize(
    ("changes", "step", "terms", "passes"),
    [
        ({}, 4, {"cls", "rcm"}, [(False, 64), (True, 64), (True, 32), (True, 128)]),
        (
            {},
            5,
            {"cls", "rcm", "mam"},
            [(False, 64), (True, 64), (True, 32), (True, 128), (False, 32), (False, 128)],
        ),
        ({"attention": "smm"}, 5, {"cls", "rcm", "mam"}, [(False, 64), (True, 64), (True, 32), (True, 128)]),
        ({"warmup": 5}, 4, {"cls"}, [(False, 64)]),
        ({"weight_rcm": 0.0}, 4, {"cls"}, [(False, 64)]),
        (
            {"weight_rcm": 0.0, "attention": "mmm"},
            5,
            {"cls", "mam"},
            [(False, 64), (True, 64), (True, 32), (True, 128), (False, 32), (False, 128)],
        ),
        ({"weight_mam": 0.0}, 5, {"cls", "rcm"}, [(False, 64), (True, 64), (True, 32), (True, 128)]),
        ({"weight_rcm": 0.0, "attention": "none"}, 5, {"cls"}, [(False, 64)]),
    ],
)
def test_only_terms_with_a_weight_are_computed(
    changes: dict, step: int, terms: set[str], passes: list[tuple[bool, int]]
) -> None:
    method = build(**changes)
    seen = count_passes(method)
    assert set(method.losses(squares(), step).terms) == terms
    assert seen == passes


def by_hand(method: RCMMAM, images: Tensor, support: bool, end: int = 4) -> tuple[list[Tensor], Tensor, Tensor]:
    """CAMs (B,C,h,w) of the three scales, features and class maps of scale 1, step by step. end: of a row's photo."""
    network = support_of(method) if support else method.main
    cams = []
    middle = None
    for size in (32, 64, 128):
        scaled = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
        features = network.projection(network.encoder(scaled).maps[-1])
        maps = network.classifier.conv(features)
        if size == 64:
            middle = (features, maps)
        cams.append(maps)
    assert middle is not None
    grid = middle[1].shape[-2:]
    cams = [F.interpolate(c, size=grid, mode="bilinear", align_corners=False).clamp(min=0) for c in cams]
    for c in cams:
        c[..., end:] = 0
    return [c / c.flatten(2).max(-1).values[:, :, None, None].clamp(min=1e-5) for c in cams], *middle


@pytest.mark.parametrize("attention", ["mam", "mmm", "smm"])
@pytest.mark.parametrize("changes", [{}, {"variant": "literal"}, {"attention_target": "renormalized"}])
def test_terms_equal_equations_1_to_8(attention: str, changes: dict[str, str]) -> None:
    method = apart(build(attention=attention, **changes)).eval()
    batch = squares()
    batch.tags[0, 1] = 1  # two classes in one image
    batch.boxes[:, 2] = 48  # the right quarter is padding
    with torch.no_grad():
        for classifier in (method.classifier, support_of(method).classifier):
            classifier.conv.weight[1].neg_()  # untrained maps of class 2 happen to be below 0 everywhere
        main, features, _ = by_hand(method, batch.images, support=False, end=3)
        support, guide, _ = by_hand(method, batch.images, support=True, end=3)
        whole = torch.stack(by_hand(method, batch.images, support=True)[0])
        assert (whole.amax((-2, -1)) > whole[..., :3].amax((-2, -1))).any(), "padding has some maximum"
    images, height, width = len(batch.images), *features.shape[-2:]
    literal, renormalized = "variant" in changes, "attention_target" in changes

    masks: dict[tuple[int, int, int], int] = {}
    for b in range(images):
        inferred = (support[0] + support[1] + support[2])[b] / 3
        for c in range(CLASSES):
            inferred[c] = inferred[c] / max(float(inferred[c].max()), 1e-5)
        for y in range(height):
            for x in range(width * 3 // 4):
                values = [(float(inferred[c, y, x]), c + 1) for c in range(CLASSES) if batch.tags[b, c] > 0]
                best = max(values, key=lambda value: value[0])  # of equal ones, the first class
                masks[b, y, x] = best[1] if best[0] > 0.2 else 0
    assert len(set(masks.values())) == CLASSES + 1, "regions of each class and of the background"

    prototypes = []
    for k in range(CLASSES + 1):
        found = []
        for b in range(images):
            mine = [guide[b, :, y, x].double() for (i, y, x), label in masks.items() if i == b and label == k]
            if mine:
                found.append(sum(mine) if literal else sum(mine) / len(mine))
        mean = sum(found) / len(found)
        prototypes.append(mean / mean.norm())  # type: ignore[union-attr]
    rcm = torch.zeros((), dtype=torch.float64)
    for (b, y, x), label in masks.items():
        feature = features[b, :, y, x].double()
        similarities = torch.stack([(feature / feature.norm() @ p / 0.5).exp() for p in prototypes])
        share = similarities[label] / similarities.sum()
        rcm -= share if literal else share.log()
    rcm /= images if literal else len(masks)

    mam = torch.zeros((), dtype=torch.float64)
    for b in range(images):
        for c in range(CLASSES):
            if batch.tags[b, c] == 0:
                continue
            for i in (1,) if attention == "smm" else (0, 1, 2):
                a = main[i][b, c, :, :3].double().flatten()
                others = [support[j][b, c, :, :3].double().flatten() for j in range(3)]
                xi = [torch.ones((), dtype=torch.float64)] * 3
                if attention == "mam":
                    xi = [2 - a @ g / (a.norm() * g.norm()).clamp(min=1e-12) for g in others]
                    if not literal:
                        xi = [3 * v / sum(xi) for v in xi]
                target = sum(v * g for v, g in zip(xi, others, strict=True)) / 3
                if renormalized:
                    target = target / target.max()  # type: ignore[union-attr]
                l1 = (target - a).abs().sum()
                mam += (l1 if literal else l1 / len(a)) / images

    terms = method.losses(batch, 5).terms
    torch.testing.assert_close(terms["rcm"].double(), rcm, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["mam"].double(), mam, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.prototypes.double(), torch.stack(prototypes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_regions_teach_cams_directly(reduction: str) -> None:
    """Experiment 1 of Table 2: each tagged class's CAM and its region, which the contrast has, too."""
    settings: dict[str, Any] = {"weight_mam": 0.0, "reduction": reduction}
    method = apart(build(self_supervision="direct", **settings)).eval()
    batch = squares()
    batch.tags[0, 1] = 1
    batch.boxes[:, 2] = 48  # padding does not count
    with torch.no_grad():
        for classifier in (method.classifier, support_of(method).classifier):
            classifier.conv.weight[1].neg_()
        _, _, maps = by_hand(method, batch.images, support=False)
        support, _, _ = by_hand(method, batch.images, support=True, end=3)
    inferred = sum(support) / 3
    inferred = inferred / inferred.amax((-2, -1), keepdim=True).clamp(min=1e-5)
    own = maps.clamp(min=0)
    own[..., 3:] = 0  # padding has no CAM
    own = own / own.amax((-2, -1), keepdim=True).clamp(min=1e-5)
    total, count = 0.0, 0
    for b in range(len(maps)):
        tagged = [c for c in range(CLASSES) if batch.tags[b, c] > 0]
        for y in range(maps.shape[-2]):
            for x in range(3):
                best = max(tagged, key=lambda c: float(inferred[b, c, y, x]))
                for c in tagged:
                    a = 0.01 + 0.98 * float(own[b, c, y, x])
                    total -= np.log(a if c == best and inferred[b, best, y, x] > 0.2 else 1 - a)
                    count += 1
    term = method.losses(batch, 5).terms["rcm"]
    assert term.item() == pytest.approx(total / (count if reduction == "mean" else len(maps)), rel=1e-4)
    assert not method.prototypes.any(), "it has none"
    term.backward()
    assert method.classifier.conv.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    support_gradients = [p.grad for part in support_of(method) for p in part.parameters()]
    assert support_gradients and all(g is None for g in support_gradients)


def test_a_tag_that_is_not_trusted_takes_no_part_in_the_cross_entropy() -> None:
    method, batch = apart(build(self_supervision="direct", weight_mam=0.0)).eval(), squares()
    batch.tags[:] = torch.tensor([1.0, 0.0, 1.0])
    with torch.no_grad():
        support_of(method).classifier.conv.weight[2] = 0  # its CAM is 0 everywhere
    value = method.losses(batch, 0).terms["rcm"]
    assert value > 0
    with torch.no_grad():
        method.classifier.conv.weight[2] += 1
    assert torch.equal(method.losses(batch, 0).terms["rcm"], value), "it has no region, and its CAM does not count"
    with torch.no_grad():
        support_of(method).classifier.conv.weight[0] = 0
    assert method.losses(batch, 0).terms["rcm"] == 0, "no background, either, where tags are not seen"


def test_cams_in_use_are_the_sum_over_scales_and_mirror_images() -> None:
    method = build().eval()
    image = torch.rand(2, 3, 64, 80)
    with torch.no_grad():
        method.classifier.conv.weight.mul_(100)
        total = scales_and_mirrors(lambda x: method.main.maps(x)[1], image, [1.0, 0.5])
        torch.testing.assert_close(method.cams(image), total, rtol=1e-4, atol=1e-5)
        one = scales_and_mirrors(lambda x: method.main.maps(x)[1], image, [0.75], flip=False)
        torch.testing.assert_close(method.cams(image, scales=[0.75], flip=False), one, rtol=1e-4, atol=1e-5)
    assert total.amax() > 0.9


def test_total_equals_equation_9() -> None:
    losses = build(weight_cls=2.0, weight_rcm=3.0, weight_mam=5.0).losses(squares(), 5)
    weights = {"cls": 2.0, "rcm": 3.0, "mam": 5.0}
    expected = sum(weights[name] * term.item() for name, term in losses.terms.items())
    assert losses.total.item() == pytest.approx(expected, rel=1e-5)


def test_classification_equals_binary_cross_entropy_of_pooled_maps() -> None:
    method, batch = build().eval(), squares()
    _, _, maps = by_hand(method, batch.images, support=False)
    expected = F.binary_cross_entropy(maps.mean((-2, -1)).sigmoid(), batch.tags)
    torch.testing.assert_close(method.losses(batch, 0).terms["cls"], expected)


def test_a_missing_class_keeps_its_last_prototype() -> None:
    method, batch = build(), squares()
    assert not method.prototypes.any()
    with torch.no_grad():  # each class is seen somewhere: of untrained maps some are below 0 everywhere
        weight = support_of(method).classifier.conv.weight
        weight.copy_(weight[1].expand_as(weight).clone())
    batch.tags[:] = torch.tensor([1.0, 0.0, 0.0])
    method.losses(batch, 0)
    first = method.prototypes.clone()
    assert first[:2].norm(dim=1).allclose(torch.ones(2)) and not first[2:].any()
    batch = squares(1)
    batch.tags[:] = torch.tensor([0.0, 0.0, 1.0])
    method.losses(batch, 0)
    assert torch.equal(method.prototypes[1], first[1]), "kept"
    assert not torch.equal(method.prototypes[0], first[0]), "background is in every batch"
    assert method.prototypes[3].any() and not method.prototypes[2].any()
    assert "prototypes" in method.state_dict()


def test_support_is_the_running_average_and_starts_as_a_copy() -> None:
    method = build(momentum=0.75)
    assert method.support is not None
    for name, value in method.support.state_dict().items():
        assert torch.equal(value, method.state_dict()[name])
    before = {k: v.clone() for k, v in method.support.state_dict().items()}
    with torch.no_grad():
        for parameter in (*method.encoder.parameters(), *method.classifier.parameters()):
            parameter.add_(1)
    method.after_step(0)
    moved = method.support.state_dict()
    for name in ("encoder.body.layer1.0.conv1.weight", "classifier.conv.weight"):
        torch.testing.assert_close(moved[name], before[name] + 0.25)
    shared = build(momentum=0.0)
    with torch.no_grad():
        shared.projection.weight.add_(1)
    shared.after_step(0)
    assert torch.equal(support_of(shared).projection.weight, shared.projection.weight)


def test_support_neither_trains_nor_drops_out() -> None:
    method = build().train()
    assert method.support is not None and not method.support.training
    ids = {id(p) for group in method.param_groups(1.0) for p in group["params"]}
    assert not any(id(p) in ids or p.requires_grad for p in method.support.parameters())


def test_a_tag_that_is_not_trusted_makes_no_region_and_no_background() -> None:
    method, batch = build(gate=0.9), squares()
    before = method.prototypes.clone()
    losses = method.losses(batch, 5)  # an untrained classifier says 0.5 of everything
    assert losses.terms["rcm"] == 0 and losses.terms["mam"] == 0
    assert torch.equal(method.prototypes, before)
    batch.tags[2] = 0
    assert method.losses(batch, 0).terms["rcm"] == 0, "an image without tags is background, alone in the softmax"
    assert method.prototypes[0].any() and not method.prototypes[1:].any()


def test_a_cam_that_is_zero_everywhere_makes_no_region_and_no_background() -> None:
    method, batch = build(), squares()
    batch.tags[:] = torch.tensor([1.0, 0.0, 0.0])
    weight = support_of(method).classifier.conv.weight
    seen = weight[0].clone()
    with torch.no_grad():
        weight[0] = 0
    terms = method.losses(batch, 5).terms
    assert terms["rcm"] == 0 and terms["mam"] == 0 and not method.prototypes.any()
    batch.tags[0, 2] = 1  # what is seen beside it has its region
    method.losses(batch, 5)
    assert method.prototypes[3].any() and not method.prototypes[:3].any()
    batch.tags[1] = 0  # an image without objects is background as ever
    method.losses(batch, 5)
    assert method.prototypes[0].any() and not method.prototypes[1].any()
    with torch.no_grad():
        weight[0] = seen
    terms = method.losses(batch, 5).terms
    assert terms["rcm"] > 0 and terms["mam"] > 0 and method.prototypes[1].any()


def test_a_saved_model_is_the_main_network(tmp_path: Path) -> None:
    method, config = apart(build()).eval(), tiny(SETTINGS)
    method.losses(squares(), 0)
    save_model(tmp_path, method, config, ["a", "b", "c"])
    assert {name.split(".")[0] for name in load_file(tmp_path / "weights.safetensors")} == TRAINED
    millions = sum(p.numel() for part in method.main for p in part.parameters()) / 1e6
    assert f"Parameters: {millions:.1f} M" in (tmp_path / "README.md").read_text()
    loaded, _, _ = load_model(tmp_path)
    assert isinstance(loaded, RCMMAM) and loaded.support is None and loaded.prototypes is None
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded.cams(images), method.cams(images))
    assert {"prototypes", "support.encoder.body.layer1.0.conv1.weight"} <= method.state_dict().keys(), "of a checkpoint"


def test_the_ladder_on_msrc_has_the_modules_of_tables_1_and_2(tmp_path: Path) -> None:
    table = read_table("msrc14/rcm_mam")
    made = {row.name: configure(table, row, 0, None, tmp_path, []) for row in table.rows}
    modules = {
        name: (config.method.weight_rcm > 0, config.method.attention, config.method.momentum)  # type: ignore[attr-defined]
        for name, config in made.items()
    }
    assert modules == {
        "baseline": (False, "none", 0.74),
        "smm": (False, "smm", 0.74),
        "smm-renormalized": (False, "smm", 0.74),
        "mmm": (False, "mmm", 0.74),
        "mam": (False, "mam", 0.74),
        "rcm": (True, "none", 0.74),
        "direct": (True, "none", 0.74),
        "rcm-shared": (True, "none", 0.0),
        "mmm+rcm": (True, "mmm", 0.74),
        "mam+rcm": (True, "mam", 0.74),
        "literal": (True, "mam", 0.74),
        "mam+rcm+par": (True, "mam", 0.74),
    }
    assert {config.train.steps for config in made.values()} == {150}
    direct = {name for name, c in made.items() if c.method.self_supervision == "direct"}  # type: ignore[attr-defined]
    assert direct == {"direct"}


def test_literal_is_a_set_of_ordinary_switches() -> None:
    spelled = {"prototype_reduction": "sum", "contrast_log": False, "attention_normalized": False, "reduction": "sum"}
    values = [
        apart(build(**changes)).losses(squares(), 5).terms
        for changes in ({"variant": "literal"}, {"attention_target": "mean"} | spelled)
    ]
    assert all(torch.equal(value, values[1][name]) for name, value in values[0].items())
    mixed = tiny(SETTINGS | {"variant": "literal", "contrast_log": True})
    assert mixed.method.contrast_log is True and mixed.method.reduction == "sum"  # type: ignore[attr-defined]
    assert load_config(mixed.model_dump(mode="json")).method == mixed.method


def test_scales_are_checked() -> None:
    for scales in ([0.5, 2.0], [1.0, 0.0], []):
        with pytest.raises(ConfigError, match=r"method\.scales"):
            tiny(SETTINGS | {"scales": scales})


def test_peak_normalize_equals_loops() -> None:
    maps = torch.randn(2, 3, 4, 5)
    maps[0, 1] = -1
    result = peak_normalize(maps)
    for b in range(2):
        for c in range(3):
            top = max(0.0, float(maps[b, c].max()))
            for y in range(4):
                for x in range(5):
                    value = max(0.0, float(maps[b, c, y, x]))
                    assert result[b, c, y, x].item() == pytest.approx(value / top if top else 0.0, abs=1e-6)
