"""Promptable models (SAM, SAM 2, SAM-HQ, EdgeTAM, SAM 3's tracker) through transformers: masks of points on a photo."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from tagmask.errors import ConfigError, DataError, WeightsError

Point = tuple[int, int]
"""x and y in pixels of the photo."""


class Promptable:
    """A model that turns points on a photo into a mask.

    name: a folder that transformers' ``save_pretrained`` wrote, or a model of the hub, as facebook/sam2.1-hiera-tiny.
    What the model makes of the last photo before it knows the points is kept, so that the second click is quick.
    Raises ConfigError without transformers, WeightsError where the model cannot be had.
    """

    def __init__(self, name: str | Path, device: str = "cpu") -> None:
        try:
            from transformers import AutoModelForMaskGeneration, AutoProcessor
        except ImportError as error:
            raise ConfigError("Promptable models need transformers: pip install 'tagmask[guides]'.") from error
        try:
            self.processor: Any = AutoProcessor.from_pretrained(name)
            self.model: Any = AutoModelForMaskGeneration.from_pretrained(name).eval().to(device)
        except Exception as error:  # transformers and the hub raise many types
            raise WeightsError(
                f"{name}: not a promptable model that transformers can load ({' '.join(str(error).split())[:200]}). "
                "Give a folder with config.json, its weights and its processor, or a model's name on the hub."
            ) from error
        self.device, self._lock = device, Lock()
        self._seen: tuple[str, Any] = ("", None)

    @torch.inference_mode()
    def mask(self, photo: np.ndarray, inside: Sequence[Point], outside: Sequence[Point] = ()) -> np.ndarray:
        """The best mask bool (h,w), by the model's own score, of a photo uint8 (h,w,3) and one point inside or more."""
        points = [[float(x), float(y)] for x, y in (*inside, *outside)]
        given = self.processor(
            images=photo,
            input_points=[[points]],
            input_labels=[[[1] * len(inside) + [0] * len(outside)]],
            return_tensors="pt",
        ).to(self.device)
        sizes = [given.pop("original_sizes"), given.pop("reshaped_input_sizes", None)]
        pixels = given.pop("pixel_values")
        with self._lock:
            found = self.model(**given, **self._image(photo, pixels))
        masks = self.processor.post_process_masks(found.pred_masks.cpu(), *(s for s in sizes if s is not None))[0]
        return masks[0, int(found.iou_scores[0, 0].argmax())].numpy()

    def _image(self, photo: np.ndarray, pixels: torch.Tensor) -> dict[str, Any]:
        """What the model takes of the image: its embeddings, or for SAM-HQ, which needs more than these, its pixels."""
        if self.model.config.model_type == "sam_hq":
            return {"pixel_values": pixels}
        key = hashlib.sha256(photo.tobytes()).hexdigest()
        if self._seen[0] != key:
            self._seen = (key, self.model.get_image_embeddings(pixels))
        return {"image_embeddings": self._seen[1]}

    def spread(self, photo: np.ndarray, labels: np.ndarray, seeds: Sequence[tuple[int, int, int]]) -> np.ndarray:
        """The label map uint8 (h,w) after clicks (x, y, label), as ``tagmask.view.spread`` gives it by a random walk.

        A class's clicks are points inside of it, all others points outside. Clicks with the background (0) take away
        what the model finds there. Raises DataError for seeds outside of the photo.
        """
        height, width = labels.shape
        if any(not (0 <= x < width and 0 <= y < height) for x, y, _ in seeds):
            raise DataError(f"A seed lies outside of the photo of {width}x{height} pixels.")
        result = labels.copy()
        for label in sorted({label for *_, label in seeds}):  # so that classes lie over the background
            inside = [(x, y) for x, y, own in seeds if own == label]
            outside = [(x, y) for x, y, own in seeds if own != label]
            result[self.mask(photo, inside, outside)] = label
        return result
