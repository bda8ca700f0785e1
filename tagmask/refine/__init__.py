"""Refinement of maps by the image: PAR, PAMR, VARM, dense CRF, random walk, and the permutohedral lattice."""

from __future__ import annotations

from tagmask.refine.affinity_graph import path_affinity, pixel_affinity, radius_edges
from tagmask.refine.crf import PRESETS, DenseCRF, label_probabilities
from tagmask.refine.lattice import PermutohedralLattice
from tagmask.refine.neighbours import LocalRefiner
from tagmask.refine.pamr import PAMR
from tagmask.refine.par import PAR
from tagmask.refine.random_walk import random_walk
from tagmask.refine.seeded_walk import seeded_walk
from tagmask.refine.varm import VARM

__all__ = [
    "PAMR",
    "PAR",
    "PRESETS",
    "VARM",
    "DenseCRF",
    "LocalRefiner",
    "PermutohedralLattice",
    "label_probabilities",
    "path_affinity",
    "pixel_affinity",
    "radius_edges",
    "random_walk",
    "seeded_walk",
]
