"""Weakly supervised localisation: is the box around a class's activation the box of the object?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchvision.ops import box_iou

from tagmask.evaluate.bootstrap import interval_of, resampled_means
from tagmask.evaluate.confusion import LabelError, to_numpy

KEYS = ("top1", "top5", "gt_known", "top1_class", "top5_class")


class Localization:
    """Streaming localisation scores over images that show one class each.

    GT-known: the box from the true class's CAM overlaps a true box with IoU ≥ ``iou``. Top-1 and top-5: the same,
    and the class is the best, or among the five best, by score. The box encloses the largest 8-connected region
    where CAM / max(CAM) > ``threshold``; a CAM without a positive value has no box.

    iou: overlap that counts, in (0,1]. threshold: share of the CAM's maximum, in [0,1). thresholds: further ones, at
    which GT-known is counted for MaxBoxAcc (Choe et al., Evaluating Weakly Supervised Object Localization Methods
    Right, CVPR 2020, section 4): its largest value over thresholds, the same for all images, with the box of the
    largest region. Chosen on the images that it is reported for it is an upper bound: choose on others.
    """

    def __init__(self, iou: float = 0.5, threshold: float = 0.2, thresholds: Sequence[float] = ()) -> None:
        if not 0 < iou <= 1 or not all(0 <= t < 1 for t in (threshold, *thresholds)):
            raise LabelError(f"iou is {iou} and threshold {threshold}; they lie in (0,1] and [0,1), others as well.")
        self.iou = iou
        self.threshold = threshold
        self.thresholds = sorted(thresholds)
        # Of each image: whether it counts for each of KEYS, then for each of the thresholds.
        self._hits: list[list[bool]] = []

    def update(self, cams: Any, class_scores: Any, labels: Any, boxes: Any) -> Localization:
        """Add N images; returns itself.

        cams: (N,C,H,W), or N maps (C,H,W) of different sizes. class_scores: (N,C). labels: (N,) class indices from 0
        (no background). boxes: (N,4), or N arrays (n,4) where an image has several, as (x0,y0,x1,y1), half-open,
        in pixels of the CAM. Raises LabelError (a ValueError) where they do not fit.
        """
        scores, labels = to_numpy(class_scores), to_numpy(labels).astype(np.int64)
        if scores.ndim != 2 or not len(cams) == len(scores) == len(labels) == len(boxes):
            raise LabelError(
                f"Got {len(cams)} CAMs, scores {scores.shape}, {len(labels)} labels and {len(boxes)} boxes; "
                "each image needs one of each."
            )
        for cam, score, label, truth in zip(cams, scores, labels, boxes):
            if not 0 <= label < len(score) or len(cam) != len(score):
                raise LabelError(f"Label {label} or a CAM of {len(cam)} channels does not fit {len(score)} classes.")
            # Of equal scores the lower index comes first, as argmax has it.
            rank = int((score > score[label]).sum() + (score[:label] == score[label]).sum())
            true = torch.from_numpy(to_numpy(truth).reshape(-1, 4).astype(np.float64))
            own = to_numpy(cam[int(label)])
            found = self._found(own, true, self.threshold)
            hits = [found and rank < 1, found and rank < 5, found, rank < 1, rank < 5]
            self._hits.append([*hits, *(self._found(own, true, t) for t in self.thresholds)])
        return self

    def _found(self, cam: np.ndarray, boxes: Tensor, threshold: float) -> bool:
        box = cam_box(cam, threshold)
        return box is not None and bool((box_iou(boxes.new_tensor([box]), boxes) >= self.iou).any())

    @property
    def images(self) -> int:
        """How many were added."""
        return len(self._hits)

    def result(self, bootstrap: int = 0, seed: int = 0) -> dict[str, Any]:
        """Shares in [0,1]: top1, top5, gt_known (boxes), top1_class, top5_class (classes only), and images.

        With ``thresholds`` also max_box_acc, best_threshold (the lowest of equals) and curve {thresholds, box_acc}.
        bootstrap: resamples of the images for intervals {key: {low, high, std, resamples}}, 0 for none; that of
        max_box_acc is at the best threshold: that it was chosen on these images is not in it.
        """
        if not self.images:
            return dict.fromkeys(KEYS, float("nan")) | {"images": 0}
        hits = np.array(self._hits, dtype=np.float64)
        shares = hits.mean(axis=0).tolist()
        result: dict[str, Any] = dict(zip(KEYS, shares)) | {"images": self.images}
        columns = {key: i for i, key in enumerate(KEYS)}
        if self.thresholds:
            accuracies = shares[len(KEYS) :]
            best = int(np.argmax(accuracies))
            columns["max_box_acc"] = len(KEYS) + best
            result |= {
                "max_box_acc": accuracies[best],
                "best_threshold": self.thresholds[best],
                "curve": {"thresholds": self.thresholds, "box_acc": accuracies},
            }
        if bootstrap:
            drawn = resampled_means(hits[:, list(columns.values())], bootstrap, seed)
            result["intervals"] = {key: interval_of(values) for key, values in zip(columns, drawn.T)}
        return result


def cam_box(cam: Any, threshold: float = 0.2) -> tuple[int, int, int, int] | None:
    """Box (x0,y0,x1,y1), half-open, of the largest 8-connected region of (H,W) ``cam`` above threshold · max.

    None where the maximum is not positive.
    """
    cam = to_numpy(cam).astype(np.float64)
    if cam.ndim != 2:
        raise LabelError(f"A CAM of one class is (H,W), this one has shape {cam.shape}.")
    peak = cam.max(initial=0.0)
    if not peak > 0:
        return None
    regions, _ = ndimage.label(cam > threshold * peak, structure=np.ones((3, 3)))
    largest = int(np.bincount(regions.ravel())[1:].argmax())
    rows, columns = ndimage.find_objects(regions)[largest]
    return columns.start, rows.start, columns.stop, rows.stop
