"""Pictures of a photo, its label maps and activations, as files for a browser. Thumbnails are kept on the disk."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tagmask.data import Item, palette, read_image, read_mask, tag_vector, true_mask
from tagmask.data.review import whoami
from tagmask.errors import DataError
from tagmask.files import written
from tagmask.label import Inference, Look
from tagmask.label.infer import values_in
from tagmask.label.overlay import fitted, overlay, resized
from tagmask.registry import METHODS
from tagmask.types import IGNORE
from tagmask.view.index import Index
from tagmask.workflow.opened import Run

THUMB = 256
LARGEST = 2048
"""Longest side of a thumbnail and of a photo that is shown large, pixels."""
KEPT = 12
"""Photos whose results of the networks are kept in memory."""
CACHE = ".view"
"""In a run folder: thumbnails. It can be deleted at any time."""
KINDS = ("mask", "prediction", "refined", "truth")
"""Label maps of a photo: of its file, of the segmenter without tags, of the refined CAMs, and the true one."""


class Pictures:
    """What is shown of the photos of a run. Its networks are loaded when they are first asked for."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.run: Run = index.run
        self._looks: OrderedDict[tuple[int, bool], Look] = OrderedDict()
        self._lock = threading.RLock()  # the networks take one photo at a time

    def photo(self, n: int) -> np.ndarray:
        """uint8 (h,w,3) at the size that is served. Raises DataError for a photo that cannot be read."""
        return _shown(read_image(self.index.items[n].image).permute(1, 2, 0).numpy())

    def mask_file(self, n: int) -> Path | None:
        """The file of the photo's mask: that of the review, of masks/ or of predictions/."""
        item, corrected = self.index.items[n], self.index.decision(n).mask
        folders = (self.run.folder.masks, self.run.folder.path / "predictions")
        made = (folder / f"{item.id}.png" for folder in folders)
        return next((path for path in (corrected, *made) if path is not None and path.is_file()), None)

    def row(self, n: int) -> dict[str, Any]:
        """The photo's row of the index, but 'found' says what its mask holds now."""
        path = self.mask_file(n)
        if path is None:
            return self.index.row(n)
        there = values_in(read_mask(path, len(self.index.classes)))
        return self.index.row(n) | {"found": sorted(there - {0, IGNORE})}

    def kinds(self, n: int) -> list[str]:
        """The label maps that there are of a photo."""
        item = self.index.items[n]
        there = {
            "mask": self.mask_file(n) is not None,
            "prediction": self.segments,
            "refined": self.has_cams and item.tags is not None,
            "truth": item.mask is not None,
        }
        return [kind for kind in KINDS if there[kind]]

    @property
    def segments(self) -> bool:
        """Whether a segmenter is trained."""
        return self.run.last.trained and METHODS.get(self.run.last.config.method.name).has_segmenter

    @property
    def has_cams(self) -> bool:
        """Whether a classifier is trained."""
        return self.run.trained and METHODS.get(self.run.config.method.name).has_cams

    def layer(self, n: int, kind: str) -> np.ndarray:
        """uint8 (h,w) label map at the size that is served. Raises DataError where there is none."""
        if kind not in self.kinds(n):
            raise DataError(f"There is no {kind} of '{self.index.items[n].id}'.")
        if kind == "mask":
            labels = read_mask(self.mask_file(n) or "", len(self.index.classes))
        elif kind == "truth":
            labels = true_mask(self.index.items[n], self.run.collection)
        else:
            with self._lock:
                look = self._look(n, classifier=kind == "refined")
                labels = (look.refined_labels if kind == "refined" else look.prediction[0]).cpu()
        return _shown(labels.numpy(), labels=True)

    def sure(self, n: int) -> np.ndarray:
        """uint8 (h,w): 255 times the segmenter's largest probability. Raises DataError without a segmenter."""
        if not self.segments:
            raise DataError("There is no segmenter.")
        with self._lock:
            look = self._look(n, classifier=False)
            best = (look.prediction[1].amax(0) * 255).round().byte().cpu().numpy()
        return resized(best, fitted_within(look.photo.shape[-2:]), labels=True)

    def cam(self, n: int, label: int) -> np.ndarray:
        """uint8 (h,w): 255 times the activation of a class. Raises DataError without a classifier."""
        if not self.has_cams or not 1 <= label <= len(self.index.classes):
            raise DataError("There is no class activation map of it.")
        with self._lock:
            cams = self._look(n, classifier=True).cams
            if float(cams[label - 1].amax()) == 0:  # of a class that is no tag
                inference = self._inference(True)
                cams = inference.cams(self._look(n, classifier=True).photo, None)
        return (cams[label - 1] * 255).round().byte().cpu().numpy()

    def _inference(self, classifier: bool) -> Inference:
        return self.run.inference if classifier else self.run.last.inference

    def _look(self, n: int, classifier: bool) -> Look:
        key = (n, classifier)
        if key not in self._looks:
            item = self.index.items[n]
            tags = None if item.tags is None else tag_vector(item.tags, len(self.index.classes))
            self._looks[key] = Look(self._inference(classifier), read_image(item.image), tags)
            while len(self._looks) > KEPT:
                self._looks.popitem(last=False)
        self._looks.move_to_end(key)
        return self._looks[key]

    def thumb(self, n: int) -> bytes:
        """JPEG of the photo with its mask. Kept in the run's folder .view/, where that can be written to."""
        item, mask = self.index.items[n], self.mask_file(n)
        stamp = [mask.stat().st_mtime_ns, mask] if mask is not None else []
        key = hashlib.sha256("|".join(map(str, [item.id, item.image, *stamp])).encode()).hexdigest()
        path = self.run.folder.path / CACHE / key[:2] / f"{key[2:34]}.jpg"
        with suppress(OSError):
            return path.read_bytes()
        data = self._thumb(item, mask)
        with suppress(DataError, OSError), written(path) as part:
            part.write_bytes(data)
        return data

    def _thumb(self, item: Item, mask: Path | None) -> bytes:
        image = read_image(item.image).permute(1, 2, 0).numpy()
        size = fitted(image.shape[:2], THUMB)
        small = resized(image, size)
        if mask is not None:
            labels = read_mask(mask, len(self.index.classes))
            small = overlay(small, resized(labels.numpy(), size, labels=True))
        return jpeg(small, 80)

    def corrected(self, n: int, data: bytes) -> np.ndarray:
        """The label map uint8 (H,W) of a PNG that the page sent, at the photo's own size.

        Of a photo that is shown smaller, pixels stay as they are in the mask's file where the page changed nothing.
        Raises DataError for what is no such map: labels that there are not, another size.
        """
        image = read_image(self.index.items[n].image)
        size = (image.shape[-2], image.shape[-1])
        labels = self.sent(data, fitted_within(size))
        path = self.mask_file(n)
        if path is None or labels.shape == size:
            return resized(labels, size, labels=True)
        before = read_mask(path, len(self.index.classes)).numpy()
        changed = resized((labels != _shown(before, labels=True)).astype(np.uint8), size, labels=True)
        return np.where(changed, resized(labels, size, labels=True), before)

    def sent(self, data: bytes | str, size: tuple[int, ...]) -> np.ndarray:
        """The label map uint8 (h,w) that the page sent. Raises DataError for other labels or another size."""
        labels = decode(data)
        if labels.shape != size:
            raise DataError(f"A mask of {labels.shape[1]}x{labels.shape[0]} pixels does not fit the photo.")
        wrong = labels[(labels > len(self.index.classes)) & (labels != IGNORE)]
        if wrong.size:
            raise DataError(f"The mask holds {int(wrong[0])}, which is no class.")
        return labels


