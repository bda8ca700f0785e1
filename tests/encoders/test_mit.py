"""Mix Transformers: the network of the paper, what is recorded, and published weights in both layouts."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.config import EncoderConfig
from tagmask.encoders import build_encoder, list_encoders, norm_parameters, weights
from tagmask.encoders.mit import STRIDES, VARIANTS, MixTransformer
from tagmask.errors import ConfigError, WeightsError

HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
CHANNELS, DEPTHS = (32, 64, 160, 256), (2, 2, 2, 2)  # of B0


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("TAGMASK_WEIGHTS", raising=False)


def build(name="mit_b0", **options):
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(**{"name": name, "weights": "none", **options})).eval()


def published(seed: int = 1) -> dict[str, Tensor]:
    """A file of B0 as its authors write it: their names, random values of a trained network's size."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def layer(name: str, *shape: int) -> None:
        fan_in = math.prod(shape[1:])
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) / fan_in**0.5
        state[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=generator)

    def norm(name: str, size: int) -> None:
        state[f"{name}.weight"] = 0.5 + torch.rand(size, generator=generator)
        state[f"{name}.bias"] = 0.2 * torch.randn(size, generator=generator)

    inputs = 3
    for s, (c, depth, reduction) in enumerate(zip(CHANNELS, DEPTHS, REDUCTIONS), start=1):
        kernel = 7 if s == 1 else 3
        layer(f"patch_embed{s}.proj", c, inputs, kernel, kernel)
        norm(f"patch_embed{s}.norm", c)
        for b in range(depth):
            block = f"block{s}.{b}"
            norm(f"{block}.norm1", c)
            layer(f"{block}.attn.q", c, c)
            layer(f"{block}.attn.kv", 2 * c, c)
            layer(f"{block}.attn.proj", c, c)
            if reduction > 1:
                layer(f"{block}.attn.sr", c, c, reduction, reduction)
                norm(f"{block}.attn.norm", c)
            norm(f"{block}.norm2", c)
            layer(f"{block}.mlp.fc1", 4 * c, c)
            layer(f"{block}.mlp.dwconv.dwconv", 4 * c, 1, 3, 3)
            layer(f"{block}.mlp.fc2", c, 4 * c)
        norm(f"norm{s}", c)
        inputs = c
    layer("head", 1000, c)
    return state


