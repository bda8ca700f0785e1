"""What ``tagmask analyse`` shows of labels that are cut from CAMs: their accuracy by confidence and by perplexity."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from tagmask.losses import perplexity
from tagmask.methods.base import MAIN, Analysis
from tagmask.methods.common.pseudo_label_assignment import Assigned, cam_assignment

CONFIDENCES = [i / 20 for i in range(21)]
PERPLEXITIES = [*(i / 4 for i in range(21)), float("inf")]
"""Edges of the bins."""


def label_analyses(method: Any, other: str) -> dict[str, Analysis]:
    """Figure 3 of CoSA, of the labels of the main CAMs and of those called ``other``, where the method has them.

    The labels are cut at the threshold of training. method: with the settings low, alpha, beta and epsilon.
    """
    cut = method.config.epsilon
    confidence, doubt = (partial(_labels_by, method, other, name) for name in ("confidence", "perplexity"))
    doubts = sorted({*PERPLEXITIES, cut})
    return {
        "confidence": Analysis("accuracy", "CAM labels by confidence", confidence, "confidence", CONFIDENCES),
        "perplexity": Analysis("accuracy", "CAM labels by perplexity", doubt, "perplexity", doubts, cut),
    }


def _labels_by(method: Any, other: str, name: str, images: Tensor, tags: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Labels (H,W) of one image with their confidence or perplexity (H,W), by the name of the CAMs."""
    cfg = method.config
    found = {}
    for which in (MAIN, *method.others().keys() & {other}):
        threshold = method.cam_threshold(which)[0]
        assigned = Assigned(method.cams(images, tags, which=which), tags > 0, threshold)
        labels, values = cam_assignment(assigned, (images.shape[-2], images.shape[-1]), cfg.low)
        if name == "perplexity":
            values = perplexity(values, threshold, cfg.alpha, cfg.beta)
        found[which] = labels[0], values[0]
    return found
