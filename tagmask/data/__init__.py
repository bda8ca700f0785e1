"""Data: sources of photos, tags and optional masks; reading and writing; training views; loaders; fingerprint."""

from __future__ import annotations

from tagmask.data.collection import Collection, ColourMap, Item, Problem
from tagmask.data.demo import write_demo
from tagmask.data.fingerprint import clean, fingerprint, print_fingerprint
from tagmask.data.loader import SampleSet, TrainLoader, eval_loader
from tagmask.data.opening import open_data
from tagmask.data.reading import palette, read_colour_map, read_image, read_mask, write_mask
from tagmask.data.views import TrainViews, make_affine, warp

__all__ = [
    "Collection",
    "ColourMap",
    "Item",
    "Problem",
    "SampleSet",
    "TrainLoader",
    "TrainViews",
    "clean",
    "eval_loader",
    "fingerprint",
    "make_affine",
    "open_data",
    "palette",
    "print_fingerprint",
    "read_colour_map",
    "read_image",
    "read_mask",
    "warp",
    "write_demo",
    "write_mask",
]
