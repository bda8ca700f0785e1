"""``cosa``: co-training with swapping assignments (Yang et al., ECCV 2024).

An online network learns from an assignment network, its own running average, which sees a weak view of the same
pixels: the assignment network's class activation maps teach the segmentation, its segmentation teaches the class
maps, and a class map from an earlier layer says which regions to hold apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.cam import DynamicThreshold, multi_scale
from tagmask.cam.maps import resize
from tagmask.encoders import Encoder
from tagmask.encoders.timm_vit import TimmViT
from tagmask.errors import ConfigError
from tagmask.heads import Classifier
from tagmask.losses import cam_to_seg, contrastive_separation, perplexity, seg_to_cam
from tagmask.methods.assigning import (
    Assigned,
    cam_assignment,
    mean_of_views,
    photo_positions,
    refined_assignment,
    without_doubt,
)
from tagmask.methods.base import Method, build_head, build_refiner, to_image_size
from tagmask.methods.cosa_config import AUXILIARY, CoSAConfig
from tagmask.methods.ema import frozen_copy, update_average
from tagmask.methods.regularize import build_energy, dense_energy
from tagmask.registry import METHODS
from tagmask.types import Batch, Features, Losses

AUXILIARY_BLOCKS = [-3, -1]
"""Blocks that a ViT returns where encoder.blocks names none: the auxiliary class maps' and the last."""


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


