"""What ``eca`` makes of a guide's keys, from seeds to labels, against loops in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tagmask.cam.maps import resize
from tagmask.config import load_config
from tagmask.encoders.guide import Guidance
from tagmask.types import Batch
from tests.methods.contract import CLASSES, SIZE
from tests.methods.test_eca import WIDTH, build, squares
from tests.region_loops import calibration_loops, map_loops, mean_tokens, seed_loops

GRID, CHANNELS, HALF = (8, 8), 6, (SIZE // 2, SIZE // 2)
GATE = 0.3
# Not the defaults, and far enough from each other that each shows: the guide's keys and query are random.
OWN: dict[str, dict[str, Any]] = {
    "paper": {"gamma": 0.35, "seeds": 0.5},
    "uncalibrated": {"gamma": 0.1, "calibration": {"enabled": False}},
    "release": {
        "variant": "release",
        "gamma": 0.2,
        "guide": {"cue": "binary", "cut": 0.1},
        "calibration": {"most_seeds": 2, "momentum": 0.6},
    },
}


class Roll(torch.nn.Module):
    """Stands in for PAR: says what it was given."""

    def forward(self, images: Tensor, scores: Tensor) -> Tensor:
        self.images, self.scores = images, scores.clone()
        return scores.roll(1, -1)


def given() -> tuple[Batch, dict[str, Tensor]]:
    """Images with one, two and three tags, a class that is not trusted, padding, and everything else at random."""
    generator = torch.Generator().manual_seed(5)
    batch = squares()
    batch.tags[1] = torch.tensor([1.0, 1.0, 0.0])
    batch.tags[2] = torch.tensor([1.0, 1.0, 1.0])
    valid = torch.ones(4, *GRID, dtype=torch.bool)
    valid[:, -2:] = False
    valid[1, :, :2] = False
    scores = torch.full((4, CLASSES), 4.0)
    scores[2, 1] = -4.0
    labels = torch.zeros(4, SIZE, SIZE, dtype=torch.long)
    labels[:, 10:30, 10:30] = torch.tensor([1, 2, 3, 1])[:, None, None]
    labels[[0, 1, 3], 40:50] = 1
    return batch, {
        "cams": torch.rand(4, CLASSES, *HALF, generator=generator) ** 0.7,
        "tokens": torch.rand(4, WIDTH, 4, 4, generator=generator) - 0.3,
        "prototypes": torch.rand(CLASSES, WIDTH, generator=generator) - 0.3,
        "keys": torch.randn(4, CHANNELS, *GRID, generator=generator),
        "query": torch.randn(4, CHANNELS, generator=generator),
        "valid": valid,
        "scores": scores,
        "labels": labels,
    }


@pytest.mark.parametrize("name", OWN)
def test_regions_equal_loops(name: str) -> None:
    batch, x = given()
    method = build(gate=GATE, **OWN[name])
    cfg = method.config
    assert cfg.guide.cue == ("binary" if name == "release" else "minmax")
    method.guide = lambda _: Guidance(x["keys"], x["query"], x["valid"])
    method.refiner = roll = Roll()
    tokens = resize(x["tokens"], GRID)
    prototypes: list[list[float] | None] = [None] * CLASSES
    if method.calibration is not None:  # class 0 has none yet
        method.calibration.prototypes.copy_(x["prototypes"])
        method.calibration.seen.copy_(torch.tensor([False, True, True]))
        prototypes = [None, *x["prototypes"][1:].double().tolist()]

    found = method.regions(batch, x["tokens"], x["cams"], x["scores"], x["labels"])

    trusted = batch.tags.clone()
    trusted[2, 1] = 0
    tags = trusted.clone()
    if name == "release":
        for b in range(4):
            for c in range(CLASSES):
                tags[b, c] *= float(any(v == c + 1 for v in x["labels"][b].flatten().tolist()))
        assert not torch.equal(tags, trusted)
    coarse = resize(x["cams"], GRID)
    rival = 0.45 if name == "release" else None
    seeds = seed_loops(coarse, tags, cfg.seeds, rival, None, x["valid"])
    maps = map_loops(x["keys"], x["query"], seeds, cfg.gamma, cfg.guide.cue, cfg.guide.cut, x["valid"])
    background, foreground = maps[:, :1], maps[:, 1:]
    if name != "uncalibrated":
        surest = seed_loops(coarse, tags, cfg.seeds, rival, 2 if name == "release" else None, x["valid"])
        tau = 0.6 if name == "release" else 0.99
        for c, fresh in enumerate(mean_tokens(tokens, surest[:, 1:])):
            old = prototypes[c]
            if fresh is not None:
                blended = [tau * o + (1 - tau) * f for o, f in zip(old or [], fresh, strict=old is not None)]
                prototypes[c] = blended if old is not None else fresh
        kept = torch.tensor([p for p in prototypes if p is not None])
        torch.testing.assert_close(method.calibration.prototypes[method.calibration.seen], kept)
        how = (1.5, True, 2) if name == "release" else (2.0, False, 1)
        plain = foreground
        foreground = calibration_loops(plain, tokens, prototypes, tags, x["valid"], *how)
        assert (foreground - plain).abs().max() > 0.2
    if name == "release":
        assert background.min() < 0.1 and background.max() > 0.6
        background = background.clamp(0.1, 0.6)
    whole = torch.cat([background, foreground], 1)

    shown = resize(whole.float(), HALF).double()
    most = int(tags.sum(1).max())
    assert roll.scores.shape == (4, 1 + most, *HALF)
    torch.testing.assert_close(roll.images, resize(batch.images, HALF))
    for b in range(4):
        classes = [0, *(c + 1 for c in range(CLASSES) if tags[b, c] > 0)]
        torch.testing.assert_close(roll.scores[b, : len(classes)].double(), shown[b, classes], atol=1e-5, rtol=0)
        fine = resize(roll.scores[b : b + 1].roll(1, -1), (SIZE, SIZE))[0, : len(classes)]
        best = torch.tensor(classes)[fine.max(0).indices]
        seeded = all(seeds[b, c].any() for c in classes[1:])
        if not seeded or bool((trusted[b] < batch.tags[b]).any()):
            best[best == 0] = 255
        x0, y0, x1, y1 = batch.boxes[b].tolist()
        expected = torch.full_like(best, 255)
        expected[y0:y1, x0:x1] = best[y0:y1, x0:x1]
        assert torch.equal(found[b], expected)
    assert set(found.unique().tolist()) == {0, 1, 2, 3, 255}


def test_defaults_of_the_release_are_those_that_the_loops_were_given() -> None:
    cfg: Any = load_config({"method": {"name": "eca", "variant": "release"}}).method
    assert (cfg.seed_background, cfg.background_range, cfg.region_classes) == (0.45, (0.1, 0.6), "labels")
    assert (cfg.calibration.exponent, cfg.calibration.rescale, cfg.calibration.least_classes) == (1.5, True, 2)
