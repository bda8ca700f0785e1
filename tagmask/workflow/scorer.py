"""A trained method against true masks, photo by photo: every score of a split in one pass, nothing kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tagmask.config import EvaluateConfig
from tagmask.data import Collection, Item, read_mask, true_mask
from tagmask.errors import ConfigError, DataError
from tagmask.evaluate import ScoreStream, ThresholdCurve
from tagmask.label import Inference, Look
from tagmask.label.infer import best_labels, random_field

TAGGED = ("cam", "refined", "cam+crf", "seeds", "masks", "segmenter+tags")
"""Scores that use the image's tags at test time; 'segmenter' is the one that does not."""
SCORES = (*TAGGED, "segmenter")
FILES = ("seeds", "masks")
"""Those of label files that were written before: a run's folders of these names."""
AT_VAL = "cam (val threshold)"
LOCALIZATION, SPREAD, QUALITY = "localization", "spread", "quality"
"""Scores that go over the photos by themselves, see ``localize``, ``spread`` and ``quality``."""


def photos_of(name: str, collection: Collection, split: str) -> list[Item]:
    """Photos of a split that a score compares with a truth. Opens no file; raises DataError where there is none.

    Tags are enough for none of them: 'segmenter' needs true masks, 'localization' one tag and a true box, the others
    tags and true masks. Files of masks that people drew are not scored.
    """
    items = collection.split(split)
    if name == LOCALIZATION:
        found = [item for item in items if item.boxes and item.tags is not None and len(item.tags) == 1]
        if not found:
            raise DataError(
                f"{collection.root}: no photo of split '{split}' shows one class and has a true box; localisation "
                "needs a data set such as CUB-200-2011 (source 'cub')."
            )
        return found
    masked = [item for item in items if item.mask is not None]
    if not masked:
        raise DataError(f"{collection.root}: split '{split}' has no true masks to compare with; set data.masks.")
    found = masked if name == "segmenter" else [item for item in masked if item.tags is not None]
    found = [item for item in found if name not in FILES or item.corrected is None]
    if not found:
        raise DataError(f"{collection.root}: no photo of '{split}' has both tags and a true mask for '{name}'.")
    return found


