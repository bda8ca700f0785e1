"""``cosa``: the contract, its equations, its phases, its two networks, its switches."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from tagmask.cam import DynamicThreshold, multi_scale, normalize
from tagmask.config import ViewConfig, load_config
from tagmask.data import TrainLoader, TrainViews, open_data
from tagmask.errors import ConfigError
from tagmask.losses import cam_to_seg, contrastive_separation, perplexity, seg_to_cam
from tagmask.methods import build_method
from tagmask.methods.assigning import Assigned, cam_assignment, mean_of_views, photo_positions, without_doubt
from tagmask.methods.cosa import CoSA
from tagmask.methods.ema import frozen_copy, update_average
from tagmask.reproduce import read_table
from tagmask.types import Batch, View
from tests.methods import contract
from tests.methods.contract import CLASSES, ENCODERS, MethodContract, squares, tiny

SETTINGS: dict[str, Any] = {
    "name": "cosa", "warmup": 2, "head_options": {"hidden": 8, "dilation": 1}, "momentum": 0.9, "queue": 4,
    "threshold_start": 0.3, "weight_reg": 0.05, "energy": {"weight": 1e-4},
}  # fmt: skip
WEIGHTS = {"cls": 1.0, "cls_aux": 1.0, "c2s": 0.1, "c2s_aux": 0.1, "s2c": 0.05, "csc": 0.1, "reg": 0.05}
PARTS = ("encoder", "classifier", "auxiliary", "decoder")


def two_views(seed: int = 0, masks: bool = False) -> Batch:
    """The contract's squares; the strong view is darker."""
    batch = squares(seed, masks)
    eye = torch.eye(3)[:2].expand(len(batch.images), 2, 3)
    batch.views["strong"] = View(batch.images * 0.7, batch.boxes, eye)
    return batch


def build(encoder: str = "cnn", classes: int = CLASSES, **changes: Any) -> CoSA:
    torch.manual_seed(0)
    return cast(CoSA, build_method(tiny(SETTINGS | changes, ENCODERS[encoder]), classes).train())


def without(*names: str) -> dict[str, float]:
    return {f"weight_{name}": 0.0 for name in names}


@pytest.fixture(autouse=True)
def strong_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "squares", two_views)


class TestCoSA(MethodContract):
    settings = SETTINGS
    terms = {
        "cls": {"encoder", "classifier"},
        "cls_aux": {"encoder", "auxiliary"},
        "c2s": {"encoder", "decoder"},
        "c2s_aux": {"encoder", "decoder"},
        "s2c": {"encoder", "classifier"},
        "csc": {"encoder", "classifier"},
        "reg": {"encoder", "decoder"},
    }


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_other_switches_run_on_any_encoder(kind: str) -> None:
    method = build(kind, swap=False, threshold=0.3, gate=0.1, refine="par", ensemble=True, cam_flip=False)
    losses = method.losses(two_views(), 5)
    losses.total.backward()
    assert set(losses.terms) == set(WEIGHTS) and torch.isfinite(losses.total)
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def watch(method: CoSA) -> tuple[list[Any], list[Any]]:
    """(images, grad, training) of each encoder pass of the online and of the assignment network from now on."""
    passes: tuple[list[Any], list[Any]] = ([], [])
    networks = [method.online] + ([] if method.assignment is None else [method.assigner])
    for network, seen in zip(networks, passes):
        network.encoder.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append((inputs[0], torch.is_grad_enabled(), module.training))
        )
    return passes


# ---- phases: what is computed when


