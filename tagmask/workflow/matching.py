"""Whether the classes of a pretrained network tell a data set's tags: what the plan asks before it transfers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from tagmask.cam.class_association import association
from tagmask.config import RunConfig
from tagmask.data import Collection, tag_vector
from tagmask.encoders import build_encoder
from tagmask.encoders.weights import LITE0
from tagmask.errors import ConfigError, WeightsError
from tagmask.evaluate.ranking import average_precision
from tagmask.workflow.opened import default_device
from tagmask.workflow.suspects import pooled_features

PHOTOS = 200
"""Training photos that are looked at, drawn by the run's seed; five a class where that is more."""
FEWEST = 16
"""Photos below which chance passes for skill."""
ENOUGH = 0.7
"""Skill from which on the classes are transferred (docs/notes/recipe.md)."""


class Match(NamedTuple):
    """How well the classes of a pretrained network tell the tags.

    encoder: the network's name. tells: whether well enough for their CAMs to be the first masks. why: in words.
    """

    encoder: str
    tells: bool
    why: str


def match(config: RunConfig, collection: Collection, asked: Mapping[str, Any], console: Console | None = None) -> Match:
    """Whether the classes tell the tags of the encoder that the user asks for, or else of the packaged one.

    asked: what the user sets of the encoder.
    """
    name = config.encoder.name if asked.keys() & {"name", "weights", "layout"} else LITE0
    encoder_config = config.encoder.model_copy(update={"name": name, "output_stride": None})
    items = [item for item in collection.split("train") if item.tags is not None]
    try:
        encoder = build_encoder(encoder_config, classes=True).to(default_device(config))
    except (ConfigError, WeightsError):
        return Match(name, False, f"the classes of pretrained {name} cannot be read")
    if len({item.tags for item in items}) == 1 and len(items[0].tags or ()) == 1:
        return Match(name, True, "all photos have the same tag, from which a classifier learns nothing")
    most = max(PHOTOS, 5 * len(collection.classes))
    order = np.random.default_rng(config.seed).permutation(len(items))[:most]
    logits, kept = pooled_features(encoder, [items[i] for i in sorted(order)], "classes", console)
    if len(kept) < FEWEST:
        return Match(name, False, f"{len(kept)} tagged photos are too few to see what pretrained classes tell")
    tags = torch.stack([tag_vector(item.tags or (), len(collection.classes)) for item in kept])
    found = skill(leave_one_out(logits.softmax(1), tags), tags)
    tell = "tell" if found >= ENOUGH else "do not tell"
    return Match(
        name, found >= ENOUGH, f"classes of pretrained {name} {tell} the tags: {found:.3f} of 1, enough is {ENOUGH}"
    )


def skill(scores: Tensor, tags: Tensor) -> float:
    """Mean over the classes of (average precision − share of photos with the class) / (1 − that share).

    scores, tags: (N,C). Classes that all photos have, or fewer than two, say nothing; 0 where there are no others.
    """
    shares, photos = tags.float().mean(0).numpy(), tags.sum(0).numpy()
    told = (photos > 1) & (photos < len(tags))
    found = average_precision(scores, tags)[told]
    return float(((found - shares[told]) / (1 - shares[told])).mean()) if told.any() else 0.0


def leave_one_out(probabilities: Tensor, tags: Tensor) -> Tensor:
    """(N,C): the share of each photo's probability that is of a tag's pretrained classes, as the other photos say.

    probabilities: (N,S) of the pretrained classes. tags: (N,C) of 0/1.
    """
    rows = torch.cat([tags, torch.ones_like(tags[:, :1])], 1).to(probabilities)
    seen, photos = rows.T @ probabilities, rows.sum(0)
    scores = [association(seen - row[:, None] * p, photos - row) @ p for row, p in zip(rows, probabilities)]
    return torch.stack(scores)