def by_hand(state: dict[str, Tensor], x: Tensor, strides) -> tuple[list[Tensor], list[Tensor]]:
    """Maps and attention logits of all blocks for one image, from the paper's equations; attention pair by pair."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / (variance + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    maps, logits = [], []
    for s, (c, depth, heads, reduction) in enumerate(zip(CHANNELS, DEPTHS, HEADS, REDUCTIONS), start=1):
        kernel = state[f"patch_embed{s}.proj.weight"]
        x = F.conv2d(x, kernel, state[f"patch_embed{s}.proj.bias"], strides[s - 1], kernel.shape[-1] // 2)
        height, width = x.shape[-2:]
        t = norm(f"patch_embed{s}.norm", x[0].flatten(1).T, 1e-5)  # (N, c), rows of the grid one after another
        for b in range(depth):
            block = f"block{s}.{b}"
            y = norm(f"{block}.norm1", t, 1e-6)
            coarse = y
            if reduction > 1:
                rows, columns = max(height, reduction), max(width, reduction)
                grid = torch.zeros(c, rows, columns, dtype=y.dtype)
                grid[:, :height, :width] = y.T.reshape(c, height, width)
                windows = []
                for i in range(rows // reduction):
                    for j in range(columns // reduction):
                        window = grid[:, i * reduction :, j * reduction :][:, :reduction, :reduction]
                        windows.append((state[f"{block}.attn.sr.weight"] * window).sum((1, 2, 3)))
                coarse = norm(f"{block}.attn.norm", torch.stack(windows) + state[f"{block}.attn.sr.bias"], 1e-5)
            query, both = linear(f"{block}.attn.q", y), linear(f"{block}.attn.kv", coarse)
            key, value = both[:, :c], both[:, c:]
            d = c // heads
            products = torch.zeros(heads, len(query), len(key), dtype=y.dtype)
            mixed = torch.zeros_like(y)
            for h in range(heads):
                own = slice(h * d, (h + 1) * d)
                for i in range(len(query)):
                    for j in range(len(key)):
                        products[h, i, j] = (query[i, own] * key[j, own]).sum()
                    mixed[i, own] = (products[h, i] / math.sqrt(d)).softmax(0) @ value[:, own]
            logits.append(products)
            t = t + linear(f"{block}.attn.proj", mixed)
            y = linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", t, 1e-6))
            filters = state[f"{block}.mlp.dwconv.dwconv.weight"][:, 0]
            padded = F.pad(y.T.reshape(-1, height, width), (1, 1, 1, 1))
            spread = sum(
                filters[:, i, j, None, None] * padded[:, i : i + height, j : j + width]
                for i in range(3)
                for j in range(3)
            )
            y = spread.flatten(1).T + state[f"{block}.mlp.dwconv.dwconv.bias"]
            y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
            t = t + linear(f"{block}.mlp.fc2", y)
        x = norm(f"norm{s}", t, 1e-6).T.reshape(1, c, height, width)
        maps.append(x)
    return maps, logits


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mit") / "mit_b0.pth"
    torch.save(published(), path)
    return path


@pytest.mark.parametrize(
    ("size", "stride"), [((40, 56), 16), ((33, 41), 32), ((35, 16), 8)], ids=["16", "32", "8-and-less-than-a-window"]
)
def test_the_network_of_the_paper_on_the_authors_weights(file, size, stride):
    encoder = build(weights=str(file), output_stride=stride).double()
    images = torch.rand(1, 3, *size, dtype=torch.float64)
    state = {k: v.double() for k, v in published().items()}
    with torch.no_grad():
        features = encoder(images, attention=range(8))
        maps, logits = by_hand(state, (images - encoder.mean) / encoder.std, STRIDES[stride])
    for ours, reference in zip(features.maps, maps, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-7, atol=1e-9)
    for index, reference in enumerate(logits):
        torch.testing.assert_close(features.attention_logits[index][0], reference, rtol=1e-7, atol=1e-9)
    assert encoder.weights_origin.startswith("file mit_b0.pth (sha256 ")


def test_strides():
    assert build().strides == [4, 8, 16, 16]
    assert build(output_stride=32).strides == build(output_stride=None).strides == [4, 8, 16, 32]
    assert build(output_stride=8).strides == [4, 8, 8, 8]
    with pytest.raises(ConfigError, match="output_stride is 4; 'mit_b0'"):
        build(output_stride=4)


@pytest.mark.parametrize(("name", "millions"), zip(VARIANTS, (3.4, 13.1, 24.2, 44.0, 60.8, 81.4)), ids=list(VARIANTS))
def test_sizes_are_those_of_the_paper(name, millions):
    """Table 1, parameters of the encoders."""
    with torch.device("meta"):
        model = MixTransformer(*VARIANTS[name], STRIDES[32], 0.0)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_what_the_encoder_announces():
    encoder = build("mit_b2")
    assert encoder.kind == "mit" and encoder.depth == 16 and encoder.has_attention
    assert encoder.heads == [1] * 3 + [2] * 4 + [5] * 6 + [8] * 3 and encoder.channels == [64, 128, 320, 512]
    assert list_encoders("mit_*") == [f"mit_b{i}" for i in range(6)]
    names = {id(p): n for n, p in encoder.named_parameters()}
    assert {names[id(p)] for p in norm_parameters(encoder)} == {n for n in names.values() if "norm" in n}


def test_recording(file):
    encoder = build(weights=str(file))
    images = torch.rand(2, 3, 65, 97)
    with torch.no_grad():
        plain = encoder(images)
        features = encoder(images, attention=[0, -1], queries=[2, -2], keys=[2, 6])
    assert plain.attention_logits == plain.queries == plain.keys == {}
    assert all(torch.equal(a, b) for a, b in zip(plain.maps, features.maps, strict=True))
    assert sorted(features.attention_logits) == [0, 7]
    assert sorted(features.queries) == [2, 6] and sorted(features.keys) == [2, 6]
    assert features.attention_logits[0].shape == (2, 1, 17 * 25, 2 * 3)
    assert features.attention_logits[7].shape == (2, 8, 5 * 7, 5 * 7)
    assert features.queries[2].shape == (2, 2, 9 * 13, 32) and features.keys[2].shape == (2, 2, 2 * 3, 32)
    with torch.no_grad():
        logits = encoder(images, attention=[6]).attention_logits[6]
    torch.testing.assert_close(features.queries[6] @ features.keys[6].mT, logits)
    assert features.prefix == 0 and features.class_token is None
    with pytest.raises(ConfigError, match=r"0 to 7.*\[8\]"):
        encoder(images, attention=[8])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_flow_through_the_record(checkpointing):
    encoder = build(checkpointing=checkpointing).train()
    images = torch.rand(1, 3, 48, 48)
    encoder(images, attention=[5]).attention_logits[5].square().mean().backward()
    blocks = [block for stage in encoder.model.stages for block in stage.blocks]
    for index, block in enumerate(blocks):
        reached = block.attn.q.weight.grad is not None and block.attn.q.weight.grad.abs().max() > 0
        assert reached == (index <= 5)
    last = blocks[5].attn
    assert last.kv.weight.grad[:160].abs().max() > 0
    assert last.kv.weight.grad[160:].abs().max() == 0 and last.proj.weight.grad is None


def test_recording_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        features = build()(torch.rand(1, 3, 64, 64), attention=[0, -1])
    assert all(v.isfinite().all() for v in (*features.attention_logits.values(), *features.maps))


def test_drop_path_grows_over_all_blocks():
    encoder = build(drop_path=0.7)
    rates = [m.drop_prob for m in encoder.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1 * i for i in range(8)])
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(encoder(images).maps[-1], encoder(images).maps[-1])
    encoder.train()
    assert not torch.equal(encoder(images).maps[-1], encoder(images).maps[-1])


def test_settings_of_other_families_are_refused():
    with pytest.raises(ConfigError, match="not for 'mit_b0'"):
        build(blocks=[1])


@pytest.mark.parametrize("kind", ["SegformerModel", "SegformerForImageClassification"])
def test_same_features_as_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(hidden_sizes=list(CHANNELS), depths=list(DEPTHS), num_labels=5)
    torch.manual_seed(2)
    theirs = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.05 * torch.randn_like(p))  # fresh biases and norms are blind to mistakes
    theirs.save_pretrained(tmp_path)
    ours = build(weights=str(tmp_path / "model.safetensors"), output_stride=32)
    images = torch.rand(2, 3, 70, 101)
    base = getattr(theirs, "segformer", theirs)
    again = build(output_stride=32)
    again.load_state_dict(ours.state_dict())
    with torch.no_grad():
        reference = base((images - ours.mean) / ours.std, output_hidden_states=True).hidden_states
        for encoder in (ours, again):
            for mine, other in zip(encoder(images).maps, reference, strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def norm_eps(encoder) -> dict[str, float]:
    return {name: module.eps for name, module in encoder.named_modules() if isinstance(module, nn.LayerNorm)}


def test_eps_follows_the_layout_and_is_saved(tmp_path, file):
    save_file(as_transformers(published(), ""), tmp_path / "hub.safetensors")
    authors, hub = build(weights=str(file)), build(weights=str(tmp_path / "hub.safetensors"))
    assert set(norm_eps(hub).values()) == {1e-5}
    for encoder in (authors, build()):
        for name, eps in norm_eps(encoder).items():
            assert eps == (1e-5 if ".embed." in name or ".attn." in name else 1e-6), name
    loaded = build()
    loaded.load_state_dict(hub.state_dict())
    assert norm_eps(loaded) == norm_eps(hub)
    assert norm_eps(copy.deepcopy(hub).half()) == norm_eps(hub)
    loaded.load_state_dict(authors.state_dict())
    assert norm_eps(loaded) == norm_eps(authors)


def as_transformers(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The authors' names in the hub's layout, written out without patterns."""
    result = {"classifier.weight": state["head.weight"], "classifier.bias": state["head.bias"]}
    parts = {
        "norm1": "layer_norm_1", "norm2": "layer_norm_2", "attn.q": "attention.self.query",
        "attn.sr": "attention.self.sr", "attn.norm": "attention.self.layer_norm", "attn.proj": "attention.output.dense",
        "mlp.fc1": "mlp.dense1", "mlp.dwconv.dwconv": "mlp.dwconv.dwconv", "mlp.fc2": "mlp.dense2",
    }  # fmt: skip
    for s in range(4):
        for end in ("weight", "bias"):
            result[f"{prefix}encoder.patch_embeddings.{s}.proj.{end}"] = state[f"patch_embed{s + 1}.proj.{end}"]
            result[f"{prefix}encoder.patch_embeddings.{s}.layer_norm.{end}"] = state[f"patch_embed{s + 1}.norm.{end}"]
            result[f"{prefix}encoder.layer_norm.{s}.{end}"] = state[f"norm{s + 1}.{end}"]
            for b in range(2):
                source, target = f"block{s + 1}.{b}", f"{prefix}encoder.block.{s}.{b}"
                for theirs, hubs in parts.items():
                    if f"{source}.{theirs}.{end}" in state:
                        result[f"{target}.{hubs}.{end}"] = state[f"{source}.{theirs}.{end}"]
                key, value = state[f"{source}.attn.kv.{end}"].chunk(2)
                result[f"{target}.attention.self.key.{end}"] = key.clone()
                result[f"{target}.attention.self.value.{end}"] = value.clone()
    assert len(result) == len(state) + 4 * 2 * 2
    return result