@METHODS.register("cosa")
class CoSA(Method):
    """Online network, assignment network and dynamic thresholds; each term has a weight of its own.

    Raises ConfigError where the encoder gives no map for the auxiliary CAMs, and where these are used but their
    classifier is not trained.
    """

    config_class = CoSAConfig
    config: CoSAConfig
    wanted_views = frozenset(("strong",))

    def __init__(self, config: CoSAConfig, encoder: Encoder, classes: int) -> None:
        if isinstance(encoder, TimmViT) and len(encoder.channels) == 1:
            if not encoder.default_blocks:
                raise ConfigError(
                    f"encoder.blocks names block {encoder.blocks[0]} alone, and method 'cosa' takes its auxiliary CAMs "
                    f"from an earlier one than the last; name two, such as {AUXILIARY_BLOCKS}, or leave it out."
                )
            encoder.return_blocks(AUXILIARY_BLOCKS)
        _check_map(config, encoder)
        _check_auxiliary(config)
        super().__init__(config, encoder, classes)
        self.classifier, self.auxiliary, self.decoder = self._heads()
        self.assignment: nn.ModuleDict | None = None
        if config.swap:
            if config.inference == "assignment":
                self.used_encoder = "assignment.encoder"
            self.assignment = frozen_copy(nn.ModuleDict(self.online._asdict()))
            if config.start == "independent":
                for name, head in zip(("classifier", "auxiliary", "decoder"), self._heads()):
                    self.assignment[name] = frozen_copy(head)
        self.thresholds = nn.ModuleDict()
        if config.threshold == "dynamic":
            for name in ("main", "aux"):
                self.thresholds[name] = DynamicThreshold(config.queue, config.threshold_start)
        self.refiner = build_refiner(config.refine, config.refine_options)
        self.energy = build_energy(config.weight_reg, config.energy)

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

    def train(self, mode: bool = True) -> CoSA:
        super().train(mode)
        if self.assignment is not None:
            self.assignment.eval()
        return self

    def after_step(self, step: int) -> None:
        """Move the assignment network a step towards the online one."""
        if self.assignment is not None:
            for average, source in zip(self.assigner, self.online):
                update_average(average, source, self.config.momentum)

    def cam_threshold(self) -> tuple[float, bool]:
        """ξ of equation 6; its mean with ξ† for the ensemble, once auxiliary CAMs have been looked at."""
        if not self.thresholds:
            return float(self.config.threshold), False
        main, aux = (cast(DynamicThreshold, self.thresholds[name]) for name in ("main", "aux"))
        both = [main, aux] if self.config.ensemble and aux.batches > 0 else [main]
        return sum(float(one.value) for one in both) / len(both), True

    def figures(self) -> dict[str, float]:
        """The dynamic thresholds, of those CAMs that have been looked at."""
        used = ((n, cast(DynamicThreshold, t)) for n, t in self.thresholds.items())
        return {f"threshold_{name}": float(one.value) for name, one in used if one.batches > 0}

    def losses(self, batch: Batch, step: int) -> Losses:
        """cls, cls_aux; after ``warmup`` c2s, c2s_aux (equation 5), s2c (8), csc (10) and reg, weighted as in 11.

        Raises ConfigError for a batch without the view 'strong'.
        """
        cfg = self.config
        if "strong" not in batch.views:
            raise ConfigError("Method 'cosa' trains on the view 'strong'; the batch has none. Load it with that view.")
        features = self.encoder(batch.views["strong"].images)
        maps = self.classifier.cam(features.maps[-1])
        terms = {"cls": F.multilabel_soft_margin_loss(self.classifier.pool(maps).float(), batch.tags)}
        if cfg.weight_cls_aux > 0:
            scores = self.auxiliary(features.maps[cfg.auxiliary_map])
            terms["cls_aux"] = F.multilabel_soft_margin_loss(scores.float(), batch.tags)
        if step >= cfg.warmup:
            terms |= self._assigned_terms(batch, features, maps, step >= (cfg.s2c_warmup or 0))
        total = torch.stack([getattr(cfg, f"weight_{name}") * term for name, term in terms.items()]).sum()
        return Losses(terms, total)

    def _assigned_terms(self, batch: Batch, features: Features, maps: Tensor, guides: bool) -> dict[str, Tensor]:
        """The terms that learn from the assigner; features and class maps (B,C,h,w) of the strong view."""
        cfg = self.config
        guides = guides and cfg.weight_s2c > 0
        main = cfg.weight_c2s > 0 or self.energy is not None
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
            labels, confidence = self._labels(batch, assigned)
            if cfg.weight_c2s > 0:
                terms["c2s"] = self._c2s(large, labels, confidence, assigned.threshold)
            if self.energy is not None:
                terms["reg"] = dense_energy(self.energy, batch, logits, labels)
        if weak.auxiliary is not None:
            assigned = self._assign("aux", batch, weak.auxiliary, weak.scores)
            if cfg.weight_c2s_aux > 0 and large is not None:
                terms["c2s_aux"] = self._c2s(large, *self._labels(batch, assigned), assigned.threshold)
            if cfg.weight_csc > 0:
                terms["csc"] = self._separation(batch, maps, assigned)
        if weak.logits is not None:
            valid = photo_positions(batch, (maps.shape[-2], maps.shape[-1]))
            guided = self._guided(features, maps)
            terms["s2c"] = seg_to_cam(guided, weak.logits, batch.tags, cfg.temperature, valid, cfg.rectify)
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
            pooled.append(network.classifier.pool(maps)[:, :, None, None])
            if segments:
                segmented.append(network.decoder(features))
            return self._joined(network, features, maps) if auxiliary else maps

        with self._evaluating():
            grid = (-(-height // stride), -(-width // stride))
            cams = multi_scale(forward, batch.images, cfg.cam_scales, cfg.cam_flip, grid)
        return WeakView(
            cams[:, : self.classes],
            cams[:, self.classes :] if auxiliary else None,
            mean_of_views(pooled, cfg.cam_flip)[:, :, 0, 0].sigmoid(),
            mean_of_views(segmented, cfg.cam_flip) if segments else None,
        )

    def _joined(self, network: Network, features: Features, maps: Tensor) -> Tensor:
        """(B,2C,h,w): class maps (B,C,·,·) and behind them the auxiliary ones, on whose finer grid both are."""
        auxiliary = network.auxiliary.cam(features.maps[self.config.auxiliary_map])
        return torch.cat([resize(maps, (auxiliary.shape[-2], auxiliary.shape[-1])), auxiliary], 1)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The assigner in evaluation mode; without ``swap`` that is the trained network, which has to go back."""
        switched = self.training and self.assignment is None
        if switched:
            self.eval()
        try:
            yield
        finally:
            if switched:
                self.train()

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

    def _labels(self, batch: Batch, assigned: Assigned) -> tuple[Tensor, Tensor]:
        """CAM labels and confidence (B,H,W) on the batch's images."""
        size = (batch.images.shape[-2], batch.images.shape[-1])
        labels, confidence = cam_assignment(assigned, size, self.config.low)
        if self.refiner is not None:
            labels = refined_assignment(assigned, batch, self.refiner, self.config.low)
        return without_doubt(labels, batch, assigned.trusted), confidence

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

    @torch.no_grad()
    def cams(
        self,
        images: Tensor,
        tags: Tensor | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
    ) -> Tensor:
        """(B,C,H,W) multi-scale CAMs in [0,1], with ``ensemble`` the mean of both; scales, flip: those of training."""
        cfg, network = self.config, self.used

        def forward(x: Tensor) -> Tensor:
            features = network.encoder(x)
            maps = network.classifier.cam(features.maps[-1])
            return self._joined(network, features, maps) if cfg.ensemble else maps

        cams = multi_scale(forward, images, scales or cfg.cam_scales, cfg.cam_flip if flip is None else flip)
        if cfg.ensemble:
            cams = torch.stack(cams.split(self.classes, 1)).mean(0)
        return cams if tags is None else cams * tags[:, :, None, None]

    @torch.no_grad()
    def class_scores(self, images: Tensor) -> Tensor:
        """(B,C) sigmoid probabilities."""
        return self.used.classifier(self.used.encoder(images).maps[-1]).float().sigmoid()

    def segment(self, images: Tensor) -> Tensor:
        """(B,C+1,H,W) logits at the images' size."""
        return to_image_size(self.used.decoder(self.used.encoder(images)), images)


def _check_map(config: CoSAConfig, encoder: Encoder) -> None:
    """Raise ConfigError where the encoder does not give the auxiliary CAMs' map."""
    maps = len(encoder.channels)
    if maps < -config.auxiliary_map:
        ways = [f"set it to {-2 if maps == 2 else f'-2 to -{maps}'}"] if maps > 1 else []
        if isinstance(encoder, TimmViT):
            ways.append("let encoder.blocks name more blocks")
        raise ConfigError(
            f"method.auxiliary_map={config.auxiliary_map}, but encoder '{type(encoder).__name__}' gives {maps} maps; "
            f"{', or '.join(ways) or 'choose an encoder that gives earlier ones, too'}."
        )


def _check_auxiliary(config: CoSAConfig) -> None:
    """Raise ConfigError where auxiliary CAMs are used that nothing trains."""
    ways = {name: f"method.{name}=0" for name in AUXILIARY[1:] if getattr(config, name) > 0}
    if config.ensemble:
        ways = {"ensemble": "method.ensemble=false"} | ways
    if config.weight_cls_aux == 0 and ways:
        raise ConfigError(
            f"method.{' and method.'.join(ways)}: auxiliary CAMs come from a classifier that method.weight_cls_aux=0 "
            f"leaves untrained; set that above 0, or {' '.join(ways.values())}."
        )
