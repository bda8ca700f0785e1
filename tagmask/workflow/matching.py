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
"""Training photos that are looked at, drawn by the run's seed."""
ENOUGH = 0.7
"""Skill from which on the classes are transferred (docs/notes/recipe.md)."""


class Match(NamedTuple):
    """encoder: the network's name. skill: how well its classes tell the tags, 0 by chance, 1 without a fault."""

    encoder: str
    skill: float


def match(
    config: RunConfig, collection: Collection, asked: Mapping[str, Any], console: Console | None = None
) -> Match | None:
    """The encoder that the user asks for, or else the packaged one, if its pretrained classes tell the tags.

    None where they do not, and where its weights or classes cannot be had. asked: what the user sets of the encoder.
    """
    if not config.plan or config.encoder.weights == "none":
        return None
    name = config.encoder.name if asked.keys() & {"name", "weights", "layout"} else LITE0
    encoder_config = config.encoder.model_copy(update={"name": name, "output_stride": None})
    try:
        encoder = build_encoder(encoder_config, classes=True).to(default_device(config))
    except (ConfigError, WeightsError):
        return None
    items = [item for item in collection.split("train") if item.tags is not None]
    order = np.random.default_rng(config.seed).permutation(len(items))[:PHOTOS]
    logits, kept = pooled_features(encoder, [items[i] for i in sorted(order)], console)
    if len(kept) < 2:
        return None
    tags = torch.stack([tag_vector(item.tags or (), len(collection.classes)) for item in kept])
    found = skill(leave_one_out(logits.softmax(1), tags), tags)
    return Match(name, found) if found >= ENOUGH else None


def skill(scores: Tensor, tags: Tensor) -> float:
    """Mean over the classes of (average precision − share of photos with the class) / (1 − that share).

    scores, tags: (N,C). Classes that all photos have, or none, say nothing; 0 where there are no others.
    """
    shares = tags.float().mean(0).numpy()
    told = (shares > 0) & (shares < 1)
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
