"""``crt``: the contract on a ViT and on other pairs, its equations, its phases, what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tagmask.errors import ConfigError
from tagmask.methods import build_method
from tagmask.methods.crt import CRT, class_attention
from tagmask.reproduce import read_table
from tagmask.reproduce.configure import configure
from tagmask.training import load_model, save_model
from tagmask.types import Features
from tests.methods.contract import CLASSES, ENCODERS, MethodContract, SlowTraining, scales_and_mirrors, squares, tiny

VIT = "test_vit"  # timm's own for tests: 6 blocks of 64 channels
SETTINGS: dict[str, Any] = {
    "name": "crt", "cnn": {"name": "test_resnet", "output_stride": 16}, "tile": 48, "stride": 16, "loops": 2,
    "warmup": 5, "cam_scales": [1.0, 0.5],
}  # fmt: skip
ANY = SETTINGS | {"tile": None, "loops": 0, "attention": "none"}
TERMS = {
    "cls": {"encoder", "classifier"},
    "cls_cnn": {"cnn", "cnn_classifier"},
    "l1": {"encoder", "classifier", "cnn", "cnn_classifier"},
}


def build(encoder: str = VIT, base: dict[str, Any] = SETTINGS, **changes: Any) -> CRT:
    torch.manual_seed(0)
    method = build_method(tiny(base | changes, encoder), CLASSES).train()
    assert isinstance(method, CRT)
    return method


class TestCRT(MethodContract):
    settings = SETTINGS
    terms = TERMS
    encoders = ("vit",)
    encoder = VIT
    idle = [{"weight_l1": 0}]

    def test_param_groups_hold_every_trained_parameter_once(self) -> None:
        super().test_param_groups_hold_every_trained_parameter_once()
        method = self.build()
        groups = {group["name"]: group for group in method.param_groups(1.0, 10.0)}
        names = {id(p): name for name, p in method.named_parameters()}
        assert {names[id(p)].split(".")[0] for p in groups["heads"]["params"]} == {"classifier", "cnn_classifier"}
        assert {names[id(p)].split(".")[0] for p in groups["encoder"]["params"]} == {"encoder", "cnn"}
        trained = [p.requires_grad for p in method.cnn.parameters()]  # type: ignore[union-attr]
        assert any(trained) and not all(trained), "norm layers are frozen in the CNN, too"


class TestCRTOnAnyPair(SlowTraining):
    settings = ANY
    terms = TERMS


def tokens_of(method: CRT, tiles: Tensor) -> tuple[list[Tensor], Tensor]:
    """Attention (n,heads,N,N) of each block in each pass, and the last tokens before the final norm; by hand."""
    model: Any = method.encoder.model
    tokens = model._pos_embed(model.patch_embed((tiles - method.encoder.mean) / method.encoder.std))
    attentions = []
    for number in range(max(1, method.config.loops)):
        begun = tokens
        for block in model.blocks:
            x = block.norm1(tokens)
            n, count, width = x.shape
            heads = block.attn.num_heads
            projected = block.attn.qkv(x).view(n, count, 3, heads, width // heads)
            attention = torch.zeros(n, heads, count, count, dtype=x.dtype)
            for h in range(heads):
                query, key = projected[:, :, 0, h], projected[:, :, 1, h]
                attention[:, h] = (query @ key.transpose(1, 2) / math.sqrt(width // heads)).softmax(-1)
            attentions.append(attention)
            tokens = block(tokens)
        if method.config.loops and (method.config.add_last or number + 1 < method.config.loops):
            tokens = begun + tokens
    return attentions, tokens


@pytest.mark.parametrize(("loops", "add_last"), [(0, True), (1, True), (3, True), (2, False), (1, False)])
def test_correction_and_attention_equal_equations_1_and_3(loops: int, add_last: bool) -> None:
    method = build(tile=32, loops=loops, add_last=add_last).double().eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        image = torch.rand(1, 3, 32, 32, dtype=torch.float64)
        attentions, tokens = tokens_of(method, image)
        model: Any = method.encoder.model
        prefix = model.num_prefix_tokens
        patches = model.fc_norm(model.norm(tokens))[0, prefix:]
        expected = torch.zeros(1, CLASSES, 2, 2, dtype=torch.float64)
        plain = torch.zeros_like(expected)
        for c in range(CLASSES):
            for y in range(2):
                for x in range(2):
                    place = 2 * y + x
                    score = patches[place] @ method.classifier.conv.weight[c, :, 0, 0]
                    reached = [a[0, h, 0, prefix + place] for a in attentions for h in range(a.shape[1])]
                    plain[0, c, y, x] = score
                    expected[0, c, y, x] = score * sum(reached) / len(reached)
        assert len(attentions) == len(model.blocks) * max(1, loops) == method.encoder.depth
        torch.testing.assert_close(method.class_maps(image), plain)
        # The softmax of the attention is taken in float32.
        torch.testing.assert_close(method.cam_maps(image), expected, rtol=1e-5, atol=1e-7)


def test_tiles_meet_attention_before_they_are_merged() -> None:
    """Equation 1 on more than one tile: each one's map times its own attention, then the mean where tiles overlap."""
    method = build().double().eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        image = torch.rand(1, 3, 64, 80, dtype=torch.float64)
        model: Any = method.encoder.model
        prefix, kernel = model.num_prefix_tokens, method.classifier.conv.weight[:, :, 0, 0]
        total, counts = torch.zeros(1, CLASSES, 4, 5, dtype=torch.float64), torch.zeros(4, 5, dtype=torch.float64)
        for top in (0, 1):
            for left in (0, 1, 2):
                tile = image[:, :, 16 * top : 16 * top + 48, 16 * left : 16 * left + 48]
                attentions, tokens = tokens_of(method, tile)
                patches = model.fc_norm(model.norm(tokens))[0, prefix:]
                for y in range(3):
                    for x in range(3):
                        place = 3 * y + x
                        reached = [float(a[0, h, 0, prefix + place]) for a in attentions for h in range(a.shape[1])]
                        total[0, :, top + y, left + x] += kernel @ patches[place] * (sum(reached) / len(reached))
                        counts[top + y, left + x] += 1
        torch.testing.assert_close(method.cam_maps(image), total / counts, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("attention", ["class", "none"])
def test_cams_in_use_are_the_sum_over_scales_and_mirror_images(attention: str) -> None:
    method = build(attention=attention).eval()
    image = torch.rand(1, 3, 64, 80)
    forward = method.cam_maps if attention == "class" else method.class_maps
    with torch.no_grad():
        method.classifier.conv.weight.mul_(100)
        total = scales_and_mirrors(forward, image, [1.0, 0.5])
        torch.testing.assert_close(method.cams(image), total, rtol=1e-4, atol=1e-5)
        one = scales_and_mirrors(forward, image, [0.75], flip=False)
        torch.testing.assert_close(method.cams(image, scales=[0.75], flip=False), one, rtol=1e-4, atol=1e-5)
        tags = torch.tensor([[1.0, 0.0, 1.0]])
        torch.testing.assert_close(method.cams(image, tags), total * tags[:, :, None, None], rtol=1e-4, atol=1e-5)
    assert total.amax() > 0.9


def test_no_loop_is_one_plain_pass_and_loops_are_not() -> None:
    image = torch.rand(1, 3, 48, 48)
    results = [build(loops=n, add_last=last).eval().class_maps(image) for n, last in ((0, True), (1, False), (1, True))]
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


def test_unrolled_blocks_are_numbered_through_and_can_be_recomputed() -> None:
    image = torch.rand(1, 3, 32, 32)
    plain, looped = build(loops=0), build(loops=2)
    assert (plain.encoder.depth, looped.encoder.depth) == (6, 12) and len(looped.encoder.heads) == 12
    recorded = looped.encoder.eval()(image, attention=range(12)).attention_logits
    first = plain.encoder.eval()(image, attention=range(6)).attention_logits
    assert sorted(recorded) == list(range(12))
    assert all(torch.equal(recorded[i], first[i]) for i in range(6)) and not torch.equal(recorded[6], first[0])
    gradients = []
    for checkpointing in (False, True):
        method = build(loops=2)
        method.encoder.checkpointing = checkpointing  # type: ignore[assignment]
        method.losses(squares(), 5).total.backward()
        gradients.append(method.encoder.model.blocks[0].attn.qkv.weight.grad)  # type: ignore[union-attr,index]
    torch.testing.assert_close(*gradients)


def test_losses_equal_equation_2() -> None:
    method, batch = build(weight_cls=2.0, weight_cls_cnn=3.0, weight_l1=5.0).eval(), squares()
    with torch.no_grad():
        maps = torch.zeros(4, CLASSES, 4, 4, dtype=torch.float64)
        counts = torch.zeros(4, 4, dtype=torch.float64)
        for top in (0, 1):
            for left in (0, 1):
                tile = batch.images[:, :, 16 * top : 16 * top + 48, 16 * left : 16 * left + 48]
                maps[:, :, top : top + 3, left : left + 3] += method.classifier.cam(method.encoder(tile).maps[-1])
                counts[top : top + 3, left : left + 3] += 1
        maps /= counts
        assert method.cnn is not None
        others = method.cnn_classifier.cam(method.cnn(batch.images).maps[-1]).double()
    l1 = 0.0
    entropy = [0.0, 0.0]
    for b in range(4):
        for c in range(CLASSES):
            for y in range(4):
                for x in range(4):
                    l1 += abs(float(maps[b, c, y, x] - others[b, c, y, x])) / (4 * CLASSES * 16)
            for branch, cam in enumerate((maps, others)):
                p = 1 / (1 + math.exp(-float(cam[b, c].mean())))
                entropy[branch] -= math.log(p if batch.tags[b, c] > 0 else 1 - p) / (4 * CLASSES)
    losses = method.losses(batch, 5)
    assert losses.terms["cls"].item() == pytest.approx(entropy[0], rel=1e-4)
    assert losses.terms["cls_cnn"].item() == pytest.approx(entropy[1], rel=1e-4)
    assert losses.terms["l1"].item() == pytest.approx(l1, rel=1e-4)
    assert losses.total.item() == pytest.approx(2 * entropy[0] + 3 * entropy[1] + 5 * l1, rel=1e-4)


def test_l1_goes_on_and_off_in_blocks() -> None:
    method, batch = build(warmup=3, l1_block=2).eval(), squares()
    on = ["l1" in method.losses(batch, step).terms for step in range(12)]
    assert on == [False] * 3 + [True, True, False, False] * 2 + [True]
    assert "l1" in build(warmup=3).losses(batch, 999).terms


def test_padding_of_tiles_is_0_to_the_network() -> None:
    """Of what the normalised network sees: neither black, nor white."""
    method = build().eval()
    seen: list[Tensor] = []
    extract = method.encoder.extract
    method.encoder.extract = lambda x, *asked: seen.append(x) or extract(x, *asked)  # type: ignore[assignment,method-assign]
    images = torch.rand(1, 3, 40, 70) + 0.01
    method.class_maps(images)
    tiles = torch.cat(seen)  # columns from 0, 16 and 32 on
    assert tiles.shape == (3, 3, 48, 48) and method.encoder.mean.amin() > 0
    assert (tiles[:, :, 40:] == 0).all() and (tiles[2, :, :, 70 - 32 :] == 0).all()
    assert (tiles[:2, :, :40] != 0).float().mean() > 0.99
    torch.testing.assert_close(tiles[0, :, :40], ((images - method.encoder.mean) / method.encoder.std)[0, :, :, :48])


@pytest.mark.parametrize("l1_size", ["map", "image"])
def test_padding_of_crops_is_counted_or_left_out(l1_size: str) -> None:
    """In loops over the positions whose centre is photo."""
    batch = squares()
    batch.boxes = torch.tensor([[0, 0, 64, 64], [0, 0, 41, 64], [20, 33, 64, 64], [0, 0, 64, 9]])
    for padding in ("counted", "left_out"):
        method = build(tile=None, loops=0, padding=padding, l1_size=l1_size).eval()
        assert method.cnn is not None
        with torch.no_grad():
            method.classifier.conv.weight.mul_(50)
            both = [
                method.classifier.cam(method.encoder(batch.images).maps[-1]),
                method.cnn_classifier.cam(method.cnn(batch.images).maps[-1]),
            ]
            terms = method.losses(batch, 5).terms
        size = 4 if l1_size == "map" else 64
        large = [F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False) for maps in both]
        wanted = {"cls": 0.0, "cls_cnn": 0.0, "l1": 0.0}
        for b in range(4):
            x0, y0, x1, y1 = batch.boxes[b].tolist()

            def inside(y: int, x: int, cell: float) -> bool:
                y, x = math.floor(cell * (y + 0.5)), math.floor(cell * (x + 0.5))  # noqa: B023
                return padding == "counted" or (x0 <= x < x1 and y0 <= y < y1)  # noqa: B023

            places = [(y, x) for y in range(4) for x in range(4) if inside(y, x, 16)]
            fine = [(y, x) for y in range(size) for x in range(size) if inside(y, x, 64 / size)]
            for c in range(CLASSES):
                for name, maps in zip(("cls", "cls_cnn"), both):
                    score = sum(float(maps[b, c, y, x]) for y, x in places) / max(1, len(places))
                    p = 1 / (1 + math.exp(-score))
                    wanted[name] -= math.log(p if batch.tags[b, c] > 0 else 1 - p) / (4 * CLASSES)
                apart = [abs(float(large[0][b, c, y, x] - large[1][b, c, y, x])) for y, x in fine]
                wanted["l1"] += sum(apart) / max(1, len(apart)) / (4 * CLASSES)
        assert {name: value.item() for name, value in terms.items()} == pytest.approx(wanted, rel=1e-3)


