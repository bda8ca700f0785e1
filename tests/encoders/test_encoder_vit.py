"""Plain ViTs: recording, blocks, prefixes, position embeddings."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch.nn import functional as F

from tagmask.config import EncoderConfig
from tagmask.encoders import build_encoder
from tagmask.errors import ConfigError
from tests.encoders import small_swin

TINY = "vit_tiny_patch16_224"


def build(name=TINY, **options):
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(name=name, weights="none", **options)).eval()
    with torch.no_grad():  # fresh class tokens and positions are almost zero
        for key in ("cls_token", "pos_embed", "reg_token"):
            if getattr(encoder.model, key, None) is not None:
                getattr(encoder.model, key).normal_(std=0.5)
    return encoder


@pytest.fixture(scope="module")
def vit():
    return build()


def test_attention_matches_loops_in_float64(vit):
    """Logits, queries and keys of block 1 from the tokens before it, head by head, pair by pair."""
    double = build().double()
    images = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    tokens = []
    handle = double.model.blocks[1].register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0]))
    with torch.no_grad():
        features = double(images, attention=[1], queries=[1], keys=[1])
    handle.remove()
    block = double.model.blocks[1]
    x = F.layer_norm(tokens[0], (192,), block.norm1.weight, block.norm1.bias, block.norm1.eps)
    projected = x @ block.attn.qkv.weight.T + block.attn.qkv.bias
    heads, d = 3, 64
    batch, count, _ = projected.shape
    for b in range(batch):
        for h in range(heads):
            for i in range(count):
                query = projected[b, i, h * d : (h + 1) * d]
                torch.testing.assert_close(features.queries[1][b, h, i], query)
                for j in range(count):
                    key = projected[b, j, 192 + h * d : 192 + (h + 1) * d]
                    torch.testing.assert_close(features.keys[1][b, h, j], key)
                    torch.testing.assert_close(features.attention_logits[1][b, h, i, j], (query * key).sum())


def test_logits_are_those_that_the_block_uses(vit):
    """softmax(logits / sqrt(d)) v, projected, is the output of the block's attention."""
    attention, caught = vit.model.blocks[-1].attn, {}
    handles = [
        attention.qkv.register_forward_hook(lambda m, i, o: caught.update(qkv=o)),
        attention.register_forward_hook(lambda m, i, o: caught.update(out=o)),
    ]
    with torch.no_grad():
        logits = vit(torch.rand(1, 3, 32, 32), attention=[-1]).attention_logits[11]
        for handle in handles:
            handle.remove()
        value = caught["qkv"][..., 384:].reshape(1, 5, 3, 64).transpose(1, 2)
        mixed = (logits / math.sqrt(64)).softmax(-1) @ value
        torch.testing.assert_close(attention.proj(mixed.transpose(1, 2).reshape(1, 5, 192)), caught["out"])


def test_recording_changes_nothing(vit):
    images = torch.rand(2, 3, 65, 97)
    with torch.no_grad():
        plain = vit(images)
        recorded = vit(images, attention=range(12), queries=[0, -1], keys=[5])
    assert torch.equal(plain.maps[0], recorded.maps[0])
    assert torch.equal(plain.class_token, recorded.class_token)
    assert plain.attention_logits == plain.queries == plain.keys == {}
    assert sorted(recorded.attention_logits) == list(range(12))
    assert sorted(recorded.queries) == [0, 11] and sorted(recorded.keys) == [5]
    tokens = 5 * 7 + 1
    assert recorded.attention_logits[3].shape == (2, 3, tokens, tokens) and recorded.keys[5].shape == (2, 3, tokens, 64)
    assert all(not b.attn.qkv._forward_hooks for b in vit.model.blocks)


def test_gradients_are_the_same_and_flow_through_the_record():
    images = torch.rand(1, 3, 32, 32)
    for block in (4, 5):
        for checkpointing in (False, True):
            encoder = build("test_vit", checkpointing=checkpointing).train()
            encoder(images, attention=[block]).attention_logits[block].square().mean().backward()
            for index in range(6):
                gradient = encoder.model.blocks[index].attn.qkv.weight.grad
                assert (gradient is not None and gradient.abs().max() > 0) == (index <= block)
    gradients = []
    for asked in ((), (3, 5)):
        encoder = build("test_vit").train()
        encoder(images, attention=asked).maps[0].square().mean().backward()
        gradients.append(encoder.model.blocks[3].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit2", "deit_tiny_distilled_patch16_224", "vit_pwee_patch16_reg1_gap_256"]
)
def test_final_map_is_timms(name):
    """At the native size, the last map and class token are what timm's own forward pass gives."""
    encoder = build(name)
    size = encoder.model.patch_embed.img_size[0]
    reference = timm.create_model(name, num_classes=0, pretrained=False).eval()
    reference.load_state_dict(encoder.model.state_dict(), strict=False)
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        features = encoder(images)
        tokens = reference.fc_norm(reference.forward_features((images - encoder.mean) / encoder.std))
    prefix = reference.num_prefix_tokens
    assert features.prefix == prefix
    grid = size // 16
    expected = tokens[:, prefix:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    torch.testing.assert_close(features.maps[-1], expected)
    if reference.cls_token is None:
        assert features.class_token is None
    else:
        torch.testing.assert_close(features.class_token, tokens[:, 0])


def test_earlier_blocks(vit):
    several = build(blocks=[-1, 2, 5])
    images = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        maps = several(images).maps
        states = several.model.forward_intermediates(
            (images - several.mean) / several.std, indices=[2, 5, 11], norm=True, intermediates_only=True
        )
    assert several.channels == [192] * 3 and several.strides == [16] * 3
    for ours, theirs in zip(maps, states, strict=True):
        torch.testing.assert_close(ours, theirs)
    for wrong in ([12], [], [-13]):
        with pytest.raises(ConfigError, match=r"encoder\.blocks"):
            build("test_vit", blocks=wrong)


def test_positions_are_resized_to_the_grid():
    """A position embedding that is a ramp over the columns stays a ramp on a wider grid."""
    encoder = build()
    model = encoder.model
    with torch.no_grad():
        ramp = torch.linspace(-1, 1, 14).view(1, 1, 14, 1).expand(1, 14, 14, 192).reshape(1, 196, 192)
        model.pos_embed[:, 1:] = ramp
        seen = []
        handle = model.blocks[0].register_forward_pre_hook(lambda m, i: seen.append(i[0]))
        model.patch_embed.proj.weight.zero_()
        model.patch_embed.proj.bias.zero_()
        encoder(torch.rand(1, 3, 16 * 5, 16 * 28))
        handle.remove()
    columns = seen[0][0, 1:].reshape(5, 28, 192)[2, :, 0]
    centres = (torch.arange(28) + 0.5) / 28 * 14 - 0.5
    expected = (-1 + centres * 2 / 13).clamp(-1, 1)
    torch.testing.assert_close(columns[3:-3], expected[3:-3], atol=0.02, rtol=0)
    assert torch.equal(seen[0][0, 0], (model.cls_token + model.pos_embed[:, :1])[0, 0])


def test_indices_out_of_range(vit):
    with pytest.raises(ConfigError, match=r"0 to 11.*\[12\]"):
        vit(torch.rand(1, 3, 32, 32), keys=[12])
    with pytest.raises(ConfigError, match="self-attention"):
        build_encoder(EncoderConfig(name=small_swin.NAME, weights="none"))(torch.rand(1, 3, 32, 32), attention=[0])


def test_recording_under_autocast(vit):
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        features = vit(torch.rand(1, 3, 32, 32), attention=[-1])
    assert features.attention_logits[11].isfinite().all()
