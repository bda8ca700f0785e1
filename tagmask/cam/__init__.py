"""Class activation maps: over scales, normalised, cut into labels."""

from __future__ import annotations

from tagmask.cam.labels import cam_labels, inside, pseudo_labels, refined_scores
from tagmask.cam.maps import multi_scale, normalize
from tagmask.cam.threshold import DynamicThreshold, Mixture, crossing, fit_two_components

__all__ = [
    "DynamicThreshold",
    "Mixture",
    "crossing",
    "fit_two_components",
    "cam_labels",
    "inside",
    "multi_scale",
    "normalize",
    "pseudo_labels",
    "refined_scores",
]