@pytest.mark.parametrize(
    ("changes", "step", "terms", "online", "assigning"),
    [
        ({}, 1, {"cls", "cls_aux"}, 1, 0),
        (without("cls_aux", "c2s_aux", "csc"), 1, {"cls"}, 1, 0),
        ({}, 2, set(WEIGHTS), 1, 1),
        ({"cam_scales": [1.0, 0.5]}, 2, set(WEIGHTS), 1, 2),
        ({"swap": False}, 2, set(WEIGHTS), 2, 0),
        ({"swap": False}, 1, {"cls", "cls_aux"}, 1, 0),
        (without("c2s", "c2s_aux", "s2c", "csc", "reg"), 2, {"cls", "cls_aux"}, 1, 0),
        (without("s2c"), 2, set(WEIGHTS) - {"s2c"}, 1, 1),
        (without("c2s", "c2s_aux", "csc", "reg"), 2, {"cls", "cls_aux", "s2c"}, 1, 1),
        (without("c2s_aux", "csc", "cls_aux"), 2, {"cls", "c2s", "s2c", "reg"}, 1, 1),
        (without("c2s", "reg", "s2c", "c2s_aux"), 2, {"cls", "cls_aux", "csc"}, 1, 1),
    ],
)
def test_only_terms_with_a_weight_are_computed(
    changes: dict, step: int, terms: set[str], online: int, assigning: int
) -> None:
    method = build(**changes)
    passes = watch(method)
    calls: dict[str, list[int]] = {"decoder": [], "auxiliary": [], "assigned decoder": [], "assigned auxiliary": []}
    for name, seen in calls.items():
        network = method.assigner if name.startswith("assigned") else method.online
        if name.startswith("assigned") and method.assignment is None:
            continue
        part = getattr(network, name.split()[-1])
        part = part.conv if name.endswith("auxiliary") else part
        part.register_forward_hook(lambda *_, seen=seen: seen.append(1))
    assert set(method.losses(two_views(), step).terms) == terms
    assert (len(passes[0]), len(passes[1])) == (online, assigning)
    if method.assignment is not None:
        assert bool(calls["decoder"]) == bool(terms & {"c2s", "c2s_aux", "reg"}) and len(calls["decoder"]) <= 1
        assert bool(calls["auxiliary"]) == ("cls_aux" in terms)
        assert bool(calls["assigned decoder"]) == ("s2c" in terms)
        assert bool(calls["assigned auxiliary"]) == bool(terms & {"c2s_aux", "csc"})


def test_who_sees_what() -> None:
    method, batch = build(), two_views()
    online, assigning = watch(method)
    method.losses(batch, 5)
    images, grad, training = online[0]
    assert torch.equal(images, batch.views["strong"].images) and grad and training
    images, grad, training = assigning[0]
    assert torch.equal(images, torch.cat([batch.images, batch.images.flip(-1)])), "the weak view and its mirror image"
    assert not grad and not training
    assert method.training and not method.assignment.training  # type: ignore[union-attr]


def test_without_swap_the_trained_network_assigns_in_evaluation_mode() -> None:
    method, batch = build(swap=False), two_views()
    assert method.assignment is None and not any("assignment" in name for name in method.state_dict())
    passes, _ = watch(method)
    method.losses(batch, 5)
    assert [p[1:] for p in passes] == [(True, True), (False, False)] and method.training and method.decoder.training
    assert method.used.encoder is method.encoder
    method.after_step(0)


def test_a_batch_without_the_strong_view_is_refused() -> None:
    assert CoSA.wanted_views == {"strong"}
    with pytest.raises(ConfigError, match="view 'strong'"):
        build().losses(squares(), 0)


