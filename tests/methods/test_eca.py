"""``eca``: the contract with and without attention, its phases and switches, and that the guide stays outside."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tagmask.cam import cam_seeds
from tagmask.cam.maps import resize
from tagmask.config import load_config
from tagmask.data.views import crop_affine
from tagmask.encoders import guide as guide_module
from tagmask.encoders.guide import Guidance
from tagmask.errors import ConfigError
from tagmask.losses import affinity_labels, affinity_loss, balanced_cross_entropy, cam_correspondence, downsample_labels
from tagmask.methods import build_method
from tagmask.methods.common.affinity import predict_affinity
from tagmask.methods.eca import local_labels
from tagmask.training import load_model, save_model
from tagmask.types import Batch, View
from tests.losses.test_cam_correspondence import loops
from tests.methods.contract import CLASSES, ENCODERS, SIZE, MethodContract, SlowTraining
from tests.methods.contract import squares as squares_of_all
from tests.methods.contract import tiny as tiny_of_all

LOCAL, STARTS = 32, [(0, 0, False), (24, 30, True)]  # of local views: x, y, whether flipped
WIDTH = 96  # channels of the last map of test_resnet
GUIDE = {"encoder": {"name": "test_vit", "weights": "none"}}
SETTINGS: dict[str, Any] = {
    "name": "eca", "warmup": 2, "head_options": {"embed": 16}, "cam_scales": [1.0], "cam_flip": False,
    "affinity": "none", "guide": GUIDE, "local": "photo",
}  # fmt: skip
TERMS = {
    "cls": {"encoder", "classifier"},
    "seg": {"encoder", "decoder"},
    "region": {"encoder", "decoder"},
    "corr": {"encoder", "classifier"},
}


def squares(seed: int = 0, masks: bool = False) -> Batch:
    """The contract's batch with two local views of each image, the second one flipped."""
    batch = squares_of_all(seed, masks)
    crops = [batch.images[:, :, y : y + LOCAL, x : x + LOCAL] for x, y, _ in STARTS]
    crops = [c.flip(-1) if flip else c for c, (_, _, flip) in zip(crops, STARTS, strict=True)]
    affine = torch.stack([crop_affine(x, y, LOCAL, SIZE, flip) for x, y, flip in STARTS])
    boxes = torch.tensor([0, 0, LOCAL, LOCAL]).repeat(4, 2, 1)
    batch.views["local"] = View(torch.stack(crops, 1), boxes, affine.repeat(4, 1, 1, 1))
    return batch


def tiny(method: dict[str, Any], encoder: str = ENCODERS["cnn"], **sections: Any) -> Any:
    return tiny_of_all(method, encoder, views={"local": {"size": LOCAL}}, **sections)


def build(encoder: str = "cnn", **changes: Any) -> Any:
    torch.manual_seed(0)
    return build_method(tiny(SETTINGS | changes, ENCODERS[encoder]), CLASSES).train()


class TestECA(MethodContract):
    settings = SETTINGS | {"local": "object"}
    terms = TERMS
    sections = {"views": {"crop": SIZE, "local": {"size": LOCAL}}}
    rate = 1e-3  # at 3e-3 its last steps are unstable
    idle = [
        {f"weight_{term}": 0 for term in ("seg", "region", "corr", "aff")},
        {f"weight_{term}": 0 for term in ("seg", "region", "corr")} | {"affinity": "none"},
    ]

    def batch(self, masks: bool = False) -> Batch:
        return squares(0, masks)


class TestECAWithAttention(TestECA, SlowTraining):
    settings = SETTINGS | {"affinity": "attention", "affinity_from": "both", "affinity_warmup": 3}
    terms = TERMS | {"aff": {"encoder", "affinity"}}
    encoders = ("vit", "mit")
    encoder = "test_vit"


def with_perfect_guide(method: Any) -> Any:
    """Keys that say which square a position is in, or that it is background; a query that likes squares."""
    masks = squares_of_all(masks=True).masks
    assert masks is not None
    classes = resize(masks[:, None].float(), (8, 8)).round().long().clamp(max=CLASSES)[:, 0]
    keys = torch.nn.functional.one_hot(classes, CLASSES + 1).permute(0, 3, 1, 2).float()
    query = torch.tensor([-1.0, 1, 1, 1]).expand(4, 4)
    method.guide = lambda batch: Guidance(keys, query, torch.ones(4, 8, 8, dtype=torch.bool))
    return method


