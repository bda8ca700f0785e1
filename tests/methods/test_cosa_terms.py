"""What ``cosa`` feeds its terms: from CAMs, logits, tags and boxes to each of them by loops in float64.

All settings differ from the defaults, maps and auxiliary maps have different grids, and the boxes cut through both.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tagmask.config import load_config
from tagmask.encoders import Encoder
from tagmask.heads import Classifier
from tagmask.losses import DenseEnergy
from tagmask.methods.cosa import CoSA, CoSAConfig, Network
from tagmask.types import IGNORE, Batch, Features, View
from tests.cosa_loops import (
    assignment_loops,
    bilinear_loops,
    cam_to_seg_loops,
    perplexity_loops,
    photo_loops,
    places,
    seg_to_cam_loops,
    segmentation_label_loops,
    separation_loops,
    threshold_loops,
)

CLASSES, SIZE, FINE, COARSE = 3, (48, 32), (12, 8), (6, 4)
COMMON: dict[str, Any] = {
    "name": "cosa", "warmup": 0, "weight_cls": 1.5, "weight_cls_aux": 0.7, "weight_c2s": 0.3,
    "weight_c2s_aux": 0.6, "weight_s2c": 0.8, "weight_csc": 0.9, "weight_reg": 0.4,
    "energy": {"weight": 1e-3, "sigma_rgb": 60.0, "sigma_xy": 20.0},
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "fixed": {
        "gate": 0.22, "threshold": 0.45, "low": 0.3, "alpha": 0.6, "beta": 1.6, "temperature": 0.4, "rectify": True,
        "epsilon": 1.5, "contrast_temperature": 0.35, "cam_scales": [0.5, 1.0],
        "head_options": {"hidden": 4, "dilation": 1},
    },
    "dynamic": {
        "gate": 0.4, "queue": 2, "threshold_start": 0.875, "alpha": 0.5, "beta": 0.7, "temperature": 1.5,
        "epsilon": 1.2, "contrast_temperature": 0.8, "pooling": "avg", "balanced": True, "cam_scales": [1.0, 0.5],
        "cam_flip": False, "head": "segformer", "head_options": {"embed": 4}, "swap": False,
    },
    "refined": {
        "gate": 0.24, "threshold": 0.5, "low": 0.2, "refine": "par", "weighting": "none", "temperature": 0.2,
        "epsilon": 0.9, "contrast_temperature": 0.2, "cam_scales": [0.5],
        "head_options": {"hidden": 4, "dilation": 1},
    },
}  # fmt: skip


class Stub(Encoder):
    """Maps of strides 4 and 8."""

    def __init__(self) -> None:
        super().__init__("cnn", (0.4, 0.5, 0.6), (0.3, 0.2, 0.3))
        self.channels, self.strides = [5, 6], [4, 8]
        self.early, self.late = nn.Conv2d(3, 5, 4, 4), nn.Conv2d(5, 6, 2, 2)

    def extract(self, x: Tensor, attention: set[int], queries: set[int], keys: set[int]) -> Features:
        early = self.early(x).tanh()
        return Features([early, self.late(early).tanh()])


class Roll(nn.Module):
    """Stands in for PAR: everything moves a column to the right."""

    def forward(self, images: Tensor, scores: Tensor) -> Tensor:
        assert images.shape[-2:] == scores.shape[-2:] == (SIZE[0] // 2, SIZE[1] // 2)
        return scores.roll(1, -1)


def build(name: str) -> CoSA:
    """In float64 and evaluation mode; both networks at random."""
    config = load_config({"method": COMMON | OWN[name]}).method
    assert isinstance(config, CoSAConfig)
    method = CoSA(config, Stub(), CLASSES).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    if method.refiner is not None:
        method.refiner = Roll()
    return method


def random_batch(seed: int) -> Batch:
    """Three images of coarse blocks with one to three tags; two of them cut by their boxes."""
    generator = torch.Generator().manual_seed(seed)
    weak = torch.rand(3, 3, 12, 8, generator=generator, dtype=torch.float64).repeat_interleave(4, 2)
    images = (weak.repeat_interleave(4, 3) + torch.rand(3, 3, *SIZE, generator=generator, dtype=torch.float64)) / 2
    tags = torch.tensor([[1.0, 1, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.float64)
    boxes = torch.tensor([[0, 0, 32, 42], [5, 3, 29, 48], [0, 0, 32, 48]])
    strong = View(1 - images.square(), boxes, torch.eye(3)[:2].expand(3, 2, 3))
    return Batch(images, tags, boxes, {"strong": strong}, ["a", "b", "c"], generator)


class Weak(NamedTuple):
    main: Tensor
    auxiliary: Tensor
    trusted: Tensor
    logits: Tensor


def weak_view(network: Network, cfg: CoSAConfig, batch: Batch) -> Weak:
    """CAMs of both kinds on the auxiliary grid, the tags that are trusted, mean logits of all views."""
    views, pooled, sums = [], [], torch.zeros(3, 2 * CLASSES, *FINE, dtype=torch.float64)
    for scale in cfg.cam_scales:
        images = bilinear_loops(batch.images, (round(SIZE[0] * scale), round(SIZE[1] * scale)))
        largest = torch.zeros_like(sums)  # as ReLU would leave it
        for mirrored in (False, True) if cfg.cam_flip else (False,):
            features = network.encoder(images.flip(-1) if mirrored else images)
            main, auxiliary = network.classifier.cam(features.maps[1]), network.auxiliary.cam(features.maps[0])
            pooled.append(scores_of(network.classifier, features.maps[1]))
            grid = (auxiliary.shape[2], auxiliary.shape[3])
            both, logits = torch.cat([bilinear_loops(main, grid), auxiliary], 1), network.decoder(features)
            if mirrored:
                both, logits = both.flip(-1), logits.flip(-1)
            largest = torch.maximum(largest, bilinear_loops(both, FINE))
            views.append(logits)
        sums += largest
    for b, k in places(sums[:, :, 0, 0]):
        lowest = sums[b, k].min()
        sums[b, k] = (sums[b, k] - lowest) / (sums[b, k].max() - lowest + 1e-5)
    finest = max((x.shape[2], x.shape[3]) for x in views)
    scores = 1 / (1 + (-sum(pooled) / len(pooled)).exp())
    return Weak(
        sums[:, :CLASSES],
        sums[:, CLASSES:],
        (batch.tags > 0) & (scores >= cfg.gate),
        sum(bilinear_loops(x, finest) for x in views) / len(views),  # type: ignore[arg-type]
    )


def queued(cams: Tensor, trusted: Tensor, valid: Tensor | None) -> list[float]:
    """The largest CAM of a trusted class at each position of the photo, of images that have one."""
    _, confidence = assignment_loops(cams, trusted, 0.5)
    return [float(confidence[p]) for p in places(confidence) if trusted[p[0]].any() and (valid is None or valid[p])]


def masked(labels: Tensor, batch: Batch, trusted: Tensor) -> Tensor:
    """Labels with 255 outside of the photos, and instead of background where a tag is not trusted."""
    photo = photo_loops(batch.boxes, SIZE, (labels.shape[1], labels.shape[2]))
    result = labels.clone()
    for b in range(3):
        doubtful = any(batch.tags[b, c] > 0 and not trusted[b, c] for c in range(CLASSES))
        result[b] = torch.where(~photo[b] | ((labels[b] == 0) & doubtful), IGNORE, labels[b])
    return result


def refined(cams: Tensor, trusted: Tensor, high: float, low: float) -> Tensor:
    """Labels of scores that ``Roll`` has moved: softmax of trusted classes beside each of two background scores."""
    half = (SIZE[0] // 2, SIZE[1] // 2)
    small = bilinear_loops(cams, half)
    best = []
    for background in (high, low):
        scores = torch.zeros(3, 1 + CLASSES, *half, dtype=torch.float64)
        for b, y, x in places(scores[:, 0]):
            values = [math.exp(background)]
            values += [math.exp(small[b, c, y, x]) if trusted[b, c] else 0.0 for c in range(CLASSES)]
            scores[b, :, y, (x + 1) % half[1]] = torch.tensor(values, dtype=torch.float64) / sum(values)
        best.append(bilinear_loops(scores, SIZE).argmax(1))
    sure, background = best[0] > 0, best[1] == 0
    return torch.where(sure, best[0], torch.where(background, 0, IGNORE))


def soft_margin(scores: Tensor, tags: Tensor) -> float:
    """Equation 1."""
    total = 0.0
    for p in places(tags):
        probability = 1 / (1 + math.exp(-float(scores[p])))
        total -= math.log(probability if tags[p] > 0 else 1 - probability)
    return total / tags.numel()


def scores_of(classifier: Classifier, features: Tensor) -> Tensor:
    """Z of equation 1: the pooled feature map times the classifier's weights."""
    pooled = features.amax((2, 3)) if classifier.pooling == "max" else features.mean((2, 3))
    return pooled @ classifier.conv.weight[:, :, 0, 0].T


