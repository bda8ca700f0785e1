"""``cosa``: co-training with swapping assignments (Yang et al., ECCV 2024).

An online network learns from an assignment network, its own running average, which sees a weak view of the same
pixels: the assignment network's class activation maps teach the segmentation, its segmentation teaches the class
maps, and a class map from an earlier layer says which regions to hold apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.cam import DynamicThreshold, multi_scale
from tagmask.cam.maps import resize
from tagmask.config import ShortSchedule
from tagmask.encoders import Encoder
from tagmask.heads import Classifier
from tagmask.losses import cam_to_seg, contrastive_separation, perplexity, seg_to_cam
from tagmask.methods.base import (
    MAIN,
    Analysis,
    Maps,
    OneStageConfig,
    OneStageMethod,
    build_head,
    build_refiner,
    to_image_size,
)
from tagmask.methods.common.auxiliary import AUXILIARY, check_trained, give_earlier_map
from tagmask.methods.common.dense_energy import EnergyConfig, dense_energy
from tagmask.methods.common.ema import Teacher
from tagmask.methods.common.label_accuracy import label_analyses
from tagmask.methods.common.oracles import noise_guide, truth_guide
from tagmask.methods.common.pseudo_label_assignment import (
    Assigned,
    batch_labels,
    cam_assignment,
    mean_of_views,
    photo_positions,
    without_doubt,
)
from tagmask.registry import METHODS
from tagmask.strict import USED, Factor, Natural, Positive, Scales
from tagmask.types import Batch, Features, Losses

AUX = "aux"
"""Name of the auxiliary CAMs among a method's ``others``."""
GUIDES = {"truth": truth_guide, "noise": noise_guide}
"""What s2c goes towards in the place of the segmentation, by ``guidance``."""


