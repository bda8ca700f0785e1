"""Class activation maps (CAMs): multi-scale, normalised, thresholded into labels."""

from __future__ import annotations

from tagmask.cam.affinity_region_maps import PrototypeCalibration, affinity_region_maps, cam_seeds, region_labels
from tagmask.cam.cut_and_merge import cut_and_merge
from tagmask.cam.labels import cam_labels, pseudo_labels, refined_scores
from tagmask.cam.maps import multi_scale, normalize, peak_normalize
from tagmask.cam.mixture import Mixture, crossing, fit_two_components
from tagmask.cam.regions import class_prototypes, region_masks
from tagmask.cam.threshold import DynamicThreshold

__all__ = [
    "DynamicThreshold",
    "Mixture",
    "PrototypeCalibration",
    "affinity_region_maps",
    "crossing",
    "cut_and_merge",
    "fit_two_components",
    "cam_labels",
    "cam_seeds",
    "class_prototypes",
    "multi_scale",
    "normalize",
    "peak_normalize",
    "pseudo_labels",
    "refined_scores",
    "region_labels",
    "region_masks",
]
