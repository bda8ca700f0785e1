"""A photo with its label map: shown on the photo, and as what other tools take."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tagmask.data import write_mask
from tagmask.data.pixels import palette
from tagmask.errors import ConfigError
from tagmask.label.overlay import fitted, overlay, resized
from tagmask.parts import coco_objects
from tagmask.types import IGNORE

SHOWN = 800
"""Pixels of a shown picture's longer side, at most."""


@dataclass(eq=False)
class Mask:
    """labels: uint8 (H,W), 0 background, 1..C classes, 255 unsure. photo: uint8 (H,W,3). classes: names, from the
    background on."""

    labels: np.ndarray = field(repr=False)
    classes: list[str]
    photo: np.ndarray = field(repr=False)

    def found(self) -> dict[str, float]:
        """Share of the photo's pixels by class, background left out, largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=256) / self.labels.size
        shares = {name: float(counts[i]) for i, name in enumerate(self.classes) if i and counts[i]}
        return dict(sorted(shares.items(), key=lambda pair: -pair[1]))

    def save(self, path: str | Path) -> None:
        """Write the label map as a palette PNG."""
        write_mask(Path(path), self.labels)

    def overlay(self, side: int = SHOWN) -> np.ndarray:
        """The label map on its photo, uint8 (h,w,3), whose longer side is at most ``side`` pixels."""
        size = fitted(self.labels.shape, min(side, max(self.labels.shape)))
        return overlay(resized(self.photo, size), resized(self.labels, size, labels=True))

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        file = io.BytesIO()
        Image.fromarray(self.overlay()).save(file, format="PNG")
        return file.getvalue()

    def show(self) -> None:
        """Show the label map on its photo: in the notebook, elsewhere in the system's viewer of pictures."""
        python = sys.modules.get("IPython")
        if python is not None and getattr(python.get_ipython(), "kernel", None) is not None:  # a terminal has none
            python.display.display(self)
        else:
            Image.fromarray(self.overlay()).show()

    def to_pil(self) -> Image.Image:
        """The label map as a palette picture (mode P) in VOC's colours."""
        picture = Image.fromarray(self.labels)
        picture.putpalette(palette().tobytes())
        return picture

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO's objects, one for each connected part of a class: category_id (the label), category, segmentation
        (packed run lengths), area, bbox (x, y, width, height). Raises DataError without pycocotools."""
        found = coco_objects(self.labels, leave_out=(0, IGNORE))
        return [{**entry, "category": self.classes[entry["category_id"]]} for entry in found]

    def to_supervision(self) -> Any:
        """``supervision.Detections``, one for each class: xyxy, mask (n,H,W), class_id (the label), confidence (mean
        score of its pixels, where there are scores), data['class_name']. Raises ConfigError without supervision."""
        try:
            import supervision
        except ImportError as error:
            raise ConfigError("supervision is not installed: pip install supervision.") from error
        labels = np.array([i for i in np.unique(self.labels).tolist() if i not in (0, IGNORE)], dtype=int)
        masks = self.labels[None] == labels[:, None, None]
        return supervision.Detections(
            xyxy=supervision.mask_to_xyxy(masks).astype(float) if len(labels) else np.empty((0, 4)),
            mask=masks,
            class_id=labels,
            confidence=self._confidence(labels),
            data={"class_name": np.array([self.classes[i] for i in labels], dtype=str)},
        )

    def _confidence(self, labels: np.ndarray) -> np.ndarray | None:
        """(n,) how sure each of the labels is, in [0,1]; None where nothing says it."""
        return None


@dataclass(eq=False)
class Prediction(Mask):
    """scores: float32 (C+1,h,w) on the grid that the model worked on: the photo's own unless ``views.short_side`` of
    the run reduced it. In labels made with tags, a class that wins nowhere in the scores may come from its CAM
    (``label.complete``).
    """

    scores: np.ndarray = field(repr=False)

    def _confidence(self, labels: np.ndarray) -> np.ndarray:
        size = self.labels.shape[0], self.labels.shape[1]
        return np.array([resized(self.scores[i], size)[self.labels == i].mean() for i in labels], dtype=float)