class CoSAConfig(OneStageConfig):
    """Settings of ``cosa``; the defaults are the paper's on VOC. ``variant`` changes some, unless they are set."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "release": {
            "start": "independent",
            "cam_scales": [1.0, 0.5, 1.5],
            "threshold": 0.7,
            "low": 0.25,
            "weighting": "none",
            "balanced": True,
            "temperature": 0.01 / 6,  # it sums the logits of six views, where the mean is taken here
            "rectify": True,
            "weight_cls_aux": 1.0,
            "weight_c2s": 0.05,
            "weight_c2s_aux": 0.05,
            "weight_csc": 0.0,
            "weight_reg": 0.05,
            "energy": {"gradient": "release"},
        },
    }

    name: Literal["cosa"] = "cosa"
    variant: Literal["paper", "release"] = Field("paper", description="defaults of what docs/methods/cosa.md lists")
    auxiliary_map: int = Field(-2, ge=-1000, lt=-1, description="the map of the auxiliary CAM; the last is -1")
    warmup: Natural = Field(6000, description="steps of classification only")
    s2c_warmup: Natural | None = Field(None, description="step that GC starts at, where that is after warmup")
    swap: bool = Field(True, description="SA: a running average assigns the labels; false: the trained network itself")
    momentum: float = Field(0.9994, ge=0, le=1, description="of the assignment network's running average")
    start: Literal["copy", "independent"] = Field("copy", description="independent: its heads are drawn anew")
    inference: Annotated[Literal["assignment", "online"], USED] = Field(
        "assignment", description="network that is used after training; online: the trained one"
    )
    ensemble: Annotated[bool, USED] = Field(False, description="use the mean of main and auxiliary CAMs")
    cam_scales: Scales = Field([1.0], description="image scales of the assignment network's CAMs")
    threshold: Literal["dynamic"] | Annotated[float, Field(gt=0, lt=1)] = Field(
        "dynamic", description="DT: dynamic, or the CAM value from which a pixel is its class"
    )
    threshold_start: float = Field(0.5, gt=0, lt=1, description="of the dynamic threshold")
    queue: int = Field(100, ge=1, le=10**6, description="batches that the dynamic threshold is fitted to")
    low: float | None = Field(None, ge=0, le=1, description="CAM below which a pixel is background, 255 in between")
    weighting: Literal["raw", "none"] = Field("raw", description="RAW: of the pixels in c2s, by reliability")
    balanced: bool = Field(False, description="background and foreground are halves of c2s")
    alpha: Positive = Field(0.8, description="of the perplexity")
    beta: Positive = Field(1.0, description="of the perplexity")
    temperature: Positive = Field(0.01, description="of the segmentation that teaches the CAMs")
    rectify: bool = Field(False, description="cut the CAMs that it teaches at 0")
    guidance: Literal["segmentation", "truth", "noise"] = Field(
        "segmentation", description="what s2c goes towards; truth: true masks, an upper bound that tags do not give"
    )
    detach: Literal["none", "features", "classifier"] = Field("none", description="what s2c does not train")
    epsilon: Positive = Field(1.0, description="largest perplexity of regions that csc compares")
    contrast_temperature: Positive = Field(0.1, description="of csc")
    weight_cls: Positive = Field(1.0, description="of classification")
    weight_cls_aux: Factor = Field(1.0, description="of classification by the auxiliary maps")
    weight_c2s: Factor = Field(0.1, description="of CAMs teaching the segmentation")
    weight_c2s_aux: Factor = Field(0.1, description="of auxiliary CAMs teaching the segmentation")
    weight_s2c: Factor = Field(0.05, description="GC: of the segmentation guiding the CAMs")
    weight_csc: Factor = Field(0.1, description="CSC: of contrastive separation")
    weight_reg: Factor = Field(0.0, description="of the dense energy")
    energy: EnergyConfig = Field(EnergyConfig(), description="the dense energy")

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """A threshold and a queue that follow sooner, and what was found to learn in 230 steps.

        Reliability weighting, auxiliary CAMs and contrastive separation are for long schedules: see docs/notes/cosa.md.
        """
        middle = round((schedule.high + schedule.low) / 2, 3)
        plan: dict[str, tuple[Any, str]] = {
            "views.blur": (0.5, "of the weak view"),
            "method.momentum": (schedule.momentum, f"an average that has to follow in {schedule.steps} steps"),
            "method.threshold_start": (middle, "until the dynamic threshold's first fit"),
            "method.queue": (max(1, schedule.steps // 23), "batches that the dynamic threshold is fitted to"),
            "method.weight_c2s": (1.0, "short schedules need the full weight"),
            "method.balanced": (True, "most pixels are background"),
            "method.weighting": ("none", "by reliability: for longer schedules"),
            "method.weight_csc": (0.0, "for longer schedules"),
            "train.ema": (None, "the method has an average of its own, and uses it"),
        }
        if any(schedule.asked.get(key) for key in ("ensemble", *AUXILIARY)):
            plan["method.weight_c2s_aux"] = (0.1, "auxiliary CAMs are poor after few steps")
        else:
            why = "short schedules came out better without auxiliary classifier and labels"
            plan |= {f"method.{key}": (0.0, why) for key in AUXILIARY}
        return super().short_schedule(schedule) | plan

    def phases(self) -> dict[str, bool]:
        guides = self.weight_s2c > 0
        others = (self.weight_c2s, self.weight_c2s_aux, self.weight_csc, self.weight_reg)
        return super().phases() | {"warmup": guides or any(others), "s2c_warmup": guides}

    @model_validator(mode="after")
    def _check_low(self) -> CoSAConfig:
        if self.low is not None and (self.threshold == "dynamic" or self.low > self.threshold):
            raise ValueError("low goes with a fixed threshold that is not below it; set threshold, or low=null")
        return self


class WeakView(NamedTuple):
    """CAMs (B,C,h,w) in [0,1], auxiliary ones, class probabilities (B,C), segmentation logits (B,C+1,·,·)."""

    cams: Tensor
    auxiliary: Tensor | None
    scores: Tensor
    logits: Tensor | None


class Network(NamedTuple):
    """The parts that the online and the assignment network both have."""

    encoder: Encoder
    classifier: Classifier
    auxiliary: Classifier
    decoder: nn.Module

    def class_maps(self, images: Tensor) -> Tensor:
        """(B,C,h,w) before ReLU."""
        return self.classifier.cam(self.encoder(images).maps[-1])

    def segment(self, images: Tensor) -> Tensor:
        """(B,C+1,H,W) logits at the images' size."""
        return to_image_size(self.decoder(self.encoder(images)), images)


