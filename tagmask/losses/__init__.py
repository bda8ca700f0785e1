"""Losses, one a file. The multi-label classification loss is torch's own ``multilabel_soft_margin_loss``."""

from __future__ import annotations

from tagmask.losses.affinity import affinity_labels, affinity_loss, downsample_labels
from tagmask.losses.balanced_cross_entropy import balanced_cross_entropy
from tagmask.losses.cam_correspondence import cam_correspondence
from tagmask.losses.cam_to_seg import cam_to_seg
from tagmask.losses.contrastive_separation import contrastive_separation
from tagmask.losses.dense_energy import DenseEnergy
from tagmask.losses.equivariance import equivariance
from tagmask.losses.multi_scale_attention import multi_scale_attention
from tagmask.losses.pair_affinity import pair_affinity_loss, pair_labels
from tagmask.losses.perplexity import perplexity
from tagmask.losses.regional_contrast import region_cross_entropy, regional_contrast
from tagmask.losses.seg_to_cam import seg_to_cam, segmentation_labels
from tagmask.losses.self_correspondence import self_correspondence

__all__ = [
    "DenseEnergy",
    "affinity_labels",
    "affinity_loss",
    "balanced_cross_entropy",
    "cam_correspondence",
    "cam_to_seg",
    "contrastive_separation",
    "downsample_labels",
    "equivariance",
    "multi_scale_attention",
    "pair_affinity_loss",
    "pair_labels",
    "perplexity",
    "region_cross_entropy",
    "regional_contrast",
    "seg_to_cam",
    "segmentation_labels",
    "self_correspondence",
]