def test_both_views_have_one_geometry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos whose colours are their coordinates, through the loader; the photometric operation is inversion."""
    config = tiny(SETTINGS, data={"source": "demo", "root": str(tmp_path / "scenes"), "demo_images": 12})
    collection = open_data(config.data)
    y, x = torch.meshgrid(torch.linspace(0.1, 0.9, 80), torch.linspace(0.1, 0.9, 100), indexing="ij")
    monkeypatch.setattr("tagmask.data.loader.read_image", lambda path: torch.stack([x, y, x * y]))
    monkeypatch.setattr("tagmask.data.views.photometric", lambda image, generator: 1 - image)
    views = TrainViews(ViewConfig(crop=64, scale=(0.5, 2.0)), CoSA.wanted_views)
    names = collection.classes
    loader = TrainLoader(collection.split("train"), len(names), views, batch_size=4, steps=5, seed=1, workers=0)
    seen = []
    for batch in loader:
        strong = batch.views["strong"]
        assert torch.equal(strong.boxes, batch.boxes)
        assert torch.equal(strong.affine, torch.eye(3)[:2].expand(4, 2, 3))
        photo = photo_positions(batch, (64, 64))[:, None]
        assert torch.equal(strong.images, torch.where(photo, 1 - batch.images, 0.0))
        seen += [image[0, box[1], box[0]].item() for image, box in zip(batch.images, batch.boxes.tolist())]
    assert len(set(seen)) > 10, "crops differ"


# ---- the assignment network


def test_assignment_network_is_no_part_of_the_training() -> None:
    method = build()
    assert method.assignment is not None
    assert not any(p.requires_grad for p in method.assignment.parameters())
    trained = {id(p) for group in method.param_groups(1.0) for p in group["params"]}
    assert not trained & {id(p) for p in method.assignment.parameters()}
    method.losses(two_views(), 5).total.backward()
    assert all(p.grad is None for p in method.assignment.parameters())


def test_average_of_parameters_and_buffers() -> None:
    source = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = frozen_copy(source)
    first = {name: value.clone() for name, value in average.state_dict().items()}
    source(torch.randn(8, 3) * 4)
    with torch.no_grad():
        for p in source.parameters():
            p.add_(torch.randn_like(p))
    update_average(average, source, 0.75)
    update_average(average, source, 0.75)
    for name, value in average.state_dict().items():
        new = source.state_dict()[name]
        if value.is_floating_point():
            once = 0.75 * first[name] + 0.25 * new
            torch.testing.assert_close(value, 0.75 * once + 0.25 * new)
            assert not torch.equal(value, first[name]), name
        else:
            assert value.item() == new.item() == 1, "counts are copied"
    assert not any(p.requires_grad for p in average.parameters()) and not average.training


def test_after_step_moves_all_four_parts() -> None:
    method = build()
    before = copy.deepcopy(method.assignment)
    assert before is not None
    with torch.no_grad():
        for part in method.online:
            for value in part.state_dict().values():
                value.add_(1)
    method.after_step(0)
    for name in PARTS:
        old = before[name].state_dict()
        for key, value in method.assignment[name].state_dict().items():  # type: ignore[index]
            if value.is_floating_point():
                torch.testing.assert_close(value, old[key] + 0.1, atol=1e-5, rtol=1e-5)
            else:
                assert value == old[key] + 1


def test_start_of_the_assignment_network() -> None:
    copied, independent = build(), build(start="independent")
    for name in PARTS:
        mine, theirs = copied.assignment[name].state_dict(), getattr(copied, name).state_dict()  # type: ignore[index]
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    for name in PARTS:
        part = independent.assignment[name]  # type: ignore[index]
        same = all(torch.equal(v, getattr(independent, name).state_dict()[k]) for k, v in part.state_dict().items())
        assert same == (name == "encoder"), "the encoder starts from the pretrained weights"
        assert not any(p.requires_grad for p in part.parameters())


@pytest.mark.parametrize("inference", ["assignment", "online"])
def test_network_that_is_used(inference: str) -> None:
    method = build(inference=inference, start="independent").eval()
    other = build(inference="online" if inference == "assignment" else "assignment", start="independent").eval()
    other.load_state_dict(method.state_dict())
    images = two_views().images
    network = method.assigner if inference == "assignment" else method.online
    torch.testing.assert_close(
        method.class_scores(images), network.classifier(network.encoder(images).maps[-1]).sigmoid()
    )
    for name in ("cams", "segment", "class_scores"):
        assert not torch.equal(getattr(method, name)(images), getattr(other, name)(images)), name


def test_ensemble_is_the_mean_of_both_cams() -> None:
    method, images = build(ensemble=True).eval(), two_views().images
    network = method.used
    parts = [
        multi_scale(lambda x: network.classifier.cam(network.encoder(x).maps[-1]), images, [1.0, 0.5], True),
        multi_scale(lambda x: network.auxiliary.cam(network.encoder(x).maps[-2]), images, [1.0, 0.5], True),
    ]
    torch.testing.assert_close(method.cams(images, scales=[1.0, 0.5]), (parts[0] + parts[1]) / 2)


# ---- the auxiliary map


def test_a_vit_gives_its_third_block_from_last() -> None:
    method = build("vit")
    assert method.encoder.blocks == [9, 11] and len(method.encoder.channels) == 2  # type: ignore[comparison-overlap]
    features = method.encoder(two_views().images)
    assert len(features.maps) == 2 and not torch.equal(*features.maps)
    torch.manual_seed(0)
    config = tiny(SETTINGS, ENCODERS["vit"])
    config.encoder.blocks = [-4, -1]
    chosen = build_method(config, CLASSES)
    assert chosen.encoder.blocks == [8, 11]  # type: ignore[comparison-overlap]


def test_one_block_that_is_named_is_not_replaced() -> None:
    for block in (-1, 5):
        config = tiny(SETTINGS, ENCODERS["vit"])
        config.encoder.blocks = [block]
        with pytest.raises(ConfigError, match=rf"encoder\.blocks names block {block % 12} alone.*name two"):
            build_method(config, CLASSES)


def test_auxiliary_cams_keep_their_finer_grid() -> None:
    method, batch = build("swin"), two_views()
    weak = method._weak_view(batch, auxiliary=True, segments=True)
    assert weak.auxiliary is not None and weak.auxiliary.shape[-2:] == weak.cams.shape[-2:] == (4, 4)
    assert method.encoder(batch.images).maps[-1].shape[-2:] == (2, 2)
    assert method._weak_view(batch, auxiliary=False, segments=False).cams.shape[-2:] == (2, 2)


def test_a_map_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"auxiliary_map=-9.*gives 5 maps"):
        build(auxiliary_map=-9)


# ---- equations


def test_labels_equal_equation_3() -> None:
    generator = torch.Generator().manual_seed(0)
    cams = torch.rand(2, 4, 3, 5, generator=generator)
    cams[0, 2, 0, 0], cams[0, 1, 0, 0] = 0.6, 0.1
    trusted = torch.tensor([[False, True, True, False], [True, False, True, True]])
    xi = 0.6
    labels, confidence = cam_assignment(Assigned(cams, trusted, xi), (3, 5))
    halves, _ = cam_assignment(Assigned(cams, trusted, torch.tensor(xi)), (3, 5), low=0.3)
    for b in range(2):
        for y in range(3):
            for x in range(5):
                column = [float(cams[b, c, y, x]) if trusted[b, c] else 0.0 for c in range(4)]
                nu = max(column)
                expected = column.index(nu) + 1 if nu >= float(torch.tensor(xi)) else 0
                assert labels[b, y, x] == expected and confidence[b, y, x].item() == pytest.approx(nu)
                assert halves[b, y, x] == (expected if expected or nu < 0.3 else 255)
    assert labels[0, 0, 0] == 3, "a CAM equal to the threshold is foreground"
    none, zero = cam_assignment(Assigned(cams, torch.zeros(2, 4, dtype=torch.bool), xi), (6, 5))
    assert none.shape == (2, 6, 5) and not none.any() and not zero.any()


def test_views_are_turned_back_and_averaged() -> None:
    small, large = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 4, 4)
    mirrored = [torch.cat([x, x.flip(-1)]) for x in (small, large)]
    torch.testing.assert_close(mean_of_views(mirrored[1:], True), large)
    up = nn.functional.interpolate(small, size=(4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(mean_of_views(mirrored, True), (up + large) / 2)
    torch.testing.assert_close(mean_of_views([large, small], False), (up + large) / 2)


def test_padding_and_doubtful_tags_are_ignored() -> None:
    batch = two_views()  # the last four rows are padding
    batch.tags[0] = torch.tensor([1.0, 1.0, 0.0])
    trusted = batch.tags > 0
    trusted[0, 1] = False
    labels = torch.zeros(4, 64, 64, dtype=torch.long)
    labels[:, :8] = 1
    result = without_doubt(labels, batch, trusted)
    assert (result[:, 60:] == 255).all() and (result[:, :8] == 1).all()
    assert (result[0, 8:60] == 255).all() and (result[1:, 8:60] == 0).all()
    assert photo_positions(batch, (4, 4)).all() and not photo_positions(batch, (32, 32))[:, 30:].any()


def manual_terms(method: CoSA, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The terms from the published operators, one network pass a view, and the thresholds."""
    strong = method.encoder(batch.views["strong"].images)
    maps, logits = method.classifier.cam(strong.maps[-1]), method.decoder(strong)
    network = method.assigner
    labels, doubt, thresholds = {}, {}, {}
    views = [network.encoder(x) for x in (batch.images, batch.images.flip(-1))]
    for name, head, index in (("main", network.classifier, -1), ("aux", network.auxiliary, -2)):
        straight, mirrored = (head.cam(v.maps[index]) for v in views)
        cams = normalize(torch.maximum(straight, mirrored.flip(-1)).relu())
        threshold = DynamicThreshold(4, 0.3)
        thresholds[name] = float(threshold.update(cams, batch.tags, photo_positions(batch, (4, 4))))
        for size in ((4, 4), (64, 64)):
            large = nn.functional.interpolate(cams, size=size, mode="bilinear", align_corners=False)
            nu, best = (large * batch.tags[:, :, None, None]).max(1)
            label = torch.where(nu >= thresholds[name], best + 1, 0)
            labels[name, size] = label.masked_fill(~photo_positions(batch, size), 255)
            doubt[name, size] = perplexity(nu, thresholds[name])
    seg = (network.decoder(views[0]) + network.decoder(views[1]).flip(-1)) / 2
    big, small = (64, 64), (4, 4)
    soft_margin = nn.functional.multilabel_soft_margin_loss
    return {
        "cls": soft_margin(method.classifier(strong.maps[-1]), batch.tags),
        "cls_aux": soft_margin(method.auxiliary(strong.maps[-2]), batch.tags),
        "c2s": cam_to_seg(logits, labels["main", big], doubt["main", big]),
        "c2s_aux": cam_to_seg(logits, labels["aux", big], doubt["aux", big]),
        "s2c": seg_to_cam(maps, seg, batch.tags, 0.01, photo_positions(batch, small)),
        "csc": contrastive_separation(maps, labels["aux", small], doubt["aux", small]),
    }, thresholds


