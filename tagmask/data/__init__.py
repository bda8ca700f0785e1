"""Data: sources of photos, tags and optional masks; reading and writing; training views; loaders; fingerprint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tagmask.data.collection import Collection, Item, tag_vector
from tagmask.data.detect import open_data
from tagmask.data.fingerprint import clean, fingerprint, look_at, print_fingerprint
from tagmask.data.photos import read_ahead
from tagmask.data.pixels import palette, read_colour_map, read_image, read_mask, true_mask, write_mask
from tagmask.data.source_demo import write_demo
from tagmask.lazy import lazy

if TYPE_CHECKING:
    from tagmask.data.loader import TrainLoader
    from tagmask.data.views import TrainViews, make_affine, warp

__all__ = [
    "Collection",
    "Item",
    "TrainLoader",
    "TrainViews",
    "clean",
    "fingerprint",
    "look_at",
    "make_affine",
    "open_data",
    "palette",
    "print_fingerprint",
    "read_ahead",
    "read_colour_map",
    "read_image",
    "read_mask",
    "tag_vector",
    "true_mask",
    "warp",
    "write_demo",
    "write_mask",
]

__getattr__ = lazy(__name__, {"loader": ["TrainLoader"], "views": ["TrainViews", "make_affine", "warp"]})
