"""``tscd``: what its terms of two views and of attention are fed with, in loops and float64."""

from __future__ import annotations

import pytest
import torch

from tagmask.methods.tscd import TSCDConfig
from tests.losses.test_affinity import loop_labels, loop_loss
from tests.losses.test_self_correspondence import loops
from tests.methods.contract import scales_and_mirrors
from tests.methods.test_afa import head_loops
from tests.methods.test_tscd import ALL_OFF, build, in_double


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("kind", ["raw", "normalized"])
def test_self_correspondence_equals_equation_7(kind: str, centered: bool) -> None:
    """Class maps and raw logits of the images and of A, which halves them, at points drawn for each view.

    Class maps are rectified, or multi-scale, of all classes and in [0,1].
    """
    scales = {"cam_scales": [1.0, 0.5], "refine": "none"}
    changes = {"affine": {"scale": 0.5}, "centered": centered, "points": 3, "scd_maps": kind, **scales}
    method, batch = in_double(build(**changes, **ALL_OFF | {"weight_scd": 0.1}))
    half = batch.images.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))
    views = [method.encoder(images) for images in (batch.images, half)]
    maps = [method.classifier.cam(features.maps[-1]).relu().detach() for features in views]  # type: ignore[operator,union-attr]
    logits = [method.decoder(features).detach() for features in views]  # type: ignore[operator]
    assert maps[0].shape[-2:] == (4, 4) and logits[0].shape[-2:] == (16, 16)
    assert (logits[0] < 0).any() and (maps[0] > 0).any()
    if kind == "normalized":
        with torch.no_grad():
            maps = [scales_and_mirrors(method.class_maps, images, [1.0, 0.5]) for images in (batch.images, half)]  # type: ignore[arg-type]
        assert maps[0].shape[-2:] == (64, 64) and maps[1].shape[-2:] == (32, 32)
    generator = torch.Generator().manual_seed(11)
    points = [2 * torch.rand(4, 9, 2, generator=generator) - 1 for _ in range(2)]
    batch.generator = torch.Generator().manual_seed(11)
    expected = loops(*maps, *logits, *points, centered)
    assert abs(expected) > 1e-4
    # CAMs are made in float32.
    rel = 1e-9 if kind == "raw" else 1e-4
    assert method.losses(batch, 5).terms["scd"].item() == pytest.approx(expected, rel=rel)


def test_affinity_loss_equals_equation_14() -> None:
    method, batch = in_double(build("vit", affinity="attention", affinity_radius=2, **ALL_OFF | {"weight_aux": 0.1}))
    head = method.affinity
    assert head is not None
    torch.nn.init.normal_(head.conv.weight)  # type: ignore[union-attr,arg-type]
    features = method.encoder(batch.images, attention=[-2, -1])
    maps = method.classifier.cam(features.maps[-1])  # type: ignore[operator,union-attr]
    labels = method.labels(batch, maps.detach(), method.classifier(features.maps[-1]).detach())  # type: ignore[operator,union-attr]
    small = labels[:, ::16, ::16]
    assert small.shape == (4, 4, 4) and len(small.unique()) > 2
    recorded = [features.attention_logits[i].detach() for i in sorted(features.attention_logits)]
    assert len(recorded) == 2
    affinity = [head_loops(head, [block[b : b + 1] for block in recorded], features.prefix) for b in range(4)]  # type: ignore[arg-type]
    wanted = [loop_labels(one.tolist(), 2) for one in small]
    expected = loop_loss(torch.tensor(affinity, dtype=torch.float64), torch.tensor(wanted))
    assert method.losses(batch, 5).terms["aux"].item() == pytest.approx(expected, rel=1e-9)


def test_affinities_are_the_attention_as_it_is() -> None:
    """Without AFA's transposed attention, within eight positions."""
    fields = TSCDConfig.model_fields
    assert fields["affinity_symmetric"].default is False and fields["affinity_radius"].default == 8
    assert build("vit", affinity="attention").affinity.symmetric is False  # type: ignore[union-attr]