def test_terms_and_total_equal_equation_11() -> None:
    method, batch = build(start="independent").eval(), two_views()
    batch.tags[1] = torch.tensor([1.0, 1.0, 0.0])
    expected, thresholds = manual_terms(method, batch)
    losses = method.losses(batch, 5)
    assert set(losses.terms) == set(expected) | {"reg"}
    for name, value in expected.items():
        assert losses.terms[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
        assert value.item() > 0, name
    for name, xi in thresholds.items():
        assert method.thresholds[name].value.item() == pytest.approx(xi, abs=1e-6)  # type: ignore[union-attr,operator]
    assert thresholds["main"] != thresholds["aux"]
    total = sum(WEIGHTS[name] * term.item() for name, term in losses.terms.items())
    assert losses.total.item() == pytest.approx(total, rel=1e-5)


def test_dynamic_threshold_gathers_batches_after_warm_up_only() -> None:
    method, batch = build(), two_views()
    method.losses(batch, 1)
    assert all(t.batches == 0 and t.value == pytest.approx(0.3) for t in method.thresholds.values())
    assert method.figures() == {}
    for _ in range(2):
        method.losses(batch, 2)
    assert all(t.batches == 2 for t in method.thresholds.values())
    assert method.figures() == {f"threshold_{n}": float(t.value) for n, t in method.thresholds.items()}
    assert "thresholds.main.value" in method.state_dict() and "thresholds.aux.counts" in method.state_dict()
    fixed = build(threshold=0.4)
    assert len(fixed.thresholds) == 0
    fixed.losses(batch, 2)


@pytest.mark.parametrize(
    ("detach", "encoder", "classifier"),
    [("none", True, True), ("features", False, True), ("classifier", True, False)],
)
def test_what_the_segmentation_trains(detach: str, encoder: bool, classifier: bool) -> None:
    """Table 4a: the guidance of CAMs reaches features, the classifier's weights, or both; the same value each time."""
    method = build(detach=detach)
    term = method.losses(two_views(), 5).terms["s2c"]
    term.backward()
    assert term.item() == pytest.approx(build().losses(two_views(), 5).terms["s2c"].item(), rel=1e-5)
    assert any(p.grad is not None and p.grad.any() for p in method.encoder.parameters()) == encoder
    grad = method.classifier.conv.weight.grad
    assert (grad is not None and bool(grad.any())) == classifier


def test_gate_leaves_out_tags_that_are_not_in_the_crop() -> None:
    method, batch = build(gate=0.5, threshold=0.3), two_views()
    cams = torch.rand(4, CLASSES, 4, 4)
    scores = torch.full((4, CLASSES), 0.9)
    scores[0, 0] = 0.4
    assigned = method._assign("main", batch, cams, scores)
    assert not assigned.trusted[0].any() and torch.equal(assigned.trusted[1:], batch.tags[1:] > 0)
    labels, _ = method._labels(batch, assigned)
    assert (labels[0] == 255).all() and (labels[1, :60] != 255).all()


def test_refinement_changes_the_labels_and_not_the_confidence() -> None:
    plain, refined, batch = build(threshold=0.3), build(threshold=0.3, refine="par"), two_views()
    assert plain.refiner is None and refined.refiner is not None
    assigned = Assigned(torch.rand(4, CLASSES, 4, 4), batch.tags > 0, 0.3)
    before, after = plain._labels(batch, assigned), refined._labels(batch, assigned)
    assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])
    assert (after[0][:, 60:] == 255).all()


