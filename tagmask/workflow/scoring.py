"""A trained method against true masks, photo by photo: every score of a split in one pass, nothing kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tagmask.config import RunConfig
from tagmask.data import Collection, Item, read_mask, tag_vector
from tagmask.errors import ConfigError, DataError
from tagmask.evaluate import ScoreStream, ThresholdCurve
from tagmask.label import Inference
from tagmask.label.infer import best_labels
from tagmask.methods import Method

TAGGED = ("cam", "refined", "cam+crf", "seeds", "masks", "segmenter+tags")
"""Scores that use the image's tags at test time; 'segmenter' is the one that does not."""
SCORES = (*TAGGED, "segmenter")
FILES = ("seeds", "masks")
"""Those of label files that were written before: a run's folders of these names."""
AT_VAL = "cam (val threshold)"
LOCALIZATION, SPREAD = "localization", "spread"
"""Scores that go over the photos by themselves, see ``localize`` and ``spread``."""


def photos_of(name: str, collection: Collection, split: str) -> list[Item]:
    """Photos of a split that a score compares with a truth. Opens no file; raises DataError where there is none.

    Tags are enough for none of them: 'segmenter' needs true masks, 'localization' one tag and a true box, the others
    tags and true masks.
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
    if not found:
        raise DataError(f"{collection.root}: no photo of '{split}' has both tags and a true mask for '{name}'.")
    return found


class Scorer:
    """Collects scores over items.

    ``streams`` by name, the CAM ``curve``, ``class_scores`` and ``tags`` for mAP, ``sizes`` (h,w) of the working grids.

    names: of SCORES. val_threshold: with 'cam', adds 'cam (val threshold)' at this background score.
    run: the run folder whose label files 'seeds' and 'masks' compare. 'refined' and 'cam+crf' take
    ``label.threshold``. Raises ConfigError for 'cam+crf' without ``label.crf``.
    """

    def __init__(
        self,
        method: Method,
        config: RunConfig,
        collection: Collection,
        names: Sequence[str],
        val_threshold: float | None = None,
        run: Path | None = None,
    ) -> None:
        self.names = [*names, AT_VAL] if "cam" in names and val_threshold is not None else list(names)
        self.inference = Inference(method, config)
        if "cam+crf" in self.names and self.inference.crf is None:
            raise ConfigError("'cam+crf' is the CAMs after a dense CRF: set label.crf to a preset, as label.crf=psa.")
        self.collection = collection
        self.classes = len(collection.classes)
        self.val_threshold = val_threshold
        self.run = run or Path()
        rims = config.evaluate.boundary
        self.streams = {name: ScoreStream(collection.num_classes, boundary=rims) for name in self.names}
        self.curve = None
        if "cam" in names:
            kept = config.evaluate.bootstrap > 0
            self.curve = ThresholdCurve(collection.num_classes, config.evaluate.bins, keep=kept)
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
        if {"cam", "refined", "cam+crf"}.intersection(names):
            cams = inference.cams(photo, tags)
            if self.curve is not None:
                full = F.interpolate(cams[None], size=truth.shape, mode="bilinear", align_corners=False)[0]
                self.curve.update(full.cpu(), tags, truth)
                yield "cam", _cut(full, inference.config.threshold)
                if self.val_threshold is not None:
                    yield AT_VAL, _cut(full, self.val_threshold)
            if "refined" in names:
                yield "refined", best_labels(inference.refine(photo, cams, tags), photo)
            if "cam+crf" in names:
                yield "cam+crf", best_labels(self._crf(photo, cams, tags), photo)
        for name in (name for name in FILES if name in names):
            path = self.run / name / f"{item.id}.png"
            if not path.is_file():
                made = "'tagmask label'" if name == "masks" else "'tagmask run' with stages"
                raise DataError(f"{path}: there is no such mask; {made} writes the {name} that are scored.")
            yield name, read_mask(path, self.classes)
        if "segmenter+tags" in names:
            yield "segmenter+tags", best_labels(inference.probabilities(photo, tags), photo, inference.config.unsure)
        if "segmenter" in names:
            yield "segmenter", inference.predict(photo)[0]

    def _crf(self, photo: Tensor, cams: Tensor, tags: Tensor) -> Tensor:
        """(C+1,h,w) of CAMs (C,h,w) after the dense CRF, whose input are the CAMs and the background's score, over
        their sum at each pixel."""
        inference = self.inference
        assert inference.crf is not None
        background = torch.full_like(cams[:1], inference.config.threshold)
        scores = torch.cat([background, cams * tags.to(cams.device)[:, None, None]])
        probabilities = scores / scores.sum(0).clamp(min=1e-8)
        images = inference.batch(photo, inference.config.max_side)
        kept = probabilities.flatten(1).amax(1).nonzero().flatten()
        result = torch.zeros_like(probabilities)
        result[kept] = inference.crf((images * 255).round().byte(), probabilities[kept][None])[0]
        return result


def truth_of(collection: Collection, items: Iterable[Item], shown: int = 3) -> str:
    """Where the true masks of items lie, for the stamp: source and folder, with counts where there are several.

    Of more folders than ``shown`` those with most masks are named.
    """
    folders = Counter(item.mask.parent.name for item in items if item.mask is not None).most_common()
    if len(folders) <= 1:
        return f"{collection.source}:{folders[0][0] if folders else ''}"
    parts = [f"{name} ({count})" for name, count in folders[:shown]]
    rest = folders[shown:]
    parts += [f"{len(rest)} other folders ({sum(count for _, count in rest)})"] if rest else []
    return f"{collection.source}:{', '.join(parts)}"


def _cut(cams: Tensor, threshold: float) -> Tensor:
    best, labels = cams.max(dim=0)
    return (labels + 1) * (best > threshold)
