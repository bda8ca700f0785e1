"""``eca``: DINO as a semantic guide (DINO is Also a Semantic Guider, ACM MM 2024).

``baseline`` plus: labels from class-aware affinity region maps (CARM), in which a frozen self-supervised network says
how far the class maps' surest positions reach (SAE); class maps of local views must be alike where the whole view's
labels agree (CCE); attention learns affinities from those labels.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from tagmask.cam import PrototypeCalibration, affinity_region_maps, cam_seeds, region_labels
from tagmask.cam.maps import resize
from tagmask.config import ShortSchedule, Strict, ViewConfig
from tagmask.data.views import check_local
from tagmask.encoders import Encoder
from tagmask.encoders.guide import Guide, GuideConfig
from tagmask.errors import ConfigError
from tagmask.losses import balanced_cross_entropy, cam_correspondence
from tagmask.methods.base import Analysis, whole_image
from tagmask.methods.common.affinity import AffinityMethod, PropagationConfig, predict_affinity
from tagmask.methods.common.local_views import object_views
from tagmask.registry import METHODS
from tagmask.strict import Count, Factor, Natural, Positive, Share
from tagmask.types import IGNORE, Batch, Features, Losses, View


class CalibrationConfig(Strict):
    """Calibration of region maps by momentum prototypes."""

    enabled: bool = Field(True, description="whether region maps are calibrated")
    momentum: float = Field(0.99, ge=0, lt=1, description="tau, of the prototypes")
    exponent: Positive = Field(2.0, description="of the similarity to the prototype")
    rescale: bool = Field(False, description="bring similarity to [0,1] by min-max instead of a cut at 0")
    least_classes: Count = Field(1, description="classes that an image needs to be calibrated")
    most_seeds: Count | None = Field(None, description="surest seeds of a class that make its prototype; null: all")


class ECAConfig(PropagationConfig):
    """Settings of ``eca``; the defaults are the paper's on VOC. ``variant`` changes some, unless they are set."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "release": {
            "high": 0.55,
            "low": 0.35,
            "seed_background": 0.45,
            "guide": {"cue": "binary", "scales": [1.0, 0.5], "precision": "half"},
            "background_range": [0.1, 0.6],
            "region_classes": "labels",
            "calibration": {"exponent": 1.5, "rescale": True, "least_classes": 2, "most_seeds": 8},
            "affinity_from": "both",
            "corr_band": None,
            "divergence": "cosine",
            "corr_stride": 4,
            "corr_reduction": "mean",
            "start_seg": 4000,
            "start_corr": 4000,
            "affinity_warmup": 6000,
        },
    }

    name: Literal["eca"] = "eca"  # type: ignore[assignment]
    variant: Literal["paper", "release"] = Field("paper", description="defaults of what docs/methods/eca.md lists")
    high: float = Field(0.5, ge=0, le=1, description="CAM above which a pixel is labelled with its class")
    low: float = Field(0.5, ge=0, le=1, description="CAM up to which a pixel is labelled background; 255 in between")
    guide: GuideConfig = Field(GuideConfig(), description="the self-supervised network that makes region maps")
    seeds: float = Field(0.3, gt=0, le=1, description="k: share of a class's positions that are seeds")
    seed_background: float | None = Field(
        None, ge=0, le=1, description="background that seeds compete with; null: 1 - the largest CAM"
    )
    gamma: float = Field(0.15, ge=-1, le=1, description="cosine of keys above which positions are connected")
    background_range: tuple[Share, Share] | None = Field(
        None, description="that the background's region map is clipped to: two numbers in [0,1]"
    )
    region_classes: Literal["tags", "labels"] = Field("tags", description="labels: only classes that CAM labels have")
    calibration: CalibrationConfig = Field(CalibrationConfig(), description="of region maps, by prototypes")
    affinity_from: Literal["cam", "region", "both"] = Field("region", description="labels that affinities learn from")
    affinity_warmup: Natural | None = Field(None, description="step from which CAMs are propagated; null: never")
    divergence: Literal["js", "cosine"] = Field("js", description="how class maps of local views are compared")
    corr_band: tuple[Share, Share] | None = Field(
        (0.35, 0.55), description="CAMs between the two are in no pair of corr; null: those between low and high"
    )
    local: Literal["object", "photo"] = Field("object", description="where local views lie: around objects, anywhere")
    corr_reduction: Literal["sum", "mean"] = Field(
        "sum", description="of corr, over an image's local views and the two kinds of pairs"
    )
    corr_stride: Count | None = Field(None, description="image pixels a step of corr's grid; null: the maps' own")
    start_seg: Natural = Field(0, description="step from which CAM labels teach; all four wait for warmup")
    start_region: Natural = Field(0, description="step from which CARM labels teach")
    start_corr: Natural = Field(0, description="step from which local views are compared")
    start_aff: Natural = Field(0, description="step from which affinities learn")
    weight_region: Factor = Field(0.1, description="of the segmentation loss on CARM labels")
    weight_corr: Factor = Field(0.1, description="CCE: of the correspondence in local views")

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """As for ``baseline``; local views of half the crop."""
        return super().short_schedule(schedule) | {
            "views.local": ({"count": 2, "size": schedule.crop // 2}, f"local views that fit crops of {schedule.crop}"),
            "method.corr_band": (None, "low and high leave unsure CAMs out by themselves"),
        }

    @model_validator(mode="after")
    def _check_order(self) -> ECAConfig:
        for name in ("background_range", "corr_band"):
            low, high = getattr(self, name) or (0, 1)
            if low > high:
                raise ValueError(f"{name}=[{low}, {high}]: give two numbers in [0,1], the smaller one first")
        return self


class Regions(NamedTuple):
    """Of a batch: tags (B,C) that get a region, seeds, bool (B,C+1,h,w), region maps (B,C+1,h,w) in [0,1], background
    first, and the foreground's, (B,C,h,w), as they were before calibration."""

    tags: Tensor
    seeds: Tensor
    maps: Tensor
    raw: Tensor


@METHODS.register("eca")
class ECA(AffinityMethod):
    """Baseline with region maps from a guide and the paper's other terms, each with a weight and a start of its own."""

    config_class = ECAConfig
    config: ECAConfig

    def __init__(self, config: ECAConfig, encoder: Encoder, classes: int) -> None:
        if classes < 2 and config.weight_corr > 0 and config.divergence == "js":
            raise ConfigError(
                "method.divergence=js compares how activations spread over classes, and there is one class only; set "
                "method.divergence=cosine or method.weight_corr=0."
            )
        super().__init__(config, encoder, classes)
        guided = config.weight_region > 0 or (self.affinity is not None and config.affinity_from != "cam")
        self.guide = Guide(config.guide) if guided else None
        cut = config.weight_corr > 0 and config.local == "photo"
        views = {"local": cut, "photo": guided and config.guide.view == "photo"}
        self.wanted_views = frozenset(name for name, wanted in views.items() if wanted)
        self.calibration: PrototypeCalibration | None = None
        if guided and config.calibration.enabled:
            settings = config.calibration.model_dump(exclude={"enabled", "most_seeds"})
            self.calibration = PrototypeCalibration(classes, encoder.channels[-1], **settings)

    def set_views(self, views: ViewConfig) -> None:
        """Raises ConfigError for local views larger than the main one."""
        if self.config.weight_corr > 0:
            check_local(views)
        self.views = views

    def origin(self) -> str:
        """As the base has it, and of the guide's weights, which are read if they have not been."""
        if self.guide is None:
            return super().origin()
        guide = self.guide.build(self.encoder.mean.device)
        return f"{super().origin()}; guide: {self.config.guide.encoder.name}, {guide.weights_origin}"

    def losses(self, batch: Batch, step: int) -> Losses:
        """cls; from ``warmup`` and their own starts on seg, region, corr (equation 11) and aff, weighted as in 12.

        Raises ConfigError and WeightsError as ``Guide.build``, ConfigError where the batch lacks a view that is used.
        """
        if self.guide is not None:
            self.guide.build(batch.images.device)  # at the first step already: what is wrong with it shows at once
        return super().losses(batch, step)

    def terms_from_cams(
        self, batch: Batch, step: int, active: set[str], features: Features, maps: Tensor, scores: Tensor
    ) -> dict[str, Tensor]:
        """The active terms, which learn from labels of the CAMs and of region maps."""
        cfg = self.config
        cams = self.training_cams(batch, maps.detach())
        source = cfg.affinity_from if "aff" in active else "none"
        labels = regions = None
        needs_regions = "region" in active or source in ("region", "both")
        if "seg" in active or source in ("cam", "both") or (needs_regions and cfg.region_classes == "labels"):
            labels = self.cut(batch, cams, scores)
        if needs_regions:
            regions = self.regions(batch, features.maps[-1].detach(), cams, scores, labels)
        terms: dict[str, Tensor] = {}
        if "corr" in active:
            own = labels if cfg.corr_band in (None, (cfg.low, cfg.high)) else None
            pairs = self.cut(batch, cams, scores, cfg.corr_band) if own is None else own
            terms["corr"] = self._correspondence(batch, pairs)
        if self.affinity is not None and "aff" in active:
            affinity = predict_affinity(self.affinity, features)
            taught = [labels] * (source in ("cam", "both")) + [regions] * (source in ("region", "both"))
            parts = [self.affinity_loss(affinity, features, x) for x in taught if x is not None]
            terms["aff"] = torch.stack(parts).mean()
            if cfg.affinity_warmup is not None and step >= cfg.affinity_warmup and "seg" in active:
                labels = self.cut(batch, self.spread(cams, affinity, features), scores)
        if active & {"seg", "region"}:
            logits = self.decoder(features)
            if labels is not None and "seg" in active:
                terms["seg"] = balanced_cross_entropy(logits, labels)
            if regions is not None and "region" in active:
                terms["region"] = balanced_cross_entropy(logits, regions)
        return terms

    @torch.no_grad()
    def regions(self, batch: Batch, tokens: Tensor, cams: Tensor, scores: Tensor, labels: Tensor | None) -> Tensor:
        """(B,H,W) labels of calibrated region maps (SAE); moves the prototypes on.

        tokens: the student's last map (B,D,h,w). cams: (B,C,·,·) in [0,1]. scores: (B,C). labels: (B,H,W) of the CAMs,
        for ``region_classes: labels``. Where a tagged class is not trusted (``gate``) or has no seed, its places would
        pass for background: what looks like background is ignored there.
        """
        trusted = batch.tags * (self.probabilities(scores) >= self.config.gate)
        tags, seeds, maps, _ = self._regions(batch, tokens, cams, trusted, labels)
        found = region_labels(maps, tags, batch.images, self.refiner, batch.boxes)
        lost = (trusted < batch.tags) | ((tags > 0) & ~seeds[:, 1:].flatten(2).any(2))
        return found.masked_fill(lost.any(1)[:, None, None] & (found == 0), IGNORE)

    def _regions(
        self, batch: Batch, tokens: Tensor, cams: Tensor, tags: Tensor, labels: Tensor | None, learns: bool = True
    ) -> Regions:
        """Seeds and maps of the tags (B,C), the rest as in ``regions``; learns: whether prototypes move on."""
        cfg = self.config
        assert self.guide is not None
        if labels is not None and cfg.region_classes == "labels":
            tags = tags * torch.stack([(labels == c + 1).flatten(1).any(1) for c in range(self.classes)], 1)
        seen = self.guide(batch)
        grid = (seen.keys.shape[-2], seen.keys.shape[-1])
        coarse = resize(cams, grid)
        seeds = cam_seeds(coarse, tags, cfg.seeds, cfg.seed_background, valid=seen.valid)
        maps = affinity_region_maps(seen.keys, seen.query, seeds, cfg.gamma, cfg.guide.cue, cfg.guide.cut, seen.valid)
        background, foreground = maps[:, :1], maps[:, 1:]
        raw = foreground
        if self.calibration is not None:
            most = cfg.calibration.most_seeds
            surest = seeds
            if most is not None:
                surest = cam_seeds(coarse, tags, cfg.seeds, cfg.seed_background, most, seen.valid)
            tokens = resize(tokens.float(), grid)
            if learns:
                self.calibration.update(tokens, surest[:, 1:])
            foreground = self.calibration(foreground, tokens, tags, seen.valid)
        if cfg.background_range is not None:
            background = background.clamp(*cfg.background_range)
        return Regions(tags, seeds, torch.cat([background, foreground], 1), raw)

    def _correspondence(self, batch: Batch, labels: Tensor) -> Tensor:
        """corr: over an image's local views as ``corr_reduction`` says, mean over images; labels (B,H,W) of the main
        view."""
        cfg = self.config
        local = object_views(batch, labels, self.views) if cfg.local == "object" else self.view(batch, "local")
        count = local.images.shape[1]
        images = local.images.flatten(0, 1)
        maps = self.class_maps(images)
        if cfg.corr_stride is not None:
            height, width = images.shape[-2:]
            maps = resize(maps.float(), (-(-height // cfg.corr_stride), -(-width // cfg.corr_stride)))
        seen = local_labels(labels, local, (maps.shape[-2], maps.shape[-1]))
        value = cam_correspondence(maps, seen.flatten(0, 1), cfg.divergence)  # mean over views, sum of both kinds
        return count * value if cfg.corr_reduction == "sum" else value / 2

    def analyses(self) -> dict[str, Analysis]:
        """Figure 6: seeds, region maps and their labels; and what the guide finds alike to one place."""
        if self.guide is None:
            return {}
        return {
            "regions": Analysis("maps", "seeds and region maps, before and after calibration", self._show_regions),
            "affinity": Analysis("place", "cosine of the guide's keys to a place's", self._show_affinity),
        }

    def _show_regions(self, images: Tensor, tags: Tensor) -> dict[str, Tensor]:
        """Seeds, CARM and its labels, before and after calibration, of one image: all its tags are trusted."""
        batch, features = whole_image(images, tags), self.encoder(images)
        cams = self.training_cams(batch, self.classifier.cam(features.maps[-1]))
        labels = self.cut(batch, cams, 1e4 * tags)  # scores at which sigmoid and softmax give every tag 1
        tags, seeds, after, raw = self._regions(batch, features.maps[-1], cams, batch.tags, labels, learns=False)
        shown = {"seeds": seeds[0]}
        for name, found in (("raw", torch.cat([after[:, :1], raw], 1)), ("calibrated", after)):
            shown[f"carm_{name}"] = found[0]
            shown[f"labels_{name}"] = region_labels(found, tags, images, self.refiner)[0]
        return shown

    def _show_affinity(self, images: Tensor, tags: Tensor, place: tuple[float, float]) -> dict[str, Tensor]:
        """Cosines (h,w) in [0,1], negative ones cut at 0, and where they are above ``gamma``."""
        assert self.guide is not None
        keys = F.normalize(self.guide(whole_image(images, tags)).keys[0].float(), dim=0)
        height, width = keys.shape[-2:]
        x, y = (min(int(part * cells), cells - 1) for part, cells in zip(place, (width, height)))
        cosines = (keys * keys[:, y : y + 1, x : x + 1]).sum(0)
        return {"affinity": cosines.clamp(min=0), "connected": (cosines > self.config.gamma).long()}


def local_labels(labels: Tensor, view: View, grid: tuple[int, int]) -> Tensor:
    """Labels (B,H,W) of the main view at the centres of a local view's cells: long (B,N,h,w) for grid = (h,w).

    The nearest pixel's label; 255 for centres outside of the main view.
    """
    batch, count, _, height, width = view.images.shape
    axes = []
    for cells, pixels in zip(grid, (height, width)):
        centres = (torch.arange(cells, device=labels.device) + 0.5) * (pixels / cells) - 0.5
        axes.append(2 * centres / max(pixels - 1, 1) - 1)
    y, x = torch.meshgrid(*axes, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)
    # Sums, not a matrix product, which autocast would round to half precision.
    places = (view.affine.to(points)[:, :, None] * points[:, None]).sum(-1).flatten(1, 2)[:, :, None]  # (B,N·h·w,1,2)
    # Shifted by 255, so that the 0 that sampling gives outside is 255.
    shifted = (labels - IGNORE)[:, None].float()
    sampled = F.grid_sample(shifted, places, mode="nearest", padding_mode="zeros", align_corners=True)
    return (sampled + IGNORE).long().view(batch, count, *grid)