# ---- settings


def test_weighting_and_balance_are_switches() -> None:
    made = [
        build(weighting=weighting, balanced=balanced).losses(two_views(), 5).terms["c2s"].item()
        for weighting in ("raw", "none")
        for balanced in (True, False)
    ]
    assert len(set(made)) == 4 and all(map(math.isfinite, made))


def test_release_is_a_set_of_ordinary_switches() -> None:
    release = tiny(SETTINGS | {"variant": "release"}).method.model_dump()
    assert (release["weighting"], release["threshold"], release["low"]) == ("none", 0.7, 0.25) and release["balanced"]
    assert (release["weight_csc"], release["start"], release["rectify"]) == (0.0, "independent", True)
    assert release["energy"]["gradient"] == "release" and release["energy"]["weight"] == 1e-4
    spelled = {k: v for k, v in release.items() if k not in ("name", "variant")}
    values = [build(**changes).losses(two_views(), 5).terms for changes in ({"variant": "release"}, spelled)]
    assert set(values[0]) == set(WEIGHTS) - {"csc"}
    assert all(torch.equal(value, values[1][name]) for name, value in values[0].items())


def test_what_the_user_sets_goes_before_the_variant() -> None:
    config = tiny(SETTINGS | {"variant": "release", "weight_csc": 0.1, "threshold": "dynamic", "low": None}).method
    changed = config.model_dump()
    assert (changed["weight_csc"], changed["threshold"], changed["low"]) == (0.1, "dynamic", None)
    assert changed["balanced"] is True
    config.momentum = 0.5  # type: ignore[attr-defined]
    assert config.model_dump() == changed | {"momentum": 0.5}, "setting one value later brings no preset back"
    again = load_config(tiny(SETTINGS | {"variant": "release"}).model_dump(mode="json"))
    assert again.method == tiny(SETTINGS | {"variant": "release"}).method