def expected_terms(method: CoSA, batch: Batch, weak: Weak, xi: dict[str, float]) -> tuple[dict[str, float], set[int]]:
    """The terms, and which labels were met on the way."""
    cfg = method.config
    strong = method.encoder(batch.views["strong"].images)
    maps, logits = method.classifier.cam(strong.maps[1]), method.decoder(strong)
    large = bilinear_loops(logits, SIZE)
    scores = (scores_of(method.classifier, strong.maps[1]), scores_of(method.auxiliary, strong.maps[0]))
    terms = {name: soft_margin(found, batch.tags) for name, found in zip(("cls", "cls_aux"), scores)}
    met: set[int] = set()
    for name, key, cams in (("main", "c2s", weak.main), ("aux", "c2s_aux", weak.auxiliary)):
        labels, nu = assignment_loops(bilinear_loops(cams, SIZE), weak.trusted, xi[name], cfg.low)
        if method.refiner is not None:
            labels = refined(cams, weak.trusted, xi[name], xi[name] if cfg.low is None else cfg.low)
        labels = masked(labels, batch, weak.trusted)
        doubt = perplexity_loops(nu, xi[name], cfg.alpha, cfg.beta) if cfg.weighting == "raw" else None
        if cfg.balanced:
            halves = (labels.masked_fill(labels > 0, IGNORE), labels.masked_fill(labels == 0, IGNORE))
            terms[key] = sum(0.5 * cam_to_seg_loops(large, half, doubt) for half in halves)
        else:
            terms[key] = cam_to_seg_loops(large, labels, doubt)
        met |= set(labels.unique().tolist())
        if name == "main":
            energy = DenseEnergy(1e-3, 60.0, 20.0, 0.5)
            probabilities = bilinear_loops(logits, (SIZE[0] // 2, SIZE[1] // 2)).softmax(1)
            terms["reg"] = energy(batch.images, probabilities, batch.boxes, labels).item()
    labels, nu = assignment_loops(weak.auxiliary, weak.trusted, xi["aux"], cfg.low)
    doubt = perplexity_loops(nu, xi["aux"], cfg.alpha, cfg.beta)
    labels = masked(labels, batch, weak.trusted)
    terms["csc"] = separation_loops(bilinear_loops(maps, FINE), labels, doubt, cfg.epsilon, cfg.contrast_temperature)
    target = bilinear_loops(segmentation_label_loops(weak.logits, batch.tags, cfg.temperature), COARSE)
    terms["s2c"] = seg_to_cam_loops(maps, target, photo_loops(batch.boxes, SIZE, COARSE), cfg.rectify)
    return terms, met


@pytest.mark.parametrize("name", OWN)
@torch.no_grad()
def test_terms_equal_loops(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # the method goes to float32 where half precision would hurt
    method, batches = build(name), [random_batch(1), random_batch(2)]
    cfg = method.config
    weak = [weak_view(method.assigner, cfg, batch) for batch in batches]
    photo = photo_loops(batches[0].boxes, SIZE, FINE)
    xi: dict[str, float] = {}
    for key, index in (("main", 0), ("aux", 1)):
        if cfg.threshold == "dynamic":
            seen, unmasked = (
                threshold_loops([v for w in weak for v in queued(w[index], w.trusted, where)])
                for where in (photo, None)
            )
            assert (seen is None) == (key == "main"), "one is held, one found"
            assert key == "main" or seen != unmasked, "padding makes a difference"
            xi[key] = cfg.threshold_start if seen is None else seen
        else:
            xi[key] = cfg.threshold

    for batch in batches:
        losses = method.losses(batch, 0)

    expected, met = expected_terms(method, batches[1], weak[1], xi)
    found = {key: term.item() for key, term in losses.terms.items()}
    assert found == pytest.approx(expected, rel=1e-9)
    assert met == {0, 1, 2, 3, IGNORE} and not torch.equal(weak[1].trusted, batches[1].tags > 0)
    assert losses.total.item() == pytest.approx(sum(COMMON[f"weight_{k}"] * v for k, v in expected.items()), rel=1e-9)
    for key, threshold in method.thresholds.items():
        assert threshold.value.item() == pytest.approx(xi[key], abs=1e-9)  # type: ignore[union-attr,operator]
