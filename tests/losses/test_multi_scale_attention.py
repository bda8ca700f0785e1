from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.losses import multi_scale_attention

TAGS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])


def drawn(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(6, 3, 3, 4, 5, generator=generator, dtype=dtype)
    return list(maps[:3]), list(maps[3:])


def slow(
    main: list[Tensor], support: list[Tensor], attention: bool, normalized: bool, reduction: str, target: str
) -> float:
    """Equations 6 to 8, class by class and scale by scale, in float64."""
    total = 0.0
    for b in range(3):
        for c in range(3):
            if TAGS[b, c] == 0:
                continue
            for cams in main:
                a = cams[b, c].double().flatten()
                others = [s[b, c].double().flatten() for s in support]
                xi = [1.0] * len(others)
                if attention:
                    xi = []
                    for g in others:
                        dot, aa, gg = 0.0, 0.0, 0.0
                        for p in range(len(a)):
                            dot += float(a[p] * g[p])
                            aa += float(a[p] ** 2)
                            gg += float(g[p] ** 2)
                        xi.append(2 - (dot / (aa**0.5 * gg**0.5) if aa * gg else 0.0))
                    if normalized:
                        xi = [len(xi) * v / sum(xi) for v in xi]
                mean = [
                    sum(v * float(g[p]) for v, g in zip(xi, others, strict=True)) / len(others) for p in range(len(a))
                ]
                top = max(mean) if target == "renormalized" else 1
                for p in range(len(a)):
                    total += abs(mean[p] / top - float(a[p])) / (len(a) if reduction == "mean" else 1)
    return total / 3


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("target", ["mean", "renormalized"])
def test_equals_loops(attention: bool, normalized: bool, reduction: Any, target: Any) -> None:
    main, support = drawn()
    for chosen in (main, main[1:2]):
        result = multi_scale_attention(chosen, support, TAGS, attention, normalized, reduction, target=target)
        assert result.item() == pytest.approx(slow(chosen, support, attention, normalized, reduction, target), rel=1e-5)


def test_only_a_renormalized_target_is_reached_by_a_map_over_its_maximum() -> None:
    """Three CAMs that peak in different places: their mean peaks below 1, as no trained map does."""
    support = [torch.tensor(x).view(1, 1, 1, 3) for x in ([1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.4, 0.9, 1.0])]
    tags, mean = torch.ones(1, 1), torch.stack(support).mean(0)
    trained = [mean / mean.max()]
    assert multi_scale_attention(trained, support, tags, attention=False, target="renormalized").item() < 1e-6
    assert multi_scale_attention(trained, support, tags, attention=False).item() > 0.1
    nothing = [torch.zeros(1, 1, 1, 3)]
    assert multi_scale_attention(nothing, nothing, tags, target="renormalized") == 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_positions_that_are_not_valid_take_no_part(reduction: Literal["mean", "sum"]) -> None:
    main, support = drawn()
    valid = torch.zeros(3, 4, 5, dtype=torch.bool)
    valid[:, :3, 1:] = True
    valid[1, :, 3:] = False  # each photo has its own
    cut = [(slice(0, 3), slice(1, 5)), (slice(0, 3), slice(1, 3)), (slice(0, 3), slice(1, 5))]
    each = [
        multi_scale_attention(
            [m[i : i + 1, :, y, x] for m in main],
            [s[i : i + 1, :, y, x] for s in support],
            TAGS[i : i + 1],
            reduction=reduction,
        )
        for i, (y, x) in enumerate(cut)
    ]
    found = multi_scale_attention(main, support, TAGS, reduction=reduction, valid=valid)
    torch.testing.assert_close(found, torch.stack(each).mean())


def test_weights_of_a_scale_sum_to_three_or_reach_two() -> None:
    """Against a map of ones in one place and zeros elsewhere, all of the target is seen in the L1 norm."""
    nothing = [torch.zeros(1, 1, 2, 2)]
    spots = [torch.zeros(1, 1, 2, 2) for _ in range(3)]
    for spot in spots:
        spot[..., 0, 0] = 1
    tags = torch.ones(1, 1)
    assert multi_scale_attention(nothing, spots, tags, reduction="sum").item() == pytest.approx(1)
    assert multi_scale_attention(nothing, spots, tags, normalized=False, reduction="sum").item() == pytest.approx(2)
    assert multi_scale_attention(spots[:1], spots, tags, normalized=False).item() == 0


def test_unlike_scales_weigh_more() -> None:
    like, unlike = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    like[..., 0] = 1
    unlike[..., 1] = 1
    main = like.clone().requires_grad_()
    result = multi_scale_attention([main], [like, unlike], torch.ones(1, 1), reduction="sum")
    # xi = 1 and 2, normalised 2/3 and 4/3: the target is (1/3, 2/3).
    assert result.item() == pytest.approx(4 / 3, rel=1e-6)


def test_gradient_into_the_main_cams_only_and_not_through_the_weights() -> None:
    main, support = drawn(torch.float64)
    for cams in (*main, *support):
        cams.requires_grad_()
    multi_scale_attention(main, support, TAGS).backward()
    assert all(cams.grad is None for cams in support)
    for cams in main:
        assert cams.grad is not None
        expected = (TAGS[:, :, None, None] / (3 * 20)).double().expand_as(cams)
        torch.testing.assert_close(cams.grad.abs(), expected)


def test_gradcheck_where_weights_are_constant() -> None:
    main, support = drawn(torch.float64)
    stacked = torch.stack(main).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: multi_scale_attention(list(x.unbind(0)), support, TAGS, attention=False), (stacked,)
    )


def test_maps_of_zeros_and_no_tags() -> None:
    zeros = [torch.zeros(1, 2, 3, 3, requires_grad=True) for _ in range(3)]
    result = multi_scale_attention(zeros, [z.detach() for z in zeros], torch.ones(1, 2))
    assert result == 0
    result.backward()
    assert all(z.grad is not None and z.grad.isfinite().all() for z in zeros)
    nothing = multi_scale_attention(zeros, [z.detach() + 1 for z in zeros], torch.zeros(1, 2))
    assert nothing == 0 and nothing.requires_grad


def test_half_precision_is_computed_in_float32() -> None:
    main, support = ([cams.bfloat16() for cams in part] for part in drawn())
    result = multi_scale_attention(main, support, TAGS)
    assert result.dtype == torch.float32
    torch.testing.assert_close(
        result, multi_scale_attention([m.float() for m in main], [s.float() for s in support], TAGS)
    )


def test_refusals() -> None:
    main, support = drawn()
    for arguments in (
        (main, [support[0], support[1][..., :2]], TAGS),
        (main, support, TAGS[:, :2]),
        ([], support, TAGS),
        (main, [], TAGS),
    ):
        with pytest.raises(TagmaskError, match="Multi-scale attention"):
            multi_scale_attention(*arguments)