@pytest.mark.parametrize(
    "changes", [{"threshold": "fixed"}, {"threshold": 1.0}, {"low": 0.2}, {"threshold": 0.3, "low": 0.4}]
)
def test_wrong_thresholds_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError, match="method"):
        tiny(SETTINGS | changes)


@pytest.mark.parametrize("name", ["cosa_voc", "cosa_coco"])
def test_packaged_configurations(name: str) -> None:
    config = load_config(name)
    assert config.method.name == "cosa" and config.views.crop == 448 and config.train.ema is None
    default = type(config.method)(name="cosa")
    same = config.method.model_dump(exclude={"warmup"})
    assert same == default.model_dump(exclude={"warmup"}), "the paper's values are the defaults"


@pytest.mark.parametrize("table", ["msrc14/cosa", "msrc14/cosa_swap"])
def test_packaged_tables(table: str) -> None:
    found = read_table(table)
    for row in found.rows:
        config = load_config(*found.configs, *row.configs, overrides=[*found.set, *row.set])
        if config.method.name == "cosa" and config.method.swap:  # type: ignore[attr-defined]
            assert config.train.ema is None, f"{row.name}: an average of an average"


@pytest.mark.parametrize("user", [{"ensemble": True}, {"weight_c2s_aux": 0.1}, {"weight_csc": 0.1}])
def test_auxiliary_cams_of_an_untrained_classifier_are_refused(user: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(user))}.*weight_cls_aux=0 leaves untrained"):
        build(**without("cls_aux", "c2s_aux", "csc") | user)
