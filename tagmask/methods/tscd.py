"""``tscd``: self correspondence distillation (Xu et al., AAAI 2023).

``baseline`` with VARM, plus: the segmentation of two views of an image is taught to agree where their class maps
agree; class maps must follow the change of view; attention learns affinities; the dense energy smooths the masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tagmask.cam.maps import multi_scale, normalize, resize
from tagmask.config import ShortSchedule, Strict
from tagmask.data.views import make_affine, warp
from tagmask.losses import balanced_cross_entropy, equivariance, self_correspondence
from tagmask.methods.common.affinity import AffinityConfig, AffinityMethod, predict_affinity
from tagmask.methods.common.dense_energy import EnergyConfig, dense_energy
from tagmask.registry import METHODS
from tagmask.strict import Factor, Few
from tagmask.tensors import full
from tagmask.types import Batch, Features


class AffineConfig(Strict):
    """The affine A that makes the second view; what is random is drawn anew for each image and step."""

    scale: float = Field(0.3, gt=0, le=1, description="of the second view's resolution")
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    rotation: float = Field(0.0, ge=0, le=180, description="largest rotation to either side, degrees")
    translation: float = Field(0.0, ge=0, lt=1, description="largest shift to either side, in halves of the image")


class TSCDConfig(AffinityConfig):
    """Settings of ``tscd``; the defaults are the paper's on VOC. ``variant`` changes some, unless they are set."""

    affinity_term: ClassVar[str] = "aux"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "release": {
            "scd_maps": "normalized",
            "centered": True,
            "weight_equ": 0.0,
            "refine_options": {"variant": "release"},
            "energy": {"gradient": "release"},
        },
    }

    name: Literal["tscd"] = "tscd"  # type: ignore[assignment]
    variant: Literal["paper", "release"] = Field(
        "paper", description="defaults of scd_maps, centered, weight_equ, VARM and the energy"
    )
    refine: str = Field("varm", description="refinement of pseudo labels: none, par, pamr or varm")
    affine: AffineConfig = Field(AffineConfig(), description="the affine map that makes the second view")
    points: Few = Field(40, description="points x points positions of each view are compared")
    scd_maps: Literal["raw", "normalized"] = Field(
        "raw", description="class maps that scd compares: the network's own, or multi-scale CAMs in [0,1]"
    )
    centered: bool = Field(False, description="take from class map agreement its mean at each point")
    detach: bool = Field(True, description="class map agreement is a target: no gradient into class maps")
    equ_maps: Literal["raw", "normalized"] = Field(
        "raw", description="class maps that equ compares: as they are, or of the tags and brought to [0,1]"
    )
    affinity_symmetric: bool = Field(False, description="add the transposed attention")
    weight_scd: Factor = Field(0.1, description="of self correspondence distillation")
    weight_equ: Factor = Field(0.1, description="of the equivariance of class maps")
    weight_aux: Factor = Field(0.1, description="of the affinity loss")
    weight_reg: Factor = Field(0.01, description="of the dense energy")
    energy: EnergyConfig = Field(EnergyConfig(), description="the dense energy")

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """As for ``baseline``; weights that keep the class maps, and a second view that shows something."""
        plan = super().short_schedule(schedule)
        scd = cls.model_fields["weight_scd"].default
        plan["method.weight_scd"] = (scd, "in its ratio to weight_cls: more destroys the class maps")
        plan["method.weight_equ"] = (0.02, "light: no weight that was tried helped a short schedule")
        plan["method.centered"] = (True, "else every pair attracts: rectified class maps never disagree")
        if schedule.small_crop:
            why = f"a second view of {schedule.crop // 2} pixels; 0.3 shows too little"
            plan["method.affine"] = ({"scale": 0.5}, why)
        return plan

    @classmethod
    def preset(cls, values: Mapping) -> dict[str, Any]:
        """Without VARM's options for another refinement."""
        preset = dict(super().preset(values))
        if values.get("refine", "varm") != "varm":
            preset.pop("refine_options", None)
        return preset

    @model_validator(mode="after")
    def _check_detach(self) -> TSCDConfig:
        if self.scd_maps == "normalized" and not self.detach:
            raise ValueError("scd_maps=normalized has no gradient to give to class maps; set detach=true, or raw")
        return self