@pytest.mark.parametrize("prefix", ["", "segformer."])
def test_both_layouts_give_the_same_weights(tmp_path, file, prefix):
    save_file(as_transformers(published(), prefix), tmp_path / "x.safetensors")
    first, second = build(weights=str(file)), build(weights=str(tmp_path / "x.safetensors"))
    for (name, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(a, b) or name == "uniform_eps", name


def test_misfits_are_named(tmp_path):
    state = published()
    path = tmp_path / "x.safetensors"

    def attempt(changed: dict[str, Tensor], name: str = "mit_b0") -> None:
        save_file(changed, path)
        build(name, weights=str(path))

    with pytest.raises(WeightsError, match=r"x.safetensors .*1 missing: stages.2.blocks.1.attn.q.weight\)"):
        attempt({k: v for k, v in state.items() if k != "block3.1.attn.q.weight"})
    with pytest.raises(WeightsError, match=r"1 unexpected: decode_head.linear_c.0.proj.weight\)"):
        attempt({**state, "decode_head.linear_c.0.proj.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"of another shape: .*Set encoder.name"):
        attempt(state, "mit_b1")
    hubs = as_transformers(state, "segformer.")
    del hubs["segformer.encoder.block.1.0.attention.self.value.bias"]
    with pytest.raises(WeightsError, match=r"missing: stages.1.blocks.0.attn.kv.bias; 1 unexpected: .*self.key.bias"):
        attempt(hubs)


def test_auto_takes_the_hubs_files(monkeypatch, tmp_path, file):
    """First the safetensors, then the older file; the hub is replaced here, all else is the way to it."""
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        if name == "model.safetensors":
            raise weights.EntryNotFoundError("404")
        torch.save(as_transformers(published(), "segformer."), tmp_path / name)
        return str(tmp_path / name)

    monkeypatch.setattr(weights, "hf_hub_download", download)
    monkeypatch.setattr(weights.urllib.request, "getproxies", lambda: {"https": "http://proxy"})
    encoder = build(weights="auto")
    assert asked == [("nvidia/mit-b0", "model.safetensors"), ("nvidia/mit-b0", "pytorch_model.bin")]
    assert encoder.weights_origin == "hub nvidia/mit-b0 (pytorch_model.bin)"
    expected = build(weights=str(file))
    assert torch.equal(encoder.model.stages[3].norm.bias, expected.model.stages[3].norm.bias)
    asked.clear()
    assert build(weights="auto", weights_dir=file.parent).weights_origin.startswith("file mit_b0.pth")
    assert not asked


def test_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(weights.urllib.request, "getproxies", dict)

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(weights.socket, "create_connection", refuse)
    monkeypatch.setattr(weights.hub_constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(WeightsError) as caught:
        build("mit_b1", weights="auto")
    text = str(caught.value)
    for part in ("encoder 'mit_b1'", "model hub: nvidia/mit-b1: ", "encoder.weights to a .safetensors", "weights=none"):
        assert part in text
