"""A trained method against true masks, photo by photo: every score of a split in one pass, nothing kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tagmask.config import RunConfig
from tagmask.data import Collection, Item, read_image, read_mask
from tagmask.errors import DataError
from tagmask.evaluate import ScoreStream, ThresholdCurve
from tagmask.label import Inference, tag_vector
from tagmask.methods import Method

TAGGED = ("cam", "refined", "masks", "segmenter+tags")
"""Scores that use the image's tags at test time; 'segmenter' is the one that does not."""
SCORES = (*TAGGED, "segmenter")
AT_VAL = "cam (val threshold)"


class Scorer:
    """Collects scores over items: ``streams`` by name, the CAM ``curve``, ``class_scores`` and ``tags`` for mAP.

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
        self.inference = Inference(method, config.label, config.train.precision)
        self.collection = collection
        self.classes = len(collection.classes)
        self.val_threshold = val_threshold
        self.masks = masks
        self.streams = {name: ScoreStream(collection.num_classes) for name in self.names}
        self.curve = ThresholdCurve(collection.num_classes, config.evaluate.bins) if "cam" in names else None
        self.class_scores: list[Tensor] = []
        self.tags: list[Tensor] = []

    def add(self, item: Item) -> None:
        """Score one photo. Without a true mask it counts for the class scores only. Raises DataError."""
        photo = read_image(item.image)
        tags = None if item.tags is None else tag_vector(item.tags, self.classes)
        class_scores = self.inference.class_scores(photo)
        if class_scores is not None and tags is not None:
            self.class_scores.append(class_scores)
            self.tags.append(tags)
        if item.mask is None:
            return
        truth = read_mask(item.mask, self.classes, self.collection.colour_map)
        if tags is None:
            if any(name in TAGGED for name in self.names):
                raise DataError(f"{item.image}: has no tags, so only 'segmenter' can be scored; use --what segmenter.")
            tags = torch.zeros(self.classes)
        for name, labels in self._predictions(item, photo, tags, truth):
            self.streams[name].update(item.id, labels.cpu(), truth)

    def _predictions(self, item: Item, photo: Tensor, tags: Tensor, truth: Tensor) -> Iterator[tuple[str, Tensor]]:
        inference = self.inference
        if "cam" in self.names or "refined" in self.names:
            cams = inference.cams(photo, tags)
            if self.curve is not None:
                self.curve.update(cams.cpu(), tags, truth)
                yield "cam", _cut(cams, inference.config.threshold)
            if self.val_threshold is not None and AT_VAL in self.names:
                yield AT_VAL, _cut(cams, self.val_threshold)
            if "refined" in self.names:
                yield "refined", inference.refine(photo, cams, tags).max(dim=0).indices
        if "masks" in self.names:
            path = (self.masks or Path()) / f"{item.id}.png"
            if not path.is_file():
                raise DataError(f"{path}: there is no such mask; 'tagmask label' writes the masks that are scored.")
            yield "masks", read_mask(path, self.classes)
        if "segmenter+tags" in self.names:
            yield "segmenter+tags", inference.probabilities(photo, tags).max(dim=0).indices
        if "segmenter" in self.names:
            yield "segmenter", inference.predict(photo)[0]


def _cut(cams: Tensor, threshold: float) -> Tensor:
    best, labels = cams.max(dim=0)
    return (labels + 1) * (best > threshold)
