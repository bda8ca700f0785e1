"""Pictures of label maps and activations on top of their photo."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from tagmask.data.pixels import palette
from tagmask.errors import DataError
from tagmask.types import IGNORE

STRIPE = 4
"""Width of the hatching of ignored pixels, in pixels."""


def overlay(image: np.ndarray, labels: np.ndarray, alpha: float = 0.55) -> np.ndarray:
    """The photo with its label map: classes tinted in VOC's colours and outlined, background as it is, 255 hatched.

    image: uint8 (H,W,3). labels: integers (H,W), 0..255. alpha: strength of the tint, in [0,1].
    Returns uint8 (H,W,3). Raises DataError where the sizes differ.
    """
    _same_size(image, labels)
    labels = labels.astype(np.uint8)
    tint = palette()[labels].astype(np.float32)
    rows, columns = np.indices(labels.shape)
    stripes = np.where((rows + columns) // STRIPE % 2, 225.0, 120.0)
    tint = np.where((labels == IGNORE)[..., None], stripes[..., None], tint)
    strength = np.where(labels == 0, 0.0, alpha)
    strength[_outline(labels) & (labels != 0) & (labels != IGNORE)] = 1.0
    mixed = image * (1 - strength[..., None]) + tint * strength[..., None]
    return mixed.round().clip(0, 255).astype(np.uint8)


def heat(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """The photo in grey with an activation on top, from purple (0) over green to yellow (1): equal steps look equal.

    image: uint8 (H,W,3). cam: (H,W), in [0,1] (values outside are cut). Returns uint8 (H,W,3). Raises DataError
    where the sizes differ.
    """
    _same_size(image, cam)
    cam = np.nan_to_num(cam.astype(np.float32)).clip(0, 1)[..., None]
    from matplotlib import colormaps

    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    colours = colormaps["viridis"](cam[..., 0])[..., :3] * 255
    # Weak activations leave the photo readable, strong ones are plain to see.
    strength = 0.25 + 0.45 * cam
    return (grey * (1 - strength) + colours * strength).round().clip(0, 255).astype(np.uint8)


def fitted(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """(h,w) of a picture of ``shape`` (H,W) whose longer side becomes ``side`` pixels."""
    factor = side / max(shape)
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def resized(picture: np.ndarray, size: tuple[int, int], labels: bool = False) -> np.ndarray:
    """A photo (H,W,3), label map or activation (H,W) at ``size`` (h,w).

    labels: take the nearest pixel, for uint8 label maps; else bilinear.
    """
    source = Image.fromarray(picture.astype(np.uint8) if labels or picture.ndim == 3 else picture.astype(np.float32))
    way = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR
    return np.asarray(source.resize((size[1], size[0]), way))


def data_uri(picture: np.ndarray) -> str:
    """A uint8 (H,W,3) picture as a JPEG ``data:`` address, to stand in an HTML page."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _outline(labels: np.ndarray) -> np.ndarray:
    """Pixels with a different label to the left or above."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    return edge


def _same_size(image: np.ndarray, other: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[:2] != other.shape:
        raise DataError(f"A picture needs an RGB photo (H,W,3) and a map (H,W); got {image.shape} and {other.shape}.")