@METHODS.register("cosa")
class CoSA(OneStageMethod):
    """Online network, assignment network and dynamic thresholds; each term has a weight of its own.

    Raises ConfigError for an encoder without a map for the auxiliary CAMs, and where these are used and not trained.
    """

    config_class = CoSAConfig
    config: CoSAConfig
    wanted_views = frozenset(("strong",))

    def __init__(self, config: CoSAConfig, encoder: Encoder, classes: int) -> None:
        give_earlier_map(encoder, config.auxiliary_map)
        check_trained(config)
        super().__init__(config, encoder, classes)
        self.reads_masks = config.guidance == "truth"
        self.classifier, self.auxiliary, self.decoder = self._heads()
        self.assignment: Teacher | None = None
        if config.swap:
            if config.inference == "assignment":
                self.used_encoder = "assignment.encoder"
            self.assignment = Teacher(self.online._asdict())
            if config.start == "independent":
                heads = Teacher(dict(zip(("classifier", "auxiliary", "decoder"), self._heads())))
                self.assignment.update(dict(heads.items()))
        kinds = ("main", "aux") if config.threshold == "dynamic" else ()
        self.thresholds = nn.ModuleDict({k: DynamicThreshold(config.queue, config.threshold_start) for k in kinds})
        self.refiner = build_refiner(config.refine, config.refine_options)

    def _heads(self) -> tuple[Classifier, Classifier, nn.Module]:
        cfg, encoder = self.config, self.encoder
        return (
            Classifier(encoder.channels[-1], self.classes, pooling=cfg.pooling),
            Classifier(encoder.channels[cfg.auxiliary_map], self.classes, pooling=cfg.pooling),
            build_head(cfg.head, encoder, self.classes + 1, cfg.head_options),
        )

    @property
    def online(self) -> Network:
        """The network that is trained."""
        return Network(self.encoder, self.classifier, self.auxiliary, self.decoder)

    @property
    def assigner(self) -> Network:
        """The network that assigns labels: the running average, or without ``swap`` the trained one."""
        return self.online if self.assignment is None else Network(**dict(self.assignment.items()))  # type: ignore[arg-type]

    @property
    def used(self) -> Network:
        """The network behind ``cams``, ``segment`` and ``class_scores``."""
        return self.assigner if self.config.inference == "assignment" else self.online

    def after_step(self, step: int) -> None:
        """Move the assignment network a step towards the online one."""
        if self.assignment is not None:
            self.assignment.follow(self.online._asdict(), self.config.momentum)

    def cam_threshold(self, which: str = MAIN) -> tuple[float, bool]:
        """ξ of equation 6, or ξ† of auxiliary CAMs; their mean for the ensemble, once these have been looked at."""
        if not self.thresholds:
            return float(self.config.threshold), False
        main, aux = (cast(DynamicThreshold, self.thresholds[name]) for name in ("main", "aux"))
        if which.startswith(AUX):
            return float(aux.value), True
        both = [main, aux] if self.config.ensemble and which == MAIN and aux.batches > 0 else [main]
        return sum(float(one.value) for one in both) / len(both), True

    def figures(self) -> dict[str, float]:
        """The dynamic thresholds, of those CAMs that have been looked at, and 1 where the last fit held them."""
        found: dict[str, float] = {}
        for name, module in self.thresholds.items():
            threshold = cast(DynamicThreshold, module)
            if threshold.batches > 0:
                found |= {f"threshold_{name}": float(threshold.value), f"threshold_{name}_held": float(threshold.held)}
        return found

    def losses(self, batch: Batch, step: int) -> Losses:
        """cls, cls_aux; after ``warmup`` c2s, c2s_aux (equation 5), s2c (8), csc (10) and reg, weighted as in 11.

        Raises ConfigError for a batch without the view 'strong', TrainingError for one without the masks that guide.
        """
        cfg = self.config
        features = self.encoder(self.view(batch, "strong").images)
        maps = self.classifier.cam(features.maps[-1])
        terms = {"cls": self.tag_loss(self.classifier(features.maps[-1], maps), batch.tags)}
        if cfg.weight_cls_aux > 0:
            terms["cls_aux"] = self.tag_loss(self.auxiliary(features.maps[cfg.auxiliary_map]), batch.tags)
        if step >= cfg.warmup:
            terms |= self._assigned_terms(batch, features, maps, step >= (cfg.s2c_warmup or 0))
        return self.weighted(terms)

    def _assigned_terms(self, batch: Batch, features: Features, maps: Tensor, guides: bool) -> dict[str, Tensor]:
        """The terms that learn from the assigner; features and class maps (B,C,h,w) of the strong view."""
        cfg = self.config
        guides = guides and cfg.weight_s2c > 0
        main = cfg.weight_c2s > 0 or cfg.weight_reg > 0
        auxiliary = cfg.weight_c2s_aux > 0 or cfg.weight_csc > 0
        if not (main or auxiliary or guides):
            return {}
        terms: dict[str, Tensor] = {}
        weak = self._weak_view(batch, auxiliary, guides)
        logits = self.decoder(features) if main or cfg.weight_c2s_aux > 0 else None
        # Once for both kinds of labels.
        large = None if logits is None else to_image_size(logits, batch.images).float().log_softmax(1)
        if main and logits is not None and large is not None:
            assigned = self._assign("main", batch, weak.cams, weak.scores)
            labels, confidence = batch_labels(assigned, batch, self.refiner, cfg.low)
            if cfg.weight_c2s > 0:
                terms["c2s"] = self._c2s(large, labels, confidence, assigned.threshold)
            if cfg.weight_reg > 0:
                terms["reg"] = dense_energy(cfg.energy, batch, logits, labels)
        if weak.auxiliary is not None:
            assigned = self._assign("aux", batch, weak.auxiliary, weak.scores)
            if cfg.weight_c2s_aux > 0 and large is not None:
                labels, confidence = batch_labels(assigned, batch, self.refiner, cfg.low)
                terms["c2s_aux"] = self._c2s(large, labels, confidence, assigned.threshold)
            if cfg.weight_csc > 0:
                terms["csc"] = self._separation(batch, maps, assigned)
        if weak.logits is not None:
            valid = photo_positions(batch, (maps.shape[-2], maps.shape[-1]))
            guided = self._guided(features, maps)
            guide = GUIDES[cfg.guidance](batch, weak.logits) if cfg.guidance in GUIDES else weak.logits
            terms["s2c"] = seg_to_cam(guided, guide, batch.tags, cfg.temperature, valid, cfg.rectify)
        return terms

    @torch.no_grad()
    def _weak_view(self, batch: Batch, auxiliary: bool, segments: bool) -> WeakView:
        """What the assigner makes of the batch's own images, in one pass a scale."""
        cfg, network = self.config, self.assigner
        stride = self.encoder.strides[cfg.auxiliary_map if auxiliary else -1]
        height, width = batch.images.shape[-2:]
        pooled: list[Tensor] = []
        segmented: list[Tensor] = []

        def forward(images: Tensor) -> Tensor:
            features = network.encoder(images)
            maps = network.classifier.cam(features.maps[-1])
            pooled.append(network.classifier(features.maps[-1], maps)[:, :, None, None])
            if segments:
                segmented.append(network.decoder(features))
            return self._joined(network, features, maps) if auxiliary else maps

        training = self.training
        self.eval()  # without ``swap`` the assigner is the trained network
        grid = (-(-height // stride), -(-width // stride))
        cams = multi_scale(forward, batch.images, cfg.cam_scales, cfg.cam_flip, grid)
        self.train(training)
        return WeakView(
            cams[:, : self.classes],
            cams[:, self.classes :] if auxiliary else None,
            self.probabilities(mean_of_views(pooled, cfg.cam_flip)[:, :, 0, 0]),
            mean_of_views(segmented, cfg.cam_flip) if segments else None,
        )

    def _joined(self, network: Network, features: Features, maps: Tensor) -> Tensor:
        """(B,2C,h,w): class maps (B,C,·,·) and behind them the auxiliary ones, on whose finer grid both are."""
        auxiliary = network.auxiliary.cam(features.maps[self.config.auxiliary_map])
        return torch.cat([resize(maps, (auxiliary.shape[-2], auxiliary.shape[-1])), auxiliary], 1)

    def _assign(self, name: str, batch: Batch, cams: Tensor, scores: Tensor) -> Assigned:
        """CAMs (B,C,h,w) of the tags that are trusted; a dynamic threshold takes them up first.

        Where a tagged class scores under ``gate`` in this crop the object was probably cropped out, and its
        normalised CAM is noise.
        """
        cfg = self.config
        trusted = (batch.tags > 0) & (scores >= cfg.gate)
        if cfg.threshold != "dynamic":
            return Assigned(cams, trusted, cfg.threshold)
        valid = photo_positions(batch, (cams.shape[-2], cams.shape[-1]))
        return Assigned(cams, trusted, self.thresholds[name].update(cams, trusted, valid))  # type: ignore[operator]

    def _c2s(self, log_probs: Tensor, labels: Tensor, confidence: Tensor, threshold: Tensor | float) -> Tensor:
        """Cross-entropy of log-probabilities (B,C+1,H,W) against CAM labels (B,H,W), weighted as ``weighting`` says."""
        cfg = self.config
        unsure = perplexity(confidence, threshold, cfg.alpha, cfg.beta) if cfg.weighting == "raw" else None
        return cam_to_seg(log_probs, labels, unsure, log_probs=True, balanced=cfg.balanced)

    def _separation(self, batch: Batch, maps: Tensor, assigned: Assigned) -> Tensor:
        """csc of the online class maps (B,C,h,w), on the auxiliary CAMs' grid and by their labels."""
        cfg = self.config
        grid = (assigned.cams.shape[-2], assigned.cams.shape[-1])
        labels, confidence = cam_assignment(assigned, grid, cfg.low)
        labels = without_doubt(labels, batch, assigned.trusted)
        unsure = perplexity(confidence, assigned.threshold, cfg.alpha, cfg.beta)
        return contrastive_separation(resize(maps.float(), grid), labels, unsure, cfg.epsilon, cfg.contrast_temperature)

    def _guided(self, features: Features, maps: Tensor) -> Tensor:
        """The class maps that s2c trains, cut off from what ``detach`` names (the paper's Table 4a)."""
        if self.config.detach == "features":
            return self.classifier.cam(features.maps[-1].detach())
        if self.config.detach == "classifier":
            return F.conv2d(features.maps[-1], self.classifier.conv.weight.detach())
        return maps

    def class_maps(self, images: Tensor) -> Tensor:
        """(B,C,h,w) class maps of the used network before ReLU."""
        return self.used.class_maps(images)

    def class_logits(self, images: Tensor) -> Tensor:
        """(B,C) class scores, logits, of the used network."""
        return self.used.classifier(self.used.encoder(images).maps[-1])

    def cam_maps(self, images: Tensor) -> Tensor:
        """The class maps; with ``ensemble`` (B,2C,h,w), the auxiliary ones behind them."""
        if not self.config.ensemble:
            return self.class_maps(images)
        features = self.used.encoder(images)
        return self._joined(self.used, features, self.used.classifier.cam(features.maps[-1]))

    def cams_of_scales(self, images: Tensor, scales: Sequence[float], flip: bool) -> Tensor:
        """As the base has them; with ``ensemble`` the mean of both kinds."""
        kinds = super().cams_of_scales(images, scales, flip).split(self.classes, 1)
        return torch.stack(kinds).mean(0)

    def segment(self, images: Tensor) -> Tensor:
        """(B,C+1,H,W) logits of the used network at the images' size."""
        return self.used.segment(images)

    def others(self) -> dict[str, Maps]:
        """The auxiliary CAMs, where they are trained, and all maps of the network that is not used."""

        def auxiliary_of(network: Network) -> Maps:
            return Maps(lambda images: network.auxiliary.cam(network.encoder(images).maps[self.config.auxiliary_map]))

        found = {AUX: auxiliary_of(self.used)}
        if self.assignment is not None:
            used_online = self.used.encoder is self.encoder
            name, other = ("assignment", self.assigner) if used_online else ("online", self.online)
            found |= {name: Maps(other.class_maps, other.segment), f"{AUX}_{name}": auxiliary_of(other)}
        return {
            name: maps for name, maps in found.items() if self.config.weight_cls_aux > 0 or not name.startswith(AUX)
        }

    def analyses(self) -> dict[str, Analysis]:
        """Figure 3."""
        return label_analyses(self, AUX)
