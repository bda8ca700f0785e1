"""Settings of ``cosa``; not a method."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from tagmask.config import MethodConfig, ShortSchedule
from tagmask.methods.regularize import EnergyConfig
from tagmask.strict import USED

AUXILIARY = ("weight_cls_aux", "weight_c2s_aux", "weight_csc")
"""Weights of what trains the auxiliary classifier, and of what uses its CAMs."""


class CoSAConfig(MethodConfig):
    """Settings of ``cosa``; defaults are the paper's on VOC. ``variant`` changes some; what is set goes before it."""

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
    pooling: Literal["max", "avg"] = Field("max", description="of the class maps into class scores")
    head: str = Field("largefov", description="segmentation head")
    head_options: dict[str, Any] = Field({}, description="of the head, such as dilation and hidden of largefov")
    auxiliary_map: int = Field(-2, lt=-1, description="the encoder's map of the auxiliary CAM; the last is -1")
    warmup: int = Field(6000, ge=0, description="steps of classification only")
    s2c_warmup: int | None = Field(None, ge=0, description="step that GC starts at, where that is after warmup")
    swap: bool = Field(True, description="SA: a running average assigns the labels; false: the trained network itself")
    momentum: float = Field(0.9994, ge=0, le=1, description="of the assignment network's running average")
    start: Literal["copy", "independent"] = Field("copy", description="independent: its heads are drawn anew")
    inference: Annotated[Literal["assignment", "online"], USED] = Field(
        "assignment", description="network that is used; swap only"
    )
    ensemble: Annotated[bool, USED] = Field(False, description="CAMs that are used: the mean with the auxiliary ones")
    cam_scales: list[float] = Field([1.0], description="of the assignment network's views")
    cam_flip: bool = Field(True, description="of the assignment network: mirror images as well")
    threshold: Literal["dynamic"] | Annotated[float, Field(gt=0, lt=1)] = Field(
        "dynamic", description="DT: dynamic, or the CAM value from which a pixel is its class"
    )
    threshold_start: float = Field(0.5, gt=0, lt=1, description="of the dynamic threshold")
    queue: int = Field(100, ge=1, description="batches that the dynamic threshold is fitted to")
    low: float | None = Field(None, ge=0, le=1, description="CAM below which a pixel is background, 255 in between")
    refine: str = Field("none", description="of CAM labels: none, par, pamr or varm")
    refine_options: dict[str, Any] = Field({}, description="of the refinement, such as iterations")
    gate: float = Field(0.0, ge=0, lt=1, description="class probability under which a crop's tag is not trusted")
    weighting: Literal["raw", "none"] = Field("raw", description="RAW: of the pixels in c2s, by reliability")
    balanced: bool = Field(False, description="background and foreground are halves of c2s")
    alpha: float = Field(0.8, gt=0, description="of the perplexity")
    beta: float = Field(1.0, gt=0, description="of the perplexity")
    temperature: float = Field(0.01, gt=0, description="of the segmentation that teaches the CAMs")
    rectify: bool = Field(False, description="cut the CAMs that it teaches at 0")
    detach: Literal["none", "features", "classifier"] = Field("none", description="what s2c does not train")
    epsilon: float = Field(1.0, gt=0, description="largest perplexity of regions that csc compares")
    contrast_temperature: float = Field(0.1, gt=0, description="of csc")
    weight_cls: float = Field(1.0, gt=0, description="of classification")
    weight_cls_aux: float = Field(1.0, ge=0, description="of classification by the auxiliary maps")
    weight_c2s: float = Field(0.1, ge=0, description="of CAMs teaching the segmentation")
    weight_c2s_aux: float = Field(0.1, ge=0, description="of auxiliary CAMs teaching the segmentation")
    weight_s2c: float = Field(0.05, ge=0, description="GC: of the segmentation guiding the CAMs")
    weight_csc: float = Field(0.1, ge=0, description="CSC: of contrastive separation")
    weight_reg: float = Field(0.0, ge=0, description="of the dense energy")
    energy: EnergyConfig = Field(EnergyConfig(), description="the dense energy")

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """As for all methods; a threshold and a queue that follow sooner, and what was found to learn in 230 steps.

        Reliability weighting, auxiliary CAMs and contrastive separation are for long schedules: see docs/notes/cosa.md.
        """
        middle = round((schedule.high + schedule.low) / 2, 3)
        plan: dict[str, tuple[Any, str]] = {
            "views.blur": (0.5, "of the weak view"),
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
