"""Conversion: benchmarks' own files to masks and tags, masks to what test servers take, and to other tools and back."""

from __future__ import annotations

from tagmask.convert.coco import coco_masks, coco_results
from tagmask.convert.label_file import image_names, read_label_file, write_tags
from tagmask.convert.masks import FORMATS, masks_from, masks_to
from tagmask.convert.sbd import sbd_masks
from tagmask.convert.voc import voc_submission

__all__ = [
    "FORMATS",
    "coco_masks",
    "coco_results",
    "image_names",
    "masks_from",
    "masks_to",
    "read_label_file",
    "sbd_masks",
    "voc_submission",
    "write_tags",
]