@METHODS.register("tscd")
class TSCD(AffinityMethod):
    """Baseline with self correspondence distillation and the paper's other terms, each with a weight of its own."""

    config_class = TSCDConfig
    config: TSCDConfig

    def terms_from_cams(
        self, batch: Batch, step: int, active: set[str], features: Features, maps: Tensor, scores: Tensor
    ) -> dict[str, Tensor]:
        """seg, aux (equation 14) and reg, which go by pseudo labels; scd (7) and equ (12), which compare two views."""
        terms: dict[str, Tensor] = {}
        logits = self.decoder(features) if active & {"seg", "scd", "reg"} else None
        by_labels = active & {"seg", "aux", "reg"}
        normalized = "scd" in active and self.config.scd_maps == "normalized"
        cams = self.training_cams(batch, maps.detach()) if by_labels or normalized else None
        if cams is not None and by_labels:
            labels = self.cut(batch, cams, scores)
            if logits is not None and "seg" in active:
                terms["seg"] = balanced_cross_entropy(logits, labels)
            if self.affinity is not None and "aux" in active:
                terms["aux"] = self.affinity_loss(predict_affinity(self.affinity, features), features, labels)
            if logits is not None and "reg" in active:
                terms["reg"] = dense_energy(self.config.energy, batch, logits, labels)
        if active & {"scd", "equ"}:
            terms |= self._view_terms(batch, active, maps, cams if normalized else None, logits)
        return terms

    def _view_terms(
        self, batch: Batch, active: set[str], maps: Tensor, cams: Tensor | None, logits: Tensor | None
    ) -> dict[str, Tensor]:
        """scd and equ, which compare the images with a second view A(I).

        maps (B,C,h,w) raw, with gradient; cams (B,C,·,·) in [0,1], which scd compares instead of maps if given.
        """
        cfg = self.config
        terms = {}
        height, width = batch.images.shape[-2:]
        size = (max(1, round(height * cfg.affine.scale)), max(1, round(width * cfg.affine.scale)))
        affine = self._draw_affine(batch)
        view = look(batch.images, size, affine)
        second = self.encoder(view)
        maps_b = self.classifier.cam(second.maps[-1])
        # Class activation maps are rectified (equation 2).
        cam_a, cam_b = full(maps).relu(), full(maps_b).relu()
        if logits is not None and "scd" in active:
            points_a, points_b = (self._draw_points(batch) for _ in range(2))
            target_a, target_b = (cam_a.detach(), cam_b.detach()) if cfg.detach else (cam_a, cam_b)
            if cams is not None:
                target_a = cams
                target_b = multi_scale(self.class_maps, view, cfg.cam_scales, cfg.cam_flip, plain=maps_b)
            terms["scd"] = self_correspondence(
                target_a, target_b, logits, self.decoder(second), points_a, points_b, cfg.centered
            )
        if "equ" in active:
            grid = (cam_b.shape[-2], cam_b.shape[-1])
            moved = None if affine is None else on_grid(affine, size, grid)
            warped = look(cam_a, grid, moved)
            if affine is not None:  # only where the second view shows a part of the image
                seen = look(torch.ones_like(cam_a[:, :1]), grid, moved) > 0.999
                warped, cam_b = warped * seen, cam_b * seen
            if cfg.equ_maps == "normalized":  # on one grid, so that maps that follow the view cost nothing
                tags = batch.tags[:, :, None, None]  # of an absent class it would be noise
                warped, cam_b = normalize(warped) * tags, normalize(cam_b) * tags
            terms["equ"] = equivariance(warped, cam_b)
        return terms

    def _draw_points(self, batch: Batch) -> Tensor:
        """(B,points²,2) uniform in [-1,1]."""
        return 2 * batch.draw(torch.rand, self.config.points**2, 2) - 1

    def _draw_affine(self, batch: Batch) -> Tensor | None:
        """(B,2,3) from points of the second view to points of the images, in [-1,1]; None for the identity."""
        a = self.config.affine
        if a.flip == a.rotation == a.translation == 0:
            return None
        rows = [
            make_affine(
                flip=chance < a.flip,
                rotation=a.rotation * (2 * turn - 1),
                translation=(a.translation * (2 * x - 1), a.translation * (2 * y - 1)),
            )
            for chance, turn, x, y in batch.draw(torch.rand, 4).tolist()
        ]
        return torch.stack(rows).to(batch.images.device)


def look(x: Tensor, size: tuple[int, int], affine: Tensor | None) -> Tensor:
    """A(x): images or maps (B,K,h,w) at ``size``, seen through ``affine`` (B,2,3). Differentiable.

    Resized first, so that a mere change of resolution keeps the maps' corners where the images' corners are.
    """
    x = resize(x, size)
    return x if affine is None else warp(x, affine)


def on_grid(affine: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The affine (B,2,3) of an image of ``size`` for a coarser ``grid`` (h,w) over the same image.

    In an affine −1 and 1 are the centres of the corner pixels, 1 − 1/w of the way from the middle to the border. So on
    another grid a shift by as much of the image is another number, and where a grid is not square, so is what a
    rotation mixes of x and y. On one position an axis has no length: its shift is 0, and so is what it mixes.
    """
    # Half extent of the corner centres, in halves of the image: what 1 stands for.
    was = [1 - 1 / n if n > 1 else 0.0 for n in (size[1], size[0])]
    now = [1 - 1 / n if n > 1 else 0.0 for n in (grid[1], grid[0])]
    out = affine.new_tensor([old / new if new else 0.0 for old, new in zip(was, now)])
    into = affine.new_tensor([new / old if old else 0.0 for old, new in zip(was, now)])
    matrix = out[:, None] * affine[..., :2] * into
    return torch.cat([matrix, (out * affine[..., 2])[..., None]], -1)
