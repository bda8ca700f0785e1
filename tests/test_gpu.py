"""Operators and losses on a GPU give what they give on a CPU, gradients included; skipped where there is no GPU.

The CPU's results are held against loops in their own tests. Methods on a GPU are in the contract (tests/methods).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tagmask import cam, losses, refine
from tagmask.evaluate import ConfusionMatrix

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

B, C, H, W = 2, 3, 20, 24
Call = Callable[..., Any]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


PHOTOS = draw(B, 3, H, W)
BYTES = (255 * PHOTOS).byte()
CAMS = draw(B, C, H, W, seed=1)
LOGITS = 4 * draw(B, C + 1, H, W, seed=2) - 2
PROBS = LOGITS.softmax(1)
LABELS = torch.randint(0, C + 1, (B, H, W), generator=torch.Generator().manual_seed(3))
LABELS[:, :2] = 255
TAGS = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
BOXES = torch.tensor([[0, 0, W, H], [2, 0, W, H - 3]])
KEYS = draw(B, 8, H, W, seed=4) - 0.5
VALID = torch.ones(B, H, W, dtype=torch.bool)
VALID[1, :, :2] = False
EDGES, _ = refine.radius_edges(H, W, 3)
PAIRS = refine.pixel_affinity(KEYS[0], EDGES)
POINTS = 2 * draw(B, 30, 2, seed=6) - 1
SEEDS = cam.cam_seeds(CAMS, TAGS, 0.3)
MASKS = cam.region_masks(CAMS, TAGS, 0.5)

# name: (function of tensors, the tensors). Gradients are compared for all tensors of floating point.
CALLS: dict[str, tuple[Call, tuple[Tensor, ...]]] = {
    "par": (lambda i, m: refine.PAR()(i, m), (PHOTOS, CAMS)),
    "pamr": (lambda i, m: refine.PAMR()(i, m), (PHOTOS, CAMS)),
    "varm": (lambda i, m: refine.VARM()(i, m), (PHOTOS, CAMS)),
    "varm, release": (lambda i, m: refine.VARM(variant="release")(i, m), (PHOTOS, CAMS)),
    "crf": (lambda i, p: refine.DenseCRF.preset("afa")(i, p), (BYTES, PROBS)),
    "random walk": (lambda m, e, w: refine.random_walk(m, e, w, steps=8, beta=4), (CAMS[0], EDGES, PAIRS)),
    "pixel affinity": (refine.pixel_affinity, (KEYS[0], EDGES)),
    "path affinity": (lambda b: refine.path_affinity(b, 3)[1], (draw(B, H, W, seed=5),)),
    "normalize": (cam.normalize, (CAMS - 0.3,)),
    "cam labels": (lambda m, t: cam.cam_labels(m, t, 0.4), (CAMS, TAGS)),
    "pseudo labels": (
        lambda m, t, i, b: cam.pseudo_labels(m, t, 0.6, 0.4, refine=refine.PAR(), images=i, boxes=b),
        (CAMS, TAGS, PHOTOS, BOXES),
    ),
    "cam seeds": (lambda m, t, v: cam.cam_seeds(m, t, 0.3, background=0.1, valid=v), (CAMS, TAGS, VALID)),
    "region maps": (lambda k, s, v: cam.affinity_region_maps(k, None, s, cue="none", valid=v), (KEYS, SEEDS, VALID)),
    "region labels": (lambda m, t, i: cam.region_labels(m, t, i, refine=refine.PAR()), (PROBS, TAGS, PHOTOS)),
    "cut and merge": (lambda i: cam.cut_and_merge(lambda x: x * x, i, tile=12, stride=6), (PHOTOS,)),
    "mixture": (lambda m: torch.cat(cam.fit_two_components(m.flatten())[:3]), (CAMS,)),
    "class prototypes": (cam.class_prototypes, (KEYS, MASKS)),
    "dense energy": (losses.DenseEnergy(weight=1.0), (PHOTOS, PROBS, BOXES)),
    "dense energy, release": (losses.DenseEnergy(weight=1.0, gradient="release"), (PHOTOS, PROBS, BOXES, LABELS)),
    "affinity labels": (lambda y: losses.affinity_labels(losses.downsample_labels(y, (10, 12)), 3), (LABELS,)),
    "balanced cross-entropy": (losses.balanced_cross_entropy, (LOGITS, LABELS)),
    "cam correspondence": (losses.cam_correspondence, (CAMS[..., ::4, ::4], LABELS[..., ::4, ::4])),
    "cam correspondence, cosine": (
        lambda m, y: losses.cam_correspondence(m, y, "cosine"),
        (CAMS[..., ::4, ::4], LABELS[..., ::4, ::4]),
    ),
    "cam to seg": (losses.cam_to_seg, (LOGITS, LABELS, draw(B, H, W, seed=7))),
    "contrastive separation": (losses.contrastive_separation, (CAMS, LABELS, draw(B, H, W, seed=7))),
    "equivariance": (losses.equivariance, (CAMS, CAMS.flip(-1))),
    "multi-scale attention": (
        lambda a, b, t, v: losses.multi_scale_attention([a, a * a], [b, b * b], t, valid=v),
        (CAMS, CAMS.flip(-1), TAGS, VALID),
    ),
    "pair affinity": (
        lambda a, y, e: losses.pair_affinity_loss(a, losses.pair_labels(y, e))["fg"],
        (PAIRS[None], LABELS[:1], EDGES),
    ),
    "perplexity": (lambda m: losses.perplexity(m, 0.4), (CAMS,)),
    "regional contrast": (losses.regional_contrast, (KEYS, MASKS, cam.class_prototypes(KEYS, MASKS))),
    "region cross-entropy": (losses.region_cross_entropy, (CAMS, MASKS, TAGS)),
    "seg to cam": (losses.seg_to_cam, (CAMS, LOGITS, TAGS)),
    "self-correspondence": (
        losses.self_correspondence,
        (CAMS, CAMS.flip(-1), LOGITS, LOGITS.flip(-1), POINTS, POINTS.flip(1)),
    ),
}  # fmt: skip
ON_THE_CPU = {"mixture"}  # counted on the GPU and fitted on the CPU, as documented


def run(name: str, device: str) -> tuple[Tensor, list[Tensor | None]]:
    """The result, and the gradients of its sum, on the CPU."""
    call, tensors = CALLS[name]
    moved = [t.detach().to(device, copy=True) for t in tensors]
    leaves = [t.requires_grad_() if t.is_floating_point() else t for t in moved]
    result = call(*leaves)
    assert result.device.type == ("cpu" if name in ON_THE_CPU else device)
    if result.requires_grad:
        result.sum().backward()
    return result.detach().cpu(), [None if t.grad is None else t.grad.cpu() for t in leaves]


@pytest.mark.parametrize("name", CALLS)
def test_operators_give_the_values_of_the_cpu(name: str) -> None:
    expected, wanted = run(name, "cpu")
    result, grads = run(name, "cuda")
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert [g is None for g in grads] == [g is None for g in wanted]
    for got, due in zip(grads, wanted, strict=True):
        if got is not None and due is not None:
            torch.testing.assert_close(got, due, rtol=1e-3, atol=1e-4 * float(due.abs().max()))


def test_threshold_and_calibration_keep_state_on_the_gpu() -> None:
    def state(device: str) -> list[Tensor]:
        threshold = cam.DynamicThreshold(queue=3).to(device)
        calibration = cam.PrototypeCalibration(C, 8).to(device)
        found = [threshold.update(CAMS.to(device), TAGS.to(device), VALID.to(device)) for _ in range(4)]
        calibration.update(KEYS.to(device), SEEDS[:, 1:].to(device))
        maps = calibration(CAMS.to(device), KEYS.to(device), TAGS.to(device))
        kept = [*found, *threshold.state_dict().values(), *calibration.state_dict().values(), maps]
        assert all(t.device.type == device for t in kept)
        return [t.cpu() for t in kept]

    for got, due in zip(state("cuda"), state("cpu"), strict=True):
        torch.testing.assert_close(got, due, rtol=1e-4, atol=1e-5)


def test_confusion_counts_what_comes_from_a_gpu() -> None:
    counted = []
    for device in ("cpu", "cuda"):
        confusion = ConfusionMatrix(C + 1)
        confusion.update(LOGITS.argmax(1).to(device), LABELS.to(device))
        counted.append(confusion.matrix)
    assert (counted[0] == counted[1]).all() and counted[0].sum() == B * (H - 2) * W
