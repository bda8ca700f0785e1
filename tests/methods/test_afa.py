"""``afa``: the contract on a ViT, its phases, the affinity head and the propagation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tagmask.errors import ConfigError
from tagmask.heads import AffinityHead
from tagmask.losses import affinity_labels, affinity_loss, downsample_labels
from tagmask.methods import Method, build_method
from tagmask.methods.common.affinity import predict_affinity, propagate
from tagmask.types import Features
from tests.methods.contract import CLASSES, ENCODERS, MethodContract, squares, tiny

SETTINGS: dict[str, Any] = {
    "name": "afa", "warmup": 2, "affinity_warmup": 4, "head_options": {"embed": 16}, "cam_scales": [1.0],
    "high": 0.5, "low": 0.3,
}  # fmt: skip


def build(encoder: str = "vit", **changes: Any) -> Method:
    torch.manual_seed(0)
    return build_method(tiny(SETTINGS | changes, ENCODERS[encoder]), CLASSES).train()


class TestAFA(MethodContract):
    settings = SETTINGS
    terms = {"cls": {"encoder", "classifier"}, "seg": {"encoder", "decoder"}, "aff": {"encoder", "affinity"}}
    encoders = ("vit", "mit")
    encoder = "test_vit"
    idle = [{"affinity": "none", "weight_seg": 0}, {"weight_aff": 0, "weight_seg": 0}]


class Labels:
    """Records what a method cuts labels from."""

    def __init__(self, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cams: list[Tensor] = []
        self.labels: list[Tensor] = []
        cut = method.cut

        def watched(batch: Any, cams: Tensor, scores: Tensor) -> Tensor:
            self.cams.append(cams)
            self.labels.append(cut(batch, cams, scores))  # type: ignore[operator]
            return self.labels[-1]

        monkeypatch.setattr(method, "cut", watched)


def test_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build()
    passes: list[Features] = []
    method.encoder.register_forward_hook(lambda module, inputs, features: passes.append(features))
    assert set(method.losses(squares(), 1).terms) == {"cls"}
    assert len(passes) == 1 and not passes[0].attention_logits
    passes.clear()
    seen = Labels(method, monkeypatch)
    assert set(method.losses(squares(), 2).terms) == {"cls", "seg", "aff"}
    assert [sorted(p.attention_logits) for p in passes] == [[4, 5], []] and len(seen.cams) == 1
    method.losses(squares(), 4)
    assert len(passes) == 4, "propagation costs no pass of the encoder"
    assert [tuple(c.shape[-2:]) for c in seen.cams] == [(32, 32), (32, 32), (4, 4)]


def test_segmenter_learns_from_propagated_cams_and_affinity_from_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = build().eval(), squares()
    features = method.encoder(batch.images, attention=[-2, -1])
    affinity = predict_affinity(method.affinity, features)  # type: ignore[arg-type]
    seen = Labels(method, monkeypatch)
    terms = method.losses(batch, 4).terms
    plain, spread = seen.cams
    expected = propagate(
        torch.nn.functional.interpolate(plain, size=(4, 4), mode="bilinear"), affinity.detach(), radius=8
    )
    torch.testing.assert_close(spread, expected)
    assert not spread.requires_grad
    grid = downsample_labels(seen.labels[0], (4, 4))
    torch.testing.assert_close(terms["aff"], affinity_loss(affinity, affinity_labels(grid, 8)))


def test_weights_switch_terms_and_their_work_off(monkeypatch: pytest.MonkeyPatch) -> None:
    without = build(weight_aff=0.0)
    assert without.affinity is None and set(without.losses(squares(), 5).terms) == {"cls", "seg"}
    alone = build(weight_seg=0.0)
    seen = Labels(alone, monkeypatch)
    assert set(alone.losses(squares(), 5).terms) == {"cls", "aff"} and len(seen.cams) == 1
    nothing = build(weight_seg=0.0, weight_aff=0.0)
    passes: list[int] = []
    nothing.encoder.register_forward_hook(lambda *_: passes.append(1))
    assert set(nothing.losses(squares(), 5).terms) == {"cls"} and len(passes) == 1
    energy = build(weight_reg=0.01).losses(squares(), 5)
    assert set(energy.terms) == {"cls", "seg", "aff", "reg"}


def test_without_affinity_it_is_the_baseline() -> None:
    afa = build("cnn", affinity="none").eval()
    torch.manual_seed(0)
    settings = {"name": "baseline"} | {k: v for k, v in SETTINGS.items() if k not in ("name", "affinity_warmup")}
    baseline = build_method(tiny(settings | {"head": "segformer"}, ENCODERS["cnn"]), CLASSES).eval()
    assert torch.equal(afa.losses(squares(), 5).total, baseline.losses(squares(), 5).total)


def test_encoder_without_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.affinity\b"):
        build("cnn")


def head_loops(head: AffinityHead, blocks: list[Tensor], prefix: int) -> list[list[float]]:
    """Affinities of one image: heads concatenated, transposed attention added where asked, weighted sum, sigmoid."""
    heads = [h[prefix:, prefix:].double() for block in blocks for h in block[0]]
    weights = head.conv.weight.flatten().double().tolist()
    count = len(heads[0])
    result = []
    for i in range(count):
        row = []
        for j in range(count):
            total = head.bias.item()
            for weight, logits in zip(weights, heads, strict=True):
                value = float(logits[i, j]) + (float(logits[j, i]) if head.symmetric else 0.0)
                total += weight * value
            row.append(1 / (1 + torch.tensor(-total).exp().item()))
        result.append(row)
    return result


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("prefix", [0, 2])
def test_affinity_head_equals_loops(symmetric: bool, prefix: int) -> None:
    torch.manual_seed(0)
    head = AffinityHead([2, 3], symmetric)
    torch.nn.init.normal_(head.conv.weight)
    torch.nn.init.normal_(head.bias)
    blocks = [torch.randn(1, heads, 5 + prefix, 5 + prefix) for heads in (2, 3)]
    affinity = head(blocks, prefix)
    assert affinity.shape == (1, 5, 5)
    torch.testing.assert_close(affinity[0], torch.tensor(head_loops(head, blocks, prefix)), atol=1e-6, rtol=0)
    assert torch.equal(affinity, affinity.mT) == symmetric


def test_affinity_head_has_gradient_into_attention_and_weights() -> None:
    head = AffinityHead([2, 1]).double()
    blocks = [torch.randn(1, heads, 3, 3, dtype=torch.float64, requires_grad=True) for heads in (2, 1)]
    head(blocks).sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in [*blocks, *head.parameters()])


def test_affinity_head_ends_in_float32_under_autocast() -> None:
    head = AffinityHead([2])
    attention = torch.randn(1, 2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        affinity = head([attention])
    assert affinity.dtype == torch.float32
    torch.testing.assert_close(affinity, head([attention]), atol=5e-3, rtol=0)


def test_affinity_head_refuses_attention_to_other_grids() -> None:
    head = AffinityHead([1, 1])
    for shapes in ([(4, 4), (9, 9)], [(4, 1), (4, 1)]):
        with pytest.raises(ConfigError, match=r"method\.affinity_blocks"):
            head([torch.zeros(1, 1, *shape) for shape in shapes])
    features = Features(maps=[torch.zeros(1, 8, 3, 3)], attention_logits={0: torch.zeros(1, 1, 4, 4)})
    with pytest.raises(ConfigError, match=r"method\.affinity_blocks"):
        predict_affinity(AffinityHead([1]), features)


def propagate_loops(cams: Tensor, affinity: Tensor, radius: int, power: float, steps: int) -> Tensor:
    count, classes, height, width = cams.shape
    values = cams.double().clone()
    for _ in range(steps):
        new = torch.zeros_like(values)
        for b in range(count):
            for y in range(height):
                for x in range(width):
                    norm, total = 0.0, torch.zeros(classes, dtype=torch.float64)
                    for v in range(height):
                        for u in range(width):
                            if abs(v - y) <= radius and abs(u - x) <= radius:
                                here = float(affinity[b, y * width + x, v * width + u]) ** power
                                here = 1.0 if (v, u) == (y, x) else here
                                norm += here
                                total += here * values[b, :, v, u]
                    new[b, :, y, x] = total / norm
        values = new
    return values


@pytest.mark.parametrize(("radius", "power", "steps"), [(8, 2.0, 1), (1, 1.0, 1), (2, 3.0, 2)])
def test_propagation_equals_loops(radius: int, power: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    cams, affinity = torch.rand(2, 3, 3, 4, generator=generator), torch.rand(2, 12, 12, generator=generator)
    result = propagate(cams, affinity, radius, power, steps)
    expected = propagate_loops(cams, affinity, radius, power, steps)
    torch.testing.assert_close(result.double(), expected, atol=1e-6, rtol=0)


def test_propagation_keeps_constant_maps_under_autocast() -> None:
    constant = torch.full((1, 2, 8, 8), 0.55)
    with torch.autocast("cpu", torch.bfloat16):
        spread = propagate(constant, torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)), 8)
    torch.testing.assert_close(spread, constant, atol=1e-6, rtol=0)


@pytest.mark.parametrize("blocks", [[-4, -3], [0], [-3, -1]])
def test_blocks_that_do_not_attend_between_the_last_maps_positions_are_refused_at_once(blocks: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"method\.affinity_blocks"):
        build("mit", affinity_blocks=blocks)
    method = build("mit")
    assert method.encoder.training, "trying them leaves the encoder as it was"


def test_propagation_keeps_constant_maps_and_does_nothing_without_affinity() -> None:
    constant = torch.full((1, 2, 3, 3), 0.4)
    torch.testing.assert_close(propagate(constant, torch.rand(1, 9, 9), 8), constant)
    cams = torch.rand(1, 2, 3, 3)
    torch.testing.assert_close(propagate(cams, torch.zeros(1, 9, 9), 8), cams)
