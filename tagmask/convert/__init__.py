"""Conversion: benchmarks' own files to masks and tags that tagmask reads, and masks to what test servers take."""

from __future__ import annotations

from tagmask.convert.coco import coco_masks, coco_results
from tagmask.convert.label_file import image_names, read_label_file, write_tags
from tagmask.convert.sbd import sbd_masks
from tagmask.convert.voc import voc_submission

__all__ = ["coco_masks", "coco_results", "image_names", "read_label_file", "sbd_masks", "voc_submission", "write_tags"]
