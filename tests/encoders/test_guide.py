"""The guide: what it reads, that it is frozen and nowhere saved, and that DINO's published files fit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ResPostBlock
from torch.nn import functional as F

from tagmask.config import EncoderConfig
from tagmask.encoders import build_encoder
from tagmask.encoders.guide import Guide, GuideConfig
from tagmask.encoders.timm_vit import _recorded
from tagmask.errors import ConfigError, WeightsError
from tagmask.types import Batch, View

VIT = "test_vit"  # patches of 16, six blocks, 64 channels
SIZE = 48


def guide(name: str = VIT, **settings: Any) -> Guide:
    return Guide(GuideConfig(encoder=EncoderConfig(name=name, weights="none"), **settings))


def look(which: Guide, images: torch.Tensor | None = None, boxes: torch.Tensor | None = None, seed: int = 0) -> Any:
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)) if images is None else images
    whole = torch.tensor([[0, 0, images.shape[-1], images.shape[-2]]]).repeat(len(images), 1)
    return which(batch(images, whole if boxes is None else boxes, seed))


def batch(images: torch.Tensor, boxes: torch.Tensor, seed: int = 0, **views: View) -> Batch:
    ids = [str(i) for i in range(len(images))]
    return Batch(images, torch.ones(len(images), 1), boxes, dict(views), ids, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [-1, 2])
def test_vit_gives_the_keys_and_query_of_one_block(block: int) -> None:
    images = torch.rand(2, 3, SIZE, SIZE + 10)
    which = guide(block=block)
    seen = look(which, images)
    encoder = which.build(images.device)
    index = block % encoder.depth
    with torch.no_grad():  # 58 pixels are brought to four whole patches
        whole_patches = F.interpolate(images, size=(SIZE, 64), mode="bilinear")
        features = encoder(whole_patches, queries=[block], keys=[block])
    keys, query = features.keys[index], features.queries[index]  # (B,heads,N,d)
    assert seen.keys.shape == (2, 64, 3, 4) and seen.valid.all()
    for b in range(2):
        for n in range(12):
            whole = torch.cat([keys[b, head, 1 + n] for head in range(keys.shape[1])])
            torch.testing.assert_close(seen.keys[b, :, n // 4, n % 4], whole)
        torch.testing.assert_close(seen.query[b], query[b, :, 0].flatten())


@pytest.mark.parametrize("name", [VIT, "deit_tiny_distilled_patch16_224"])
def test_queries_keys_are_those_of_a_full_pass(name: str) -> None:
    encoder: Any = build_encoder(EncoderConfig(name=name, weights="none")).eval()
    images = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        whole = encoder(images, queries=[-1, 1], keys=[-1, 1])
        for block in (encoder.depth - 1, 1):
            queries, keys = encoder.queries_keys(images, block)
            assert torch.equal(queries, whole.queries[block]) and torch.equal(keys, whole.keys[block])
        after = encoder(images)
    assert torch.equal(after.maps[-1], whole.maps[-1]), "no hook is left behind"
    with pytest.raises(ConfigError, match=r"0 to \d+.*\[\d+\]"):
        encoder.queries_keys(images, encoder.depth)


def test_blocks_that_norm_behind_their_attention_are_read_right() -> None:
    block = ResPostBlock(32, num_heads=2, qkv_bias=True).eval()
    x = torch.randn(2, 5, 32)
    whole, stopped = _recorded(block, x), _recorded(block, x, stop=True)
    assert stopped[0] is x and all(torch.equal(a, b) for a, b in zip(stopped[1:], whole[1:], strict=True))


def test_nothing_behind_the_projection_is_computed() -> None:
    which = guide(block=3)
    encoder: Any = which.build(torch.device("cpu"))
    ran: list[str] = []
    for i, block in enumerate(encoder.model.blocks):
        block.attn.qkv.register_forward_hook(lambda *_, i=i: ran.append(f"qkv{i}"))
        block.mlp.register_forward_hook(lambda *_, i=i: ran.append(f"mlp{i}"))
    encoder.model.norm.register_forward_hook(lambda *_: ran.append("norm"))
    look(which)
    assert ran == ["qkv0", "mlp0", "qkv1", "mlp1", "qkv2", "mlp2", "qkv3"]


def test_frozen_without_gradient_and_always_the_same_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("GPUs' generators were set"))
    first = guide()
    seen = look(first)
    assert torch.equal(torch.get_rng_state(), state), "training's random numbers do not depend on the guide"
    encoder = first.build(torch.device("cpu"))
    assert not encoder.training and not encoder.train().training
    assert not any(p.requires_grad for p in encoder.parameters())
    images = torch.rand(1, 3, SIZE, SIZE, requires_grad=True)
    assert not look(first, images).keys.requires_grad
    monkeypatch.undo()
    torch.manual_seed(2)
    assert torch.equal(look(guide()).keys, seen.keys)


def test_it_is_no_module_and_copies_are_unbuilt() -> None:
    which = guide()
    assert not isinstance(which, torch.nn.Module)
    encoder = which.build(torch.device("cpu"))
    assert which.build(torch.device("cpu")) is encoder
    twin = copy.deepcopy(which)
    assert twin._encoder is None and torch.equal(look(twin).keys, look(which).keys)


def test_scales_are_resized_and_summed() -> None:
    images = torch.rand(1, 3, 64, 64)
    one, half = look(guide(), images), look(guide(scales=[0.5]), images)
    both = look(guide(scales=[1.0, 0.5]), images)
    assert half.keys.shape[-2:] == (2, 2) and half.valid.shape == (1, 2, 2)
    torch.testing.assert_close(both.keys, one.keys + F.interpolate(half.keys, size=(4, 4), mode="bilinear"))
    torch.testing.assert_close(both.query, one.query + half.query)


def test_photo_is_told_from_padding_at_every_scale() -> None:
    boxes = torch.tensor([[16, 0, 48, 64], [0, 0, 64, 25]])
    for scales, expected in (([1.0, 0.5], 4), ([0.5], 2)):
        seen = look(guide(scales=scales), torch.rand(2, 3, 64, 64), boxes)
        for b, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            for y in range(expected):
                for x in range(expected):
                    cell = 64 / expected
                    inside = x0 <= (x + 0.5) * cell < x1 and y0 <= (y + 0.5) * cell < y1
                    assert seen.valid[b, y, x] == inside


def test_cnn_features_are_standardised_over_the_photo() -> None:
    boxes = torch.tensor([[0, 0, 128, 128], [32, 0, 128, 96]])
    which = guide("resnet18", cue="none", scales=[1.0])
    images = torch.rand(2, 3, 128, 128)
    seen = look(which, images, boxes)
    with torch.no_grad():
        maps = which.build(images.device)(images).maps[-1].double()
    assert seen.query is None and seen.keys.shape == maps.shape == (2, 512, 8, 8)
    for b in range(2):
        photo = maps[b][:, seen.valid[b]]
        expected = (photo - photo.mean(1, keepdim=True)) / (photo.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(seen.keys[b][:, seen.valid[b]].double(), expected, atol=1e-4, rtol=1e-4)


def test_noise_knows_nothing_of_the_image_and_connects_a_place_with_itself() -> None:
    which = guide("resnet18", graph="noise", cue="none")
    size = (2, 3, 128, 128)
    one, same = look(which, torch.zeros(size)), look(which, torch.rand(size))
    other = look(which, torch.zeros(size), seed=1)
    assert torch.equal(one.keys, same.keys) and not torch.equal(one.keys, other.keys)
    unit = F.normalize(one.keys.flatten(2), dim=1)
    assert ((unit.mT @ unit > 0.15).sum(2) == 1).float().mean() > 0.8


def test_shuffled_keys_make_a_graph_of_as_many_connections_elsewhere() -> None:
    boxes = torch.tensor([[0, 0, 128, 128], [32, 0, 128, 96]])
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    true, found = (look(guide(graph=graph), images, boxes) for graph in ("features", "shuffled"))
    other = look(guide(graph="shuffled"), images, boxes, seed=1)
    assert torch.equal(true.valid, found.valid) and torch.equal(true.query, found.query)
    for b in range(2):
        for part in (true.valid[b], ~true.valid[b]):
            before, after = true.keys[b][:, part], found.keys[b][:, part]
            assert torch.equal(before.sort(dim=1).values, after.sort(dim=1).values), "the photo keeps the photo's keys"
            # Whole keys are moved: of two sorted lists of keys, each has its twin.
            same = (before[:, :, None] == after[:, None]).all(0)
            assert (same.sum(0) == 1).all() and (same.sum(1) == 1).all()
        inside = true.valid[b]
        assert not torch.equal(true.keys[b][:, inside], found.keys[b][:, inside])
        assert not torch.equal(other.keys[b][:, inside], found.keys[b][:, inside])


def test_patches_that_do_not_divide_the_image_cover_it_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with patches of 14 at 512: the grid is the image's, so that positions stay where they are."""
    sizes: list[tuple[int, ...]] = []
    own = Guide._look

    def watched(self: Guide, encoder: Any, images: torch.Tensor, *rest: Any) -> Any:
        sizes.append(tuple(images.shape[-2:]))
        return own(self, encoder, images, *rest)

    monkeypatch.setattr(Guide, "_look", watched)
    seen = look(guide(scales=[1.0, 0.5]), torch.rand(1, 3, 70, 90))
    assert sizes == [(64, 96), (32, 48)] and seen.keys.shape[-2:] == (4, 6)