class Scorer:
    """Collects the scores of a split, photo by photo.

    ``streams`` by name, the CAM ``curve``, ``class_scores`` and ``tags`` for the mean average precision.

    names: of SCORES. val_threshold: with 'cam', adds 'cam (val threshold)' at this background score. run: the run
    folder whose label files 'seeds' and 'masks' compare. 'refined' and 'cam+crf' are cut at ``label.threshold``. Raises
    ConfigError for 'cam+crf' without ``label.crf``.
    """

    def __init__(
        self,
        inference: Inference,
        config: EvaluateConfig,
        collection: Collection,
        names: Sequence[str],
        val_threshold: float | None = None,
        run: Path | None = None,
    ) -> None:
        self.names = [*names, AT_VAL] if "cam" in names and val_threshold is not None else list(names)
        self.inference, self.config = inference, config
        if "cam+crf" in self.names and inference.crf is None:
            raise ConfigError("'cam+crf' is the CAMs after a dense CRF: set label.crf to a preset, as label.crf=psa.")
        self.collection = collection
        self.classes = len(collection.classes)
        self.val_threshold = val_threshold
        self.run = run or Path()
        self.networks = not names or bool(set(names) - set(FILES))
        self._begin()

    def _begin(self) -> None:
        number, config = self.collection.num_classes, self.config
        self.streams = {name: ScoreStream(number, boundary=config.boundary) for name in self.names}
        self.curve = ThresholdCurve(number, config.bins, keep=config.bootstrap > 0) if "cam" in self.names else None
        self.untagged = 0
        self.class_scores: list[Tensor] = []
        self.tags: list[Tensor] = []

    def part(self) -> Scorer:
        """What scores some of the photos in the same way, and has only these."""
        part = copy(self)
        part._begin()
        return part

    def state(self) -> dict[str, Any]:
        """All that was counted, for ``take``; of dictionaries, lists, numbers and arrays."""
        return {
            "streams": {name: stream.state() for name, stream in self.streams.items()},
            "curve": None if self.curve is None else self.curve.state(),
            "class_scores": self.class_scores,
            "tags": self.tags,
            "untagged": self.untagged,
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """Add what a part counted."""
        for name, stream in self.streams.items():
            stream.merge(state["streams"][name])
        if self.curve is not None:
            self.curve.merge(state["curve"])
        self.class_scores += state["class_scores"]
        self.tags += state["tags"]
        self.untagged += state["untagged"]

    def add(self, item: Item, look: Look | DataError) -> None:
        """Score one photo.

        Without a true mask it counts for the class scores only. A photo without tags takes part in 'segmenter' only
        and is counted in ``untagged``. Raises the DataError of a photo that cannot be read.
        """
        if isinstance(look, DataError):
            raise look
        # Label files are compared without a look through the network.
        if look.tags is not None and self.networks and look.class_scores is not None:
            self.class_scores.append(look.class_scores)
            self.tags.append(look.tags)
        if item.mask is None:
            return
        truth = true_mask(item, self.collection)
        names = self.names
        if look.tags is None:
            names = [name for name in names if name not in (*TAGGED, AT_VAL)]
            self.untagged += 1
        for name, labels in self._predictions(item, look, truth, names):
            self.streams[name].update(item.id, labels.cpu(), truth)

    def miou_of(self, item: Item) -> float | None:
        """The mIoU of a photo in the last of the scores; None where it has none."""
        stream = self.streams[self.names[-1]] if self.names else None
        if stream is None or item.id not in stream.per_image:
            return None
        value = stream.miou_of(item.id)
        return None if math.isnan(value) else value

    def _predictions(self, item: Item, look: Look, truth: Tensor, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        settings = self.inference.config
        if self.curve is not None and look.tags is not None:
            full = cams_at(look, truth.shape)
            self.curve.update(full.cpu(), look.tags, truth)
            yield "cam", cut(full, settings.threshold)
            if self.val_threshold is not None:
                yield AT_VAL, cut(full, self.val_threshold)
        if "refined" in names:
            yield "refined", look.refined_labels
        if "cam+crf" in names:
            yield "cam+crf", best_labels(self._crf(look), look.photo)
        # What a person drew is no result; it may even be the truth.
        for name in (name for name in FILES if name in names and item.corrected is None):
            path = self.run / name / f"{item.id}.png"
            if not path.is_file():
                made = "'tagmask label'" if name == "masks" else "'tagmask run' with stages"
                raise DataError(f"{path}: there is no such mask; {made} writes the {name} that are scored.")
            yield name, read_mask(path, self.classes)
        if "segmenter+tags" in names:
            yield "segmenter+tags", best_labels(look.limited, look.photo, settings.unsure)
        if "segmenter" in names:
            yield "segmenter", look.prediction[0]

    def _crf(self, look: Look) -> Tensor:
        """(C+1,h,w) of the CAMs after the dense CRF, whose input are the CAMs and the background's score, over their
        sum at each pixel."""
        inference = self.inference
        assert inference.crf is not None
        background = torch.full_like(look.cams[:1], inference.config.threshold)
        scores = torch.cat([background, look.cams])
        images = inference.batch(look.photo, inference.config.max_side)
        return random_field(inference.crf, images, scores / scores.sum(0).clamp(min=1e-8))


def cams_at(look: Look, size: Sequence[int]) -> Tensor:
    """A photo's CAMs (C,H,W), resized to ``size``."""
    return F.interpolate(look.cams[None], size=tuple(size), mode="bilinear", align_corners=False)[0]


def cut(cams: Tensor, threshold: float) -> Tensor:
    """Labels (H,W) of the largest of the CAMs (C,H,W), background where none is above the threshold."""
    best, labels = cams.max(dim=0)
    return (labels + 1) * (best > threshold)