def test_upsampling_enlarges_the_map_of_a_smaller_image() -> None:
    """Table 2's bilinear row: the transformer sees half the size, and its map has the size of the CNN's."""
    method = build(tile=None, loops=0, upsample=2, attention="none").eval()
    image = torch.rand(1, 3, 64, 96)
    small = F.interpolate(image, size=(32, 48), mode="bilinear", antialias=True)
    features = method.encoder(small).maps[-1]
    assert features.shape[-2:] == (2, 3)
    large = F.interpolate(features, size=(4, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(method.class_maps(image), F.conv2d(large, method.classifier.conv.weight))
    coupled = build(tile=None, loops=0, upsample=2).eval()
    blocks = range(coupled.encoder.depth)
    reached = class_attention(coupled.encoder(small, queries=blocks, keys=blocks))
    reached = F.interpolate(reached, size=(4, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(coupled.cam_maps(image), coupled.class_maps(image) * reached)
    assert method.cnn is not None and method.cnn(image).maps[-1].shape[-2:] == (4, 6)


@pytest.mark.parametrize(
    ("changes", "step", "terms"),
    [
        ({}, 4, {"cls", "cls_cnn"}),
        ({}, 5, {"cls", "cls_cnn", "l1"}),
        ({"weight_cls_cnn": 0.0}, 4, {"cls"}),
        ({"weight_cls_cnn": 0.0}, 5, {"cls", "l1"}),
        ({"weight_l1": 0.0}, 5, {"cls"}),
    ],
)
def test_only_terms_with_a_weight_are_computed(changes: dict, step: int, terms: set[str]) -> None:
    method = build(**changes)
    ran: list[int] = []
    if method.cnn is not None:
        method.cnn.register_forward_hook(lambda *_: ran.append(1))
    assert (method.cnn is None) == (changes.get("weight_l1") == 0)
    assert set(method.losses(squares(), step).terms) == terms
    assert len(ran) == bool(terms - {"cls"})
    groups = method.param_groups(1.0)
    listed = {id(p) for group in groups for p in group["params"]}
    assert listed == {id(p) for p in method.parameters() if p.requires_grad}


def test_the_cnn_does_not_run_in_use_and_attention_only_there() -> None:
    method = build()
    asked: list[Any] = []
    method.encoder.register_forward_pre_hook(lambda m, i, k: asked.append(k), with_kwargs=True)
    method.losses(squares(), 5)
    assert asked == [{}], "training records no attention"
    assert method.cnn is not None
    method.cnn.register_forward_hook(lambda *_: pytest.fail("the CNN ran"))
    images = torch.rand(1, 3, 64, 64)
    method.eval().cams(images)
    assert len(asked[1]["keys"]) == method.encoder.depth
    method.class_scores(images)
    assert asked[-1] == {}


def test_tiles_go_in_parts_in_use_and_change_nothing() -> None:
    images = torch.rand(2, 3, 64, 64)
    few, many = build(tiles_at_once=3).eval(), build().eval()
    torch.testing.assert_close(few.cams(images), many.cams(images))
    sizes: list[int] = []
    few.encoder.register_forward_pre_hook(lambda m, i: sizes.append(len(i[0])))
    few.class_maps(images)
    assert sizes == [3, 3, 2]
    few.train().class_maps(images)
    assert sizes[3:] == [8]


def test_class_attention_equals_loops_and_skips_the_prefix() -> None:
    generator = torch.Generator().manual_seed(0)
    recorded = {i: torch.randn(2, 3, 8, 5, generator=generator, dtype=torch.float64) for i in range(4)}
    maps = [torch.zeros(2, 1, 2, 3)]
    features = Features(maps, queries={0: recorded[0], 7: recorded[1]}, keys={0: recorded[2], 7: recorded[3]}, prefix=2)
    expected = torch.zeros(2, 1, 2, 3)
    for b in range(2):
        for query, key in ((recorded[0], recorded[2]), (recorded[1], recorded[3])):
            for h in range(3):
                weights = [math.exp(float(query[b, h, 0] @ key[b, h, j]) / math.sqrt(5)) for j in range(8)]
                for place in range(6):
                    expected[b, 0, place // 3, place % 3] += weights[2 + place] / sum(weights) / 6
    torch.testing.assert_close(class_attention(features), expected)


def test_classifier_of_3x3() -> None:
    method = build(kernel=3, tile=None).eval()
    image = torch.rand(1, 3, 48, 48)
    conv = method.classifier.conv
    assert conv.weight.shape[2:] == (3, 3) and conv.bias is not None
    expected = F.conv2d(method.encoder(image).maps[-1], conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(method.class_maps(image), expected)


def test_maps_of_other_sizes_are_compared_on_the_first_branchs_grid() -> None:
    method, batch = build(cnn={"name": "test_resnet", "output_stride": 32}, tile=None, loops=0).eval(), squares()
    assert method.cnn is not None
    with torch.no_grad():
        maps = method.classifier.cam(method.encoder(batch.images).maps[-1])
        others = method.cnn_classifier.cam(method.cnn(batch.images).maps[-1])
        assert others.shape[-1] == 2 and maps.shape[-1] == 4
        expected = (F.interpolate(others, size=(4, 4), mode="bilinear", align_corners=False) - maps).abs().mean()
    torch.testing.assert_close(method.losses(batch, 5).terms["l1"], expected)


def test_the_release_compares_maps_at_the_images_size() -> None:
    method, batch = build(variant="release").eval(), squares()
    assert method.config.l1_size == "image" and method.classifier.conv.weight.shape[2:] == (3, 3)
    assert method.cnn is not None
    with torch.no_grad():
        both = method.class_maps(batch.images), method.cnn_classifier.cam(method.cnn(batch.images).maps[-1])
        large = [F.interpolate(maps, size=(64, 64), mode="bilinear", align_corners=False) for maps in both]
        expected = (large[0] - large[1]).abs().mean()
        assert (both[0] - both[1]).abs().mean() != pytest.approx(expected.item(), rel=1e-3)
    torch.testing.assert_close(method.losses(batch, 5).terms["l1"], expected)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_the_release_cuts_the_gradient_behind_the_second_stage(name: str) -> None:
    """As if the map of stride 8 had been detached: what lies behind it learns the same as without the cut."""
    gradients: list[dict[str, Tensor]] = []
    for cut in (False, True):
        method = build(cnn={"name": name, "output_stride": 16, "weights": "none"}, cnn_detach=cut).eval()
        assert method.cnn is not None
        method.param_groups(1.0, freeze_norm=False)
        method.losses(squares(), 5).total.backward()
        gradients.append({n: p.grad for n, p in method.cnn.named_parameters() if p.grad is not None})
    whole, behind = gradients
    assert 0 < len(behind) < len(whole)
    assert all(torch.equal(whole[n], g) for n, g in behind.items())
    if name == "test_resnet":
        assert set(behind) == {n for n in whole if n.startswith(("body.layer3", "body.layer4"))}


def test_a_cnn_without_a_second_stage_cannot_be_cut_there() -> None:
    with pytest.raises(ConfigError, match=r"method\.cnn_detach\b"):
        build(cnn={"name": VIT, "weights": "none"}, cnn_detach=True)


def test_random_encoder_means_random_cnn_so_that_a_saved_model_needs_no_weights(tmp_path: Path) -> None:
    config = tiny(SETTINGS | {"cnn": {"name": "test_resnet", "weights": str(tmp_path / "gone.pth")}}, VIT)
    method = build_method(config, CLASSES).eval()
    assert method.encoder.weights_origin == "none (random); cnn: none (random)"
    save_model(tmp_path / "model", method, config, ["a", "b", "c"])
    loaded, _, _ = load_model(tmp_path / "model")
    image = torch.rand(1, 3, 48, 48)
    assert torch.equal(loaded.cams(image), method.cams(image))
    assert loaded.encoder.weights_origin == method.encoder.weights_origin


def test_a_saved_model_is_the_transformer_alone(tmp_path: Path) -> None:
    method, config = build().eval(), tiny(SETTINGS, VIT)
    save_model(tmp_path, method, config, ["a", "b", "c"])
    assert {name.split(".")[0] for name in load_file(tmp_path / "weights.safetensors")} == {"encoder", "classifier"}
    millions = sum(p.numel() for part in (method.encoder, method.classifier) for p in part.parameters()) / 1e6
    assert f"Parameters: {millions:.1f} M" in (tmp_path / "README.md").read_text()
    loaded, _, _ = load_model(tmp_path)
    assert isinstance(loaded, CRT) and loaded.cnn is None and loaded.cnn_classifier is None
    images = torch.rand(1, 3, 64, 64)
    for name in ("cams", "class_scores"):
        assert torch.equal(getattr(loaded, name)(images), getattr(method, name)(images))
    assert any(name.startswith("cnn.") for name in method.state_dict()), "of a checkpoint"


@pytest.mark.slow
def test_the_protocols_pair_of_cnns_learns_from_each_other() -> None:
    """ResNet-50 in its first layout and EfficientNet-lite0, whose maps have other channels on the same grid."""
    pair = {"cnn": {"name": "tf_efficientnet_lite0", "weights": "none"}, "warmup": 0}
    config = tiny(ANY | pair, "resnet50")
    config.encoder.layout = "v1"
    method = build_method(config, CLASSES).train()
    assert isinstance(method, CRT) and method.cnn is not None
    assert method.encoder.channels[-1] != method.cnn.channels[-1]
    losses = method.losses(squares(), 0)
    assert set(losses.terms) == {"cls", "cls_cnn", "l1"}
    losses.terms["l1"].backward()
    for encoder in (method.encoder, method.cnn):
        assert any(p.grad is not None and p.grad.any() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("table", "key", "values"),
    [("msrc14/crt", "weight_l1", [0, 0.01, 0.1, 0.2, 0, 0.1]), ("msrc14/crt_loops", "loops", [0, 1, 2, 3, 4])],
)
def test_the_ladders_on_msrc(table: str, key: str, values: list[float], tmp_path: Path) -> None:
    read = read_table(table)
    configs = [configure(read, row, 0, None, tmp_path, []) for row in read.rows]
    assert [getattr(config.method, key) for config in configs] == values
    assert {config.train.steps for config in configs} == {150}
    for config in configs:
        same = config.method.model_copy(update={key: values[0]})
        assert same == configs[0].method or config.encoder.name == "tf_efficientnet_lite0"
    for config in configs:
        branches: Any = config.method
        assert branches.weight_l1 == 0 or config.encoder.name != branches.cnn.name, "two unlike branches"


@pytest.mark.parametrize("kind", ["cnn", "swin", "mit"])
def test_encoders_without_class_attention_or_loops_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"method\.attention\b"):
        build(ENCODERS[kind], ANY, attention="class")
    with pytest.raises(ConfigError, match=r"method\.loops=0"):
        build(ENCODERS[kind], ANY, loops=3)


def test_a_vit_without_class_token_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.attention\b"):
        build("test_vit2")
    assert build("test_vit2", attention="none").encoder.has_class_token is False


def test_wrong_strides_are_refused() -> None:
    with pytest.raises(ConfigError, match="method.*stride"):
        tiny(SETTINGS | {"stride": 64}, VIT)