def true_cams() -> Tensor:
    """(4,C,32,32): 1 in the middle of each image's square, 0 elsewhere."""
    cams = torch.zeros(4, CLASSES, 32, 32)
    for i, mask in enumerate(squares_of_all(masks=True).masks):  # type: ignore[arg-type]
        y, x = (int(v.min()) // 2 for v in ((mask > 0) & (mask < 255)).nonzero(as_tuple=True))
        cams[i, i % CLASSES, y + 4 : y + 10, x + 4 : x + 10] = 1
    return cams


class Calls:
    """Counts passes of the student, of its decoder and of the guide."""

    def __init__(self, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.student: list[tuple[int, ...]] = []
        self.decoder = self.guide = 0
        method.encoder.register_forward_pre_hook(lambda _, inputs: self.student.append(tuple(inputs[0].shape)))

        def decoded(*_: Any) -> None:
            self.decoder += 1

        method.decoder.register_forward_hook(decoded)
        look = guide_module.Guide._look

        def watched(*args: Any) -> Any:
            self.guide += 1
            return look(*args)

        monkeypatch.setattr(guide_module.Guide, "_look", watched)


@pytest.mark.parametrize(
    ("changes", "step", "terms", "passes", "decoded", "guided"),
    [
        ({}, 1, {"cls"}, 1, 0, 0),
        ({}, 2, {"cls", "seg", "region", "corr"}, 2, 1, 1),
        ({"guide": GUIDE | {"scales": [1.0, 0.5]}}, 2, {"cls", "seg", "region", "corr"}, 2, 1, 2),
        ({"weight_corr": 0}, 2, {"cls", "seg", "region"}, 1, 1, 1),
        ({"weight_region": 0}, 2, {"cls", "seg", "corr"}, 2, 1, 0),
        ({"weight_seg": 0}, 2, {"cls", "region", "corr"}, 2, 1, 1),
        ({"weight_seg": 0, "weight_region": 0}, 2, {"cls", "corr"}, 2, 0, 0),
        ({"weight_seg": 0, "weight_region": 0, "weight_corr": 0}, 2, {"cls"}, 1, 0, 0),
        ({"start_seg": 4, "start_corr": 5, "start_region": 3}, 2, {"cls"}, 1, 0, 0),
        ({"start_seg": 4, "start_corr": 5, "start_region": 3}, 3, {"cls", "region"}, 1, 1, 1),
        ({"start_seg": 4, "start_corr": 5, "start_region": 3}, 4, {"cls", "seg", "region"}, 1, 1, 1),
        ({"start_seg": 4, "start_corr": 5, "start_region": 9}, 5, {"cls", "seg", "corr"}, 2, 1, 0),
    ],
)
def test_only_terms_that_are_on_are_computed(
    changes: dict, step: int, terms: set[str], passes: int, decoded: int, guided: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build(**changes)
    calls = Calls(method, monkeypatch)
    losses = method.losses(squares(), step)
    assert set(losses.terms) == terms
    assert (len(calls.student), calls.decoder, calls.guide) == (passes, decoded, guided)
    weights = {"cls": 1.0, "seg": 0.1, "region": 0.1, "corr": 0.1}
    assert losses.total.item() == pytest.approx(sum(weights[k] * v.item() for k, v in losses.terms.items()), rel=1e-5)


@pytest.mark.parametrize(("source", "guided"), [("cam", 0), ("region", 1), ("both", 1)])
def test_affinity_learns_from_the_labels_it_is_told_to(
    source: str, guided: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"affinity": "attention", "affinity_from": source, "weight_region": 0, "weight_corr": 0, "start_aff": 3}
    method = build("vit", **changes).eval()
    assert "aff" not in method.losses(squares(), 2).terms
    calls = Calls(method, monkeypatch)
    found: dict[str, Tensor] = {}
    for name in ("cut", "regions"):
        own = getattr(method, name)
        monkeypatch.setattr(method, name, lambda *a, n=name, own=own: found.setdefault(n, own(*a)))
    batch = squares()
    aff = method.losses(batch, 3).terms["aff"]
    assert calls.guide == guided
    affinity = predict_affinity(method.affinity, method.encoder(batch.images, attention=[-2, -1]))
    expected = {n: affinity_loss(affinity, affinity_labels(downsample_labels(x, (4, 4)), 8)) for n, x in found.items()}
    used = {"cam": ["cut"], "region": ["regions"], "both": ["cut", "regions"]}[source]
    torch.testing.assert_close(aff, sum(expected[n] for n in used) / len(used))


def test_cams_are_propagated_for_seg_only_from_their_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build("vit", affinity="attention", affinity_warmup=4, weight_corr=0)
    cams: list[tuple[int, ...]] = []
    cut = method.cut

    def watched(batch: Batch, maps: Tensor, scores: Tensor) -> Tensor:
        cams.append(tuple(maps.shape[-2:]))
        return cut(batch, maps, scores)

    monkeypatch.setattr(method, "cut", watched)
    method.losses(squares(), 3)
    assert cams == [(32, 32)]
    method.losses(squares(), 4)
    assert cams == [(32, 32), (32, 32), (4, 4)]


def test_segmentation_learns_from_cam_and_from_region_labels() -> None:
    method = build().eval()
    batch = squares()
    terms = method.losses(batch, 2).terms
    features = method.encoder(batch.images)
    maps = method.classifier.cam(features.maps[-1])
    scores, cams = method.classifier(features.maps[-1]), method.training_cams(batch, maps.detach())
    labels, logits = method.cut(batch, cams, scores), method.decoder(features)
    torch.testing.assert_close(terms["seg"], balanced_cross_entropy(logits, labels))
    again = build().eval()  # whose prototypes are those of before the step
    regions = again.regions(batch, features.maps[-1], cams, scores, None)
    torch.testing.assert_close(terms["region"], balanced_cross_entropy(logits, regions))
    assert not torch.equal(regions, labels) and regions.unique().numel() > 1
    assert (regions[:, -4:] == 255).all(), "padding"
    local = batch.views["local"]
    raw = method.classifier.cam(method.encoder(local.images.flatten(0, 1)).maps[-1])
    seen = local_labels(method.cut(batch, cams, scores, (0.35, 0.55)), local, (2, 2)).flatten(0, 1)
    torch.testing.assert_close(terms["corr"], 2 * cam_correspondence(raw, seen))


def test_prototypes_follow_the_tokens_of_seeds() -> None:
    method = build()
    method.losses(squares(), 1)
    assert not method.calibration.seen.any(), "not in warm-up"
    method.losses(squares(), 2)
    assert method.calibration.seen.any(), "in a step of training"
    method = with_perfect_guide(build())
    batch, sure = squares(), torch.full((4, CLASSES), 9.0)
    tokens = torch.rand(4, WIDTH, 8, 8)
    method.regions(batch, tokens, true_cams(), sure, None)
    assert method.calibration.seen.all()
    seeds = cam_seeds(resize(true_cams(), (8, 8)), batch.tags, 0.3)[:, 1:]
    mean = torch.stack([tokens[i][:, seeds[i, 0]].mean(1) for i in (0, 3)]).mean(0)
    torch.testing.assert_close(method.calibration.prototypes[0], mean)
    method.regions(batch, 2 * tokens, true_cams(), sure, None)
    torch.testing.assert_close(method.calibration.prototypes[0], 1.01 * mean)
    assert build(calibration={"enabled": False}).calibration is None


def test_a_good_guide_makes_good_labels_of_few_seeds() -> None:
    method, batch = with_perfect_guide(build(refine="none")), squares(masks=True)
    found = method.regions(batch, torch.ones(4, WIDTH, 4, 4), true_cams(), torch.full((4, CLASSES), 9.0), None)
    assert batch.masks is not None
    kept = found != 255
    assert kept.float().mean() > 0.9 and (found == batch.masks)[kept].float().mean() > 0.9
    few = true_cams()[..., ::2, ::2] > 0
    assert few.sum() < 0.2 * ((batch.masks > 0) & (batch.masks < 255)).sum() / 16


def test_classes_without_seeds_or_trust_make_the_background_unsure() -> None:
    method, batch = with_perfect_guide(build()), squares()
    tokens, sure = torch.ones(4, WIDTH, 4, 4), torch.full((4, CLASSES), 9.0)
    cams = true_cams()
    found = method.regions(batch, tokens, cams, sure, None)
    assert all((found[i] == 0).any() and (found[i] == 1 + i % CLASSES).any() for i in range(4))
    cams[0] = 0
    assert set(method.regions(batch, tokens, cams, sure, None)[0].unique().tolist()) == {255}
    gated = with_perfect_guide(build(gate=0.5))
    doubt = sure.clone()
    doubt[1, 1] = -9.0
    found = gated.regions(batch, tokens, cams, doubt, None)
    assert set(found[1].unique().tolist()) == {255} and 0 in found[2].unique().tolist()


def test_classes_of_regions_can_be_those_of_the_cam_labels() -> None:
    batch, cams = squares(), true_cams()
    batch.tags[0, 1] = 1
    cams[0, 1], cams[0, 0] = cams[0, 0].clone(), 0.6 * cams[0, 0]
    tokens, scores = torch.ones(4, WIDTH, 4, 4), torch.zeros(4, CLASSES)
    labels = torch.zeros(4, SIZE, SIZE, dtype=torch.long)
    labels[0, 20:30] = 1
    method = with_perfect_guide(build(region_classes="labels", calibration={"enabled": False}))
    found = method.regions(batch, tokens, cams, scores, labels)
    assert set(found[0].unique().tolist()) == {0, 1, 255} and set(found[1].unique().tolist()) == {0, 255}
    found = with_perfect_guide(build(calibration={"enabled": False})).regions(batch, tokens, cams, scores, labels)
    assert set(found[0].unique().tolist()) == {2, 255} and set(found[1].unique().tolist()) == {0, 2, 255}


def test_local_labels_are_those_of_the_pixels_that_the_local_view_shows() -> None:
    labels = torch.randint(0, 4, (4, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    labels[:, :, -10:] = 255
    local = squares().views["local"]
    whole = local_labels(labels, local, (LOCAL, LOCAL))
    assert torch.equal(whole[:, 0], labels[:, :LOCAL, :LOCAL])
    assert torch.equal(whole[:, 1], labels[:, 30 : 30 + LOCAL, 24 : 24 + LOCAL].flip(-1))
    odd = local_labels(labels, View(local.images[..., :31, :31], local.boxes, local.affine), (31, 31))
    assert odd.shape == (4, 2, 31, 31)
    blocks = torch.arange(4).repeat_interleave(16)
    blocks = (blocks[:, None] * 4 + blocks).expand(4, SIZE, SIZE)
    coarse = local_labels(blocks, local, (2, 2))
    assert coarse[0, 0].tolist() == [[0, 1], [4, 5]], "a cell has the label at its centre"
    beyond = View(local.images, local.boxes, local.affine + torch.tensor([[0.0, 0, 9], [0, 0, 0]]))
    assert (local_labels(labels, beyond, (2, 2)) == 255).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(local_labels(labels, local, (LOCAL, LOCAL)), whole)


@pytest.mark.parametrize("band", [(0.35, 0.55), (0.1, 0.9), None])
def test_pairs_of_corr_leave_out_the_band(band: tuple[float, float] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """CCE (equation 11, with what is said before it), cut, looked up and compared in loops."""
    method, batch = build(refine="none", weight_region=0, corr_band=band).eval(), squares()
    # Blocks of 8 pixels, in whose middle the four pixels around each cell's centre lie.
    blocks = torch.rand(4, CLASSES, 9, 9, generator=torch.Generator().manual_seed(0))
    cams = blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)[..., 4 : 4 + SIZE, 4 : 4 + SIZE]
    monkeypatch.setattr(method, "training_cams", lambda *_: cams)
    local, labels = batch.views["local"], torch.full((4, 2, 2, 2), 255)
    low, high = band or (0.5, 0.5)
    for b in range(4):
        tagged = [c for c in range(CLASSES) if batch.tags[b, c] > 0]
        for view, (x0, y0, flip) in enumerate(STARTS):
            for row in range(2):
                for column in range(2):
                    y, x = y0 + 8 + 16 * row, x0 + 8 + 16 * (1 - column if flip else column)
                    value, best = max((float(cams[b, c, y, x]), c) for c in tagged)
                    if value > high or value <= low:
                        labels[b, view, row, column] = best + 1 if value > high else 0
    raw = method.classifier.cam(method.encoder(local.images.flatten(0, 1)).maps[-1])
    expected = 2 * loops(raw, labels.flatten(0, 1), "js")  # mean over 8 views, of the sum over an image's two
    found = method.losses(batch, 2).terms["corr"]
    assert found.item() == pytest.approx(expected, rel=1e-4) and found > 0
    assert (labels == 0).any() and (labels > 0).any() and (labels == 255).any() == (band is not None)


def test_corr_can_be_taken_on_a_finer_grid() -> None:
    method = build(corr_stride=4, divergence="cosine").eval()
    batch = squares()
    labels = torch.randint(0, 3, (4, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    local = batch.views["local"]
    raw = resize(method.classifier.cam(method.encoder(local.images.flatten(0, 1)).maps[-1]), (8, 8))
    expected = 2 * cam_correspondence(raw, local_labels(labels, local, (8, 8)).flatten(0, 1), "cosine")
    torch.testing.assert_close(method._correspondence(batch, labels), expected)
    mean = build(corr_stride=4, divergence="cosine", corr_reduction="mean").eval()._correspondence(batch, labels)
    torch.testing.assert_close(mean, expected / 4)  # of two views, and of two kinds of pairs


def test_local_views_are_asked_for_only_where_they_are_used() -> None:
    assert build().wanted_views == {"local"} and build(weight_corr=0).wanted_views == frozenset()
    assert build(local="object").wanted_views == frozenset(), "the method cuts them"
    whole = {"guide": GUIDE | {"view": "photo"}, "weight_corr": 0}
    assert build(**whole).wanted_views == {"photo"}
    assert build(**whole, weight_region=0).wanted_views == frozenset(), "without a guide"
    with pytest.raises(ConfigError, match="'local'"):
        build().losses(squares_of_all(), 2)


def test_guide_gets_no_gradient_and_is_not_trained() -> None:
    method = build()
    method.losses(squares(), 2).total.backward()
    guide = method.guide.build(torch.device("cpu"))
    assert all(p.grad is None and not p.requires_grad for p in guide.parameters())
    inside = {id(p) for p in guide.parameters()}
    listed = {id(p) for group in method.param_groups(1.0) for p in group["params"]}
    assert not inside & listed and not inside & {id(p) for p in method.parameters()}
    assert not guide.training


def test_guide_is_left_out_of_checkpoints_saved_models_and_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, bare = build(), build(weight_region=0)
    method.losses(squares(), 2)
    extra = set(method.state_dict()) - set(bare.state_dict())
    assert extra == {"calibration.prototypes", "calibration.seen"}
    assert copy.deepcopy(method).guide._encoder is None
    config = tiny(SETTINGS | {"guide": {"encoder": {"name": "test_vit", "weights": "long/gone.pth"}}})
    save_model(tmp_path, method, config, ["a", "b", "c"])
    assert set(load_file(tmp_path / "weights.safetensors")) == set(method.state_dict())
    origin = "none (random); guide: test_vit, none (random)"
    assert method.origin() == origin and f"- Encoder weights: {origin}" in (tmp_path / "README.md").read_text()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a model in use has no guide")

    monkeypatch.setattr(guide_module, "build_encoder", never)
    loaded, _, _ = load_model(tmp_path)
    images = torch.rand(1, 3, SIZE, SIZE)
    for name in ("cams", "segment", "class_scores"):
        assert torch.equal(getattr(loaded, name)(images), getattr(method.eval(), name)(images))
    about = json.loads((tmp_path / "classes.json").read_text())
    assert about["weights_origin"] == loaded.encoder.weights_origin == origin, "two guides, two stamps"
    assert loaded.guide._encoder is None and bare.origin() == "none (random)"


def test_a_cached_run_gives_the_numbers_of_the_run_that_filled_the_cache(tmp_path: Path) -> None:
    """Two runs and one that is resumed, on one folder: what was kept before does not show in the weights."""
    settings = SETTINGS | {"guide": GUIDE | {"view": "photo", "cache": str(tmp_path / "kept")}}
    config = tiny(settings, data={"source": "demo", "root": str(tmp_path / "scenes"), "demo_images": 12})
    train = MethodContract().train
    first = train(config, tmp_path / "first", stop=None)
    about = json.loads((tmp_path / "first" / "model" / "classes.json").read_text())
    assert about["weights_origin"].endswith("guide: test_vit, none (random)")
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "kept").glob("??/*")}
    assert kept
    again = train(config, tmp_path / "again", stop=None)
    train(config, tmp_path / "parts", stop=3)
    parts = train(config, tmp_path / "parts", stop=None)
    assert kept == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "kept").glob("??/*")}, "no entry was made twice"
    for name, value in first.items():
        assert torch.equal(value, again[name]) and torch.equal(value, parts[name]), name


def test_what_is_wrong_with_the_guide_shows_at_the_first_step() -> None:
    with pytest.raises(ConfigError, match=r"method\.guide\.cue\b"):
        build(guide={"encoder": {"name": "resnet18", "weights": "none"}}).losses(squares(), 0)


@pytest.mark.parametrize("graph", ["features", "shuffled", "noise"])
def test_cnn_guide_and_meaningless_graphs_train(graph: str) -> None:
    settings = {"encoder": {"name": "resnet18", "weights": "none"}, "cue": "none", "graph": graph}
    terms = build(guide=settings).losses(squares(), 2).terms
    assert terms["region"].isfinite() and terms["region"] > 0


def test_settings_that_could_only_fail_later_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"method\.high\b.*method\.low\b"):
        build_method(tiny(SETTINGS | {"high": 0.45}, ENCODERS["cnn"]), CLASSES)
    for wrong in ([0.6, 0.1], [-3, 0.9], [0.1, 9]):
        with pytest.raises(ConfigError, match="background_range"):
            load_config({"method": {"name": "eca", "background_range": wrong}})
    with pytest.raises(ConfigError, match="corr_band"):
        load_config({"method": {"name": "eca", "corr_band": [0.6, 0.1]}})
    with pytest.raises(ConfigError, match=r"method\.divergence\b"):
        build_method(tiny(SETTINGS, ENCODERS["cnn"]), 1)
    build_method(tiny(SETTINGS | {"divergence": "cosine"}, ENCODERS["cnn"]), 1)
    build_method(tiny(SETTINGS | {"weight_corr": 0}, ENCODERS["cnn"]), 1)


def test_release_is_a_set_of_defaults() -> None:
    release = load_config({"method": {"name": "eca", "variant": "release"}}).method
    paper = load_config({"method": {"name": "eca"}}).method
    assert (paper.high, paper.low, release.high, release.low) == (0.5, 0.5, 0.55, 0.35)  # type: ignore[attr-defined]
    assert release.weight_corr == paper.weight_corr and release.corr_reduction == "mean"  # type: ignore[attr-defined]
    assert release.guide.cue == "binary" and release.guide.encoder.name == paper.guide.encoder.name  # type: ignore[attr-defined]
    mine = load_config(
        {"method": {"name": "eca", "variant": "release", "high": 0.7, "calibration": {"exponent": 3.0}}}
    ).method
    assert mine.high == 0.7 and mine.calibration.exponent == 3.0 and mine.calibration.rescale  # type: ignore[attr-defined]
    release_steps = {"start_seg": 2, "start_corr": 2, "affinity_warmup": 3}
    method = build("vit", variant="release", affinity="attention", **release_steps)
    losses = method.losses(squares(), 3)
    assert set(losses.terms) == {"cls", "seg", "region", "corr", "aff"} and losses.total.isfinite()
