"""A trained method against true masks, photo by photo: every score of a split in one pass, nothing kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tagmask.config import RunConfig
from tagmask.data import Collection, Item, read_mask, tag_vector
from tagmask.errors import DataError
from tagmask.evaluate import ScoreStream, ThresholdCurve
from tagmask.label import Inference
from tagmask.label.infer import best_labels
from tagmask.methods import Method

TAGGED = ("cam", "refined", "masks", "segmenter+tags")
"""Scores that use the image's tags at test time; 'segmenter' is the one that does not."""
SCORES = (*TAGGED, "segmenter")
AT_VAL = "cam (val threshold)"


class Scorer:
    """Collects scores over items.

    ``streams`` by name, the CAM ``curve``, ``class_scores`` and ``tags`` for mAP, ``sizes`` (h,w) of the working grids.

    names: of SCORES. val_threshold: with 'cam', adds 'cam (val threshold)' at this background score.
    masks: folder of the label maps that 'masks' compares.
    """

    def __init__(
        self,
        method: Method,
        config: RunConfig,
        collection: Collection,
        names: Sequence[str],
        val_threshold: float | None = None,
        masks: Path | None = None,
    ) -> None:
        self.names = [*names, AT_VAL] if "cam" in names and val_threshold is not None else list(names)
        self.inference = Inference(method, config)
        self.collection = collection
        self.classes = len(collection.classes)
        self.val_threshold = val_threshold
        self.masks = masks
        self.streams = {name: ScoreStream(collection.num_classes) for name in self.names}
        self.curve = ThresholdCurve(collection.num_classes, config.evaluate.bins) if "cam" in names else None
        self.untagged = 0
        self.sizes: list[tuple[int, ...]] = []
        self.class_scores: list[Tensor] = []
        self.tags: list[Tensor] = []

    def add(self, item: Item, photo: Tensor | DataError) -> None:
        """Score one photo, uint8 (3,H,W), as ``read_ahead`` gives it.

        Without a true mask it counts for the class scores only. A photo without tags takes part in
        'segmenter' only and is counted in ``untagged``. Raises DataError.
        """
        if isinstance(photo, DataError):
            raise photo
        tags = None if item.tags is None else tag_vector(item.tags, self.classes)
        class_scores = self.inference.class_scores(photo)
        if class_scores is not None and tags is not None:
            self.class_scores.append(class_scores)
            self.tags.append(tags)
        if item.mask is None:
            return
        self.sizes.append(tuple(self.inference.batch(photo).shape[-2:]))
        truth = read_mask(item.mask, self.classes, self.collection.colour_map)
        names = self.names
        if tags is None:
            names = [name for name in names if name not in (*TAGGED, AT_VAL)]
            self.untagged += 1
            tags = torch.zeros(self.classes)
        for name, labels in self._predictions(item, photo, tags, truth, names):
            self.streams[name].update(item.id, labels.cpu(), truth)

    def _predictions(
        self, item: Item, photo: Tensor, tags: Tensor, truth: Tensor, names: Sequence[str]
    ) -> Iterator[tuple[str, Tensor]]:
        inference = self.inference
        if "cam" in names or "refined" in names:
            cams = inference.cams(photo, tags)
            if self.curve is not None:
                full = F.interpolate(cams[None], size=truth.shape, mode="bilinear", align_corners=False)[0]
                self.curve.update(full.cpu(), tags, truth)
                yield "cam", _cut(full, inference.config.threshold)
                if self.val_threshold is not None:
                    yield AT_VAL, _cut(full, self.val_threshold)
            if "refined" in names:
                yield "refined", best_labels(inference.refine(photo, cams, tags), photo)
        if "masks" in names:
            path = (self.masks or Path()) / f"{item.id}.png"
            if not path.is_file():
                raise DataError(f"{path}: there is no such mask; 'tagmask label' writes the masks that are scored.")
            yield "masks", read_mask(path, self.classes)
        if "segmenter+tags" in names:
            yield "segmenter+tags", best_labels(inference.probabilities(photo, tags), photo, inference.config.unsure)
        if "segmenter" in names:
            yield "segmenter", inference.predict(photo)[0]


def _cut(cams: Tensor, threshold: float) -> Tensor:
    best, labels = cams.max(dim=0)
    return (labels + 1) * (best > threshold)
