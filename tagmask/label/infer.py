"""A trained method's networks on a photo: CAMs, refined CAMs and segmentation, multi-scale and tiled as configured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tagmask.cam import refined_scores
from tagmask.cam.maps import resize
from tagmask.config import LabelConfig, RunConfig
from tagmask.encoders.saliency import Saliency, background_factor, open_saliency
from tagmask.errors import ConfigError
from tagmask.methods import Method
from tagmask.methods.base import MAIN, build_refiner
from tagmask.refine import DenseCRF
from tagmask.types import IGNORE

GPU_PIXELS = 2_000_000
"""Pixels that a GPU segments at once, of photos of one size."""


class Inference:
    """Turns a photo, uint8 (3,H,W), into maps on the method's device.

    Scores, CAMs and probabilities lie on the working grid (h,w): the photo's own, unless ``views.short_side`` reduces
    it. With ``label.square`` networks see a square, and their maps are resized back to that grid. Label maps have the
    photo's size. Networks run under autocast as in training; results are float32.
    ``config`` has the settings of ``label``, with the threshold that training found if ``label.threshold_from`` asks
    for it. which: of the method's maps, see ``Method.others``. Raises ConfigError where the method cannot do what
    ``label`` asks for, and for an unknown ``label.crf``.
    """

    def __init__(self, method: Method, config: RunConfig, which: str = MAIN) -> None:
        self.method, self.which = method.eval(), which
        self.config = _settled(config.label, method, which)
        self.guides, self.weights_dir = config.guides, config.encoder.weights_dir
        self.short_side = config.views.short_side
        self.precision, self.engine = config.train.precision, config.engine
        self.device = next(method.parameters()).device
        self.at_once = GPU_PIXELS if self.device.type == "cuda" else 0
        self._alone = RLock()  # one thread at a time runs the networks
        self.refiner = build_refiner(self.config.refine)
        self.mask_refiner = build_refiner(self.config.refine_masks)
        self.crf = None if self.config.crf == "none" else DenseCRF.preset(self.config.crf)
        self.source = self.config.source
        if self.source == "auto":
            self.source = "segmenter" if method.has_segmenter else "cam"
        if self.source == "segmenter" and not method.has_segmenter:
            raise ConfigError(f"Method '{method.config.name}' has no segmenter; use label.source=cam.")
        if self.source == "cam" and not method.has_cams:
            raise ConfigError(f"Method '{method.config.name}' has no CAMs; use label.source=segmenter.")
        self.completes = self.config.complete and self.source == "segmenter" and method.has_cams

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: all but the lock, and a network that is opened there."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_alone", "saliency")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.device = next(self.method.parameters()).device
        self.at_once = GPU_PIXELS if self.device.type == "cuda" else 0
        self._alone = RLock()

    @cached_property
    def saliency(self) -> Saliency | None:
        """The network of ``guides.saliency``. Raises ConfigError and WeightsError where it cannot be had."""
        return None if self.guides.saliency is None else open_saliency(self.guides.saliency, self.weights_dir)

    def background_factor(self, photo: Tensor) -> Tensor | None:
        """(1,1,s,s) that the background's scores in a tagged photo are multiplied by; None without ``guides``."""
        return None if self.saliency is None else background_factor(self.saliency(photo)).to(self.device)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The networks, under autocast as in training, in one thread at a time."""
        kind = torch.bfloat16 if self.precision == "bf16" else torch.float16
        with self._alone, torch.autocast(self.device.type, kind, enabled=self.precision != "fp32"):
            yield

    def batch(self, photo: Tensor, longest: int | None = None) -> Tensor:
        """(1,3,h,w) float in [0,1] on the device and the working grid. longest: a further bound on the long side."""
        height, width = photo.shape[-2:]
        ratios = [(1, 1)]
        if self.short_side is not None:
            ratios.append((self.short_side, min(height, width)))
        if longest is not None:
            ratios.append((longest, max(height, width)))
        numerator, denominator = min(ratios, key=lambda ratio: ratio[0] / ratio[1])
        images = photo.to(self.device)[None].float().div(255)
        if numerator < denominator:
            size = [max(1, scaled(side, numerator, denominator)) for side in (height, width)]
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True).clamp(0, 1)
        return images.contiguous(memory_format=torch.channels_last)

    def _seen(self, images: Tensor) -> Tensor:
        """Images (B,3,h,w) of the working grid as the networks see them: (B,3,s,s) with ``label.square``."""
        return images if self.config.square is None else as_square(images, self.config.square)

    @torch.inference_mode()
    def class_scores(self, photo: Tensor) -> Tensor | None:
        """(C,) probabilities; None for a method without a classifier."""
        with self.running():
            scores = self.method.class_scores(self._seen(self.batch(photo, self.config.max_side)))
        return None if scores is None else scores[0].float().cpu()

    @torch.inference_mode()
    def cams(self, photo: Tensor, tags: Tensor | None, which: str | None = None) -> Tensor:
        """(C,h,w) multi-scale CAMs in [0,1]; absent classes are 0 where tags (C,) are given. which: others than usual.

        The working grid of CAMs is reduced to ``label.max_side``, too: they look at the whole photo at once.
        """
        given = None if tags is None else tags.to(self.device)[None]
        images = self.batch(photo, self.config.max_side)
        with self.running():
            seen, cfg = self._seen(images), self.config
            cams = self.method.cams(seen, given, cfg.cam_scales, cfg.cam_flip, which or self.which)
        return resize(cams.float(), images.shape[-2:])[0]

    @torch.inference_mode()
    def analyse(self, name: str, photo: Tensor, tags: Tensor, *place: Any) -> Any:
        """What the method's analysis of this name gives for a photo with tags (C,). Raises ConfigError for unknown."""
        found = self.method.analyses()
        if name not in found:
            known = ", ".join(found) or "none"
            raise ConfigError(f"Method '{self.method.config.name}' has no analysis '{name}'. There is: {known}.")
        with self.running():
            images = self._seen(self.batch(photo, self.config.max_side))
            return found[name].look(images, tags.to(self.device)[None], *place)

    @torch.inference_mode()
    def refine(self, photo: Tensor, cams: Tensor, tags: Tensor, factor: Tensor | None = None) -> Tensor:
        """(C+1,h,w) scores of background (at ``label.threshold``) and the tagged classes after refinement.

        factor: of the background's score, see ``background_factor``.
        """
        given = tags.to(self.device)
        if self.refiner is None:
            background = torch.full_like(cams[:1], self.config.threshold)
            return torch.cat([times(background, factor), cams * given[:, None, None]])
        images, threshold = self.batch(photo, self.config.max_side), self.config.threshold
        return refined_scores(cams[None], given[None], threshold, self.refiner, images, half=False, factor=factor)[0]

    def need_segmenter(self) -> None:
        """Raises ConfigError for a method without a segmenter."""
        if not self.method.has_segmenter:
            raise ConfigError(
                f"Method '{self.method.config.name}' has no segmenter for untagged photos; train one on this run's "
                "masks first (tagmask run --labels-of)."
            )

    def together(self, photo: Tensor) -> int:
        """How many photos of this one's size are segmented at once."""
        return max(1, self.at_once // (photo.shape[-2] * photo.shape[-1]))

    @torch.inference_mode()
    def logits(self, *photos: Tensor) -> Tensor:
        """(B,C+1,h,w) of the segmenter, of photos of one size, in tiles where they are large.

        Raises ConfigError without a segmenter.
        """
        self.need_segmenter()
        images = torch.cat([self.batch(photo) for photo in photos])
        if self.config.square is not None:
            return resize(self._logits(self._seen(images)), images.shape[-2:])
        side = self.tile_side(images.shape[-2:])
        return self._logits(images) if side is None else self._tiled(images, side)

    @torch.inference_mode()
    def probabilities(
        self, photo: Tensor, logits: Tensor, tags: Tensor | None = None, factor: Tensor | None = None
    ) -> Tensor:
        """(C+1,h,w) softmax of the segmenter's logits over the background and the tagged classes, or all without tags.

        factor: of the background's probability, see ``background_factor``. A dense CRF follows where ``label.crf``
        names one, but not for a photo that is segmented in tiles.
        """
        if tags is not None:
            allowed = torch.cat([torch.ones(1), tags.cpu().float()]).to(logits.device)
            logits = logits.masked_fill(allowed[:, None, None] == 0, float("-inf"))
        scores = logits.softmax(dim=0)
        if factor is not None:
            scores = torch.cat([times(scores[:1], factor), scores[1:]])
            scores = scores / scores.sum(0).clamp(min=1e-8)
        if self.crf is None:
            return scores
        images = self.batch(photo)
        if self.tile_side(images.shape[-2:]) is not None:
            return scores  # the CRF looks at the whole photo at once, which would not fit where the segmenter does not
        return random_field(self.crf, images, scores)

    def tile_side(self, size: Sequence[int]) -> int | None:
        """Side of the tiles that an image (h,w) is segmented in; None for in one piece."""
        return self.config.tile or (self.config.max_side if max(size) > self.config.max_side else None)

    @torch.inference_mode()
    def refine_masks(self, photo: Tensor, scores: Tensor, tags: Tensor) -> Tensor:
        """The background's and tagged classes' scores (C+1,h,w), refined and summing to 1; the others stay 0."""
        images = self.batch(photo)
        if self.mask_refiner is None or self.tile_side(images.shape[-2:]) is not None:
            return scores  # refinement's weights, 48 numbers a pixel, would not fit where the segmenter does not
        kept = [0, *(1 + tags.nonzero().flatten()).tolist()]
        refined = self.mask_refiner(images, scores[kept][None])[0].clamp(min=0)
        result = torch.zeros_like(scores)
        result[kept] = refined / refined.sum(0).clamp(min=1e-8)
        return result

    def _logits(self, images: Tensor) -> Tensor:
        """(B,C+1,h,w) of images (B,3,h,w), over all scales and flips: their mean or their largest (``label.merge``)."""
        height, width = images.shape[-2:]
        flips = (False, True) if self.config.flip else (False,)
        merged: Tensor | None = None
        for scale in self.config.scales:
            ratio = Fraction(scale).limit_denominator(1000)
            size = [max(1, scaled(side, ratio.numerator, ratio.denominator)) for side in (height, width)]
            seen = resize(images, (size[0], size[1]))
            for flip in flips:
                with self.running():
                    logits = self.method.segmenter(self.which)(seen.flip(-1) if flip else seen)
                logits = resize((logits.flip(-1) if flip else logits).float(), (height, width))
                if merged is None:
                    merged = logits
                else:
                    merged = torch.maximum(merged, logits) if self.config.merge == "max" else merged + logits
        assert merged is not None
        return merged if self.config.merge == "max" else merged / (len(self.config.scales) * len(flips))

    def _tiled(self, images: Tensor, side: int) -> Tensor:
        """Logits of overlapping tiles (by a quarter of their side), averaged with weights that fall to the edge."""
        height, width = images.shape[-2:]
        total = torch.zeros(len(images), self.method.classes + 1, height, width, device=self.device)
        weight = torch.zeros(height, width, device=self.device)
        for y0 in tile_starts(height, side):
            for x0 in tile_starts(width, side):
                y1, x1 = min(y0 + side, height), min(x0 + side, width)
                ramp = _ramp(y1 - y0, self.device)[:, None] * _ramp(x1 - x0, self.device)
                total[..., y0:y1, x0:x1] += self._logits(images[..., y0:y1, x0:x1]) * ramp
                weight[y0:y1, x0:x1] += ramp
        return total / weight


def as_square(images: Tensor, side: int) -> Tensor:
    """Images (B,3,H,W) in [0,1] resized to (B,3,side,side)."""
    return F.interpolate(images, size=[side, side], mode="bilinear", antialias=True).clamp(0, 1)


def scaled(length: int, numerator: int, denominator: int) -> int:
    """length · numerator / denominator, rounded, of whole numbers: an exported network rounds it likewise."""
    return (2 * length * numerator + denominator) // (2 * denominator)


def times(background: Tensor, factor: Tensor | None) -> Tensor:
    """A background's scores (1,h,w), times a factor (1,1,s,s) on another grid."""
    return background if factor is None else background * resize(factor, background.shape[-2:])[0]


def random_field(crf: DenseCRF, images: Tensor, scores: Tensor) -> Tensor:
    """Probabilities (K,h,w) after a dense CRF on images (1,3,h,w) in [0,1]. Classes that are 0 everywhere stay so."""
    kept = scores.flatten(1).amax(1).nonzero().flatten()
    result = torch.zeros_like(scores)
    result[kept] = crf((images * 255).round().byte(), scores[kept][None])[0]
    return result


def best_labels(scores: Tensor, photo: Tensor, unsure: float = 0.0) -> Tensor:
    """uint8 (H,W) of a photo (3,H,W): class of the largest score (K,h,w) after bilinear resizing, 255 below ``unsure``.

    One class at a time: all classes of a large photo at once would take gigabytes.
    """
    size = (photo.shape[-2], photo.shape[-1])
    if scores.shape[-2:] == size:
        best, labels = scores.max(dim=0)
        labels = labels.to(torch.uint8)
    else:
        best = torch.full(size, float("-inf"), device=scores.device)
        labels = torch.zeros(size, dtype=torch.uint8, device=scores.device)
        for k, score in enumerate(scores):
            resized = resize(score[None, None], size)[0, 0]
            labels[resized > best] = k
            best = torch.maximum(best, resized)
    return labels.masked_fill(best < unsure, IGNORE)


def values_in(labels: Tensor) -> set[int]:
    """Values of a label map uint8 (H,W): counted, which is far quicker than sorting millions of pixels."""
    return set(labels.flatten().bincount(minlength=256).nonzero().flatten().tolist())


def tile_starts(length: int, side: int) -> list[int]:
    """First pixels of the tiles of ``side`` that cover ``length``, overlapping by at least a quarter."""
    if length <= side:
        return [0]
    count = -(-(length - side) // max(1, side - side // 4)) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def _ramp(length: int, device: torch.device) -> Tensor:
    distance = torch.arange(length, device=device, dtype=torch.float32) + 1
    return torch.minimum(distance, distance.flip(0)) / length


def _settled(label: LabelConfig, method: Method, which: str) -> LabelConfig:
    """With the threshold that ``threshold_from: training`` stands for. Raises ConfigError if the method has none."""
    if label.threshold_from == "fixed" or not method.has_cams:
        return label
    found = method.cam_threshold(which)
    if found is None:
        raise ConfigError(
            f"Method '{method.config.name}' finds no threshold in training, as label.threshold_from asks; set "
            "label.threshold instead."
        )
    threshold, by_training = found
    return label.model_copy(update={"threshold": threshold, "threshold_from": "training" if by_training else "fixed"})