def describe(pictures: Sequence[Pictures], editable: bool) -> dict[str, Any]:
    """What the page needs to know of the runs, the first of which is reviewed, before it shows photos."""
    first, index = pictures[0], pictures[0].index
    splits = first.run.collection.splits
    made = {"mask": True, "prediction": first.segments, "refined": first.has_cams}
    made["truth"] = any(item.mask is not None for item in index.items)
    names = [one.run.folder.path.resolve().name for one in pictures]
    return {
        "title": names[0],
        "runs": names,
        "classes": ["background", *index.classes],
        "colours": ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in palette()[: len(index.classes) + 1]],
        "splits": [name for name in splits if splits[name]],
        "photos": len(index.items),
        "kinds": [kind for kind in KINDS if made[kind]],
        "cams": first.has_cams,
        "editable": editable,
        "author": whoami(),
        "sorts": index.sorts(),
    }


def fitted_within(shape: tuple[int, ...]) -> tuple[int, int]:
    """(h,w) at which a photo (H,W) is shown large."""
    return (shape[0], shape[1]) if max(shape) <= LARGEST else fitted(shape, LARGEST)


def _shown(picture: np.ndarray, labels: bool = False) -> np.ndarray:
    size = fitted_within(picture.shape[:2])
    return picture if size == picture.shape[:2] else resized(picture, size, labels)


def jpeg(picture: np.ndarray, quality: int = 90) -> bytes:
    """A picture uint8 (h,w,3) as a file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def encode(values: np.ndarray) -> bytes:
    """uint8 (h,w) as an RGBA PNG whose red is the value: browsers give its pixels back as they are."""
    rgba = np.zeros((*values.shape, 4), dtype=np.uint8)
    rgba[..., 0], rgba[..., 3] = values, 255
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def decode(data: bytes | str) -> np.ndarray:
    """The values uint8 (h,w) of such a PNG, or of its data address. Raises DataError for anything else."""
    try:
        if isinstance(data, str):
            data = base64.b64decode(data.removeprefix("data:image/png;base64,"), validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
            if max(opened.size) > LARGEST:
                raise DataError(f"A mask of {opened.width}x{opened.height} pixels is too large.")
            return np.asarray(opened.convert("RGBA"))[..., 0].copy()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"Not a PNG ({error}).") from error