def test_half_precision_changes_cosines_little() -> None:
    exact, half = look(guide(precision="fp32")), look(guide(precision="half"))
    assert half.keys.dtype == torch.float32 and not torch.equal(exact.keys, half.keys)
    for one, other in zip(exact.keys.flatten(2).mT, half.keys.flatten(2).mT, strict=True):
        cosines = [F.normalize(x, dim=1) @ F.normalize(x, dim=1).T for x in (one, other)]
        assert (cosines[0] - cosines[1]).abs().max() < 0.02
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(look(guide(precision="fp32")).keys, exact.keys)
        assert torch.equal(look(guide(precision="train")).keys, half.keys)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet18", {}, r"'resnet18'.*method\.guide\.cue=none"),
        ("vit_pwee_patch16_reg1_gap_256", {}, r"read 'method\.guide\.encoder\.'.*encoder\.name"),
        (VIT, {"block": 6}, "has blocks 0 to 5"),
    ],
)
def test_what_the_guide_lacks_is_refused(name: str, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        guide(name, **settings).build(torch.device("cpu"))


def test_missing_weights_are_named() -> None:
    with pytest.raises(WeightsError, match=r"read 'method\.guide\.encoder\.'.*nowhere.pth"):
        Guide(GuideConfig(encoder=EncoderConfig(name=VIT, weights="nowhere.pth"))).build(torch.device("cpu"))


@pytest.mark.parametrize("layout", ["plain", "teacher", "student", "both"])
def test_dino_checkpoints_fit_the_guide(layout: str, tmp_path: Path) -> None:
    """Published files: the bare backbone, or a training state whose networks carry prefixes and a projection head."""
    torch.manual_seed(9)
    state = {
        k: v for k, v in timm.create_model(VIT, pretrained=False).state_dict().items() if not k.startswith("head.")
    }
    assert {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight"} <= set(state)
    head = {"module.head.mlp.0.weight": torch.zeros(4, 64), "module.head.last_layer.weight_v": torch.ones(3, 4)}
    network = {**{"module.backbone." + k: v for k, v in state.items()}, **head}
    other = {k: torch.zeros_like(v) for k, v in network.items()}
    content = {
        "plain": state,
        "teacher": {"teacher": network, "epoch": 100},
        "student": {"student": network, "optimizer": {"state": {}}},
        "both": {"student": other, "teacher": network, "epoch": 100},
    }[layout]
    torch.save(content, tmp_path / "dino.pth")
    which = Guide(GuideConfig(encoder=EncoderConfig(name=VIT, weights=str(tmp_path / "dino.pth"))))
    loaded: Any = which.build(torch.device("cpu"))
    assert all(torch.equal(v, state[k]) for k, v in loaded.model.state_dict().items())


def test_published_dino_names_fit_timms_networks() -> None:
    """The keys of facebookresearch's vit.py are those of timm's: nothing is renamed on the way."""
    with torch.device("meta"):
        model = timm.create_model("vit_small_patch8_224.dino", pretrained=False, num_classes=0)
    state = model.state_dict()
    block = {
        f"{layer}.{kind}"
        for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    }
    expected = {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
    }
    assert set(state) == expected | {f"blocks.{i}.{name}" for i in range(12) for name in block}
    assert state["pos_embed"].shape == (1, 785, 384) and state["patch_embed.proj.weight"].shape == (384, 3, 8, 8)
