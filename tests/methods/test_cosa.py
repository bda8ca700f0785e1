"""``cosa``: the contract, its phases, its settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tagmask.config import ViewConfig, load_config
from tagmask.data import TrainLoader, TrainViews, open_data
from tagmask.errors import ConfigError, TrainingError
from tagmask.methods.common.oracles import noise_guide, truth_guide
from tagmask.methods.common.pseudo_label_assignment import photo_positions
from tagmask.methods.cosa import CoSA, CoSAConfig
from tagmask.reproduce import read_table
from tagmask.types import IGNORE, Batch
from tests.methods.contract import CLASSES, ENCODERS, SIZE, MethodContract, squares, tiny
from tests.methods.cosa_parts import SETTINGS, WEIGHTS, build, two_views, without


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
    idle = [without("c2s", "c2s_aux", "s2c", "csc", "reg")]

    def batch(self, masks: bool = False) -> Batch:
        return two_views(0, masks)


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
        ({"s2c_warmup": 4}, 3, set(WEIGHTS) - {"s2c"}, 1, 1),
        ({"s2c_warmup": 4}, 4, set(WEIGHTS), 1, 1),
        ({"s2c_warmup": 4, **without("c2s", "c2s_aux", "csc", "reg")}, 3, {"cls", "cls_aux"}, 1, 0),
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
    with pytest.raises(ConfigError, match="'strong'"):
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


def test_what_guides_the_cams() -> None:
    batch, logits = two_views(masks=True), torch.randn(4, CLASSES + 1, 8, 8)
    assert batch.masks is not None
    plain, truth, noise = (build(guidance=name) for name in ("segmentation", "truth", "noise"))
    assert truth.reads_masks and not noise.reads_masks and not plain.reads_masks and not CoSA.reads_masks
    made, known = truth_guide(batch, logits), batch.masks != IGNORE
    assert torch.equal(made.argmax(1)[known], batch.masks.long()[known]) and (~known).any()
    large = torch.nn.functional.interpolate(logits, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    void = (~known)[:, None].expand_as(made)
    assert torch.equal(made[void], large[void]), "where the truth is void the segmentation guides"
    drawn = noise_guide(batch, logits).argmax(1)
    for i in range(4):
        allowed = {0, *(1 + batch.tags[i].nonzero().flatten()).tolist()}
        assert set(drawn[i].unique().tolist()) == allowed, "the background and the tags, and all of them"
    assert not torch.equal(drawn, noise_guide(batch, logits).argmax(1)), "drawn anew"
    with pytest.raises(TrainingError, match=r"data\.masks"):
        truth.losses(two_views(), 5)


def test_the_truth_as_guide_teaches_cams_where_it_lies() -> None:
    """s2c by a loop: σ of the class maps against the true masks, resized to their grid, over the photo."""
    method, batch = build(guidance="truth"), two_views(masks=True)
    assert batch.masks is not None
    batch.masks[batch.masks == IGNORE] = 0
    maps = method.classifier.cam(method.encoder(batch.views["strong"].images).maps[-1]).double()
    grid = (maps.shape[-2], maps.shape[-1])
    own = torch.stack([(batch.masks == k + 1).double() for k in range(CLASSES)], 1)
    target = torch.nn.functional.interpolate(own, size=grid, mode="bilinear", align_corners=False)
    terms, valid = [], photo_positions(batch, grid)
    for i, y, x in valid.nonzero().tolist():
        for k in range(CLASSES):
            score, wanted = maps[i, k, y, x].sigmoid().item(), target[i, k, y, x].item()
            terms.append(-wanted * math.log(score) - (1 - wanted) * math.log(1 - score))
    found = method.losses(batch, 5).terms["s2c"].item()
    assert found == pytest.approx(sum(terms) / len(terms), rel=1e-4)


@pytest.mark.parametrize("name", ["cosa_voc", "cosa_coco"])
def test_packaged_configurations(name: str) -> None:
    config = load_config(name)
    assert config.method.name == "cosa" and config.views.crop == 448 and config.train.ema is None
    default = type(config.method)(name="cosa")
    same = config.method.model_dump(exclude={"warmup"})
    assert same == default.model_dump(exclude={"warmup"}), "the paper's values are the defaults"


def test_no_row_of_the_ladder_averages_an_average() -> None:
    found = read_table("msrc14/cosa")
    for row in (row for row in found.rows if row.run_of is None):
        config = load_config(*found.configs, *row.configs, overrides=[*found.set, *row.set])
        if config.method.name == "cosa" and config.method.swap:  # type: ignore[attr-defined]
            assert config.train.ema is None, f"{row.name}: an average of an average"


@pytest.mark.parametrize("user", [{"ensemble": True}, {"weight_c2s_aux": 0.1}, {"ensemble": True, "weight_csc": 0.1}])
def test_auxiliary_cams_of_an_untrained_classifier_are_refused(user: dict[str, Any]) -> None:
    names = ".*".join(rf"method\.{name}\b" for name in user)
    with pytest.raises(ConfigError, match=rf"{names}.*method\.weight_cls_aux\b"):
        build(**without("cls_aux", "c2s_aux", "csc") | user)


def test_every_setting_says_what_it_is() -> None:
    own = CoSAConfig.model_fields.keys() - {"name"}
    assert not [name for name in own if not CoSAConfig.model_fields[name].description]
