"""Settings of how a trained run is used: how masks and scores are made, and what guides the masks."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tagmask.strict import COMPUTED, USED, Few, Momentum, Pixels, Role, Scales, Share, Strict, used_for


class GuidesConfig(Strict):
    """Pretrained networks that help to make masks of tagged photos. What they learned from is more than tags."""

    role: ClassVar[Role] = used_for("refined", "guided")
    saliency: str | None = Field(
        None, description="an .onnx file of U²-Net's family, or a name such as u2netp: where a photo has an object"
    )


class LabelConfig(Strict):
    """How masks are made for tagged images (``label``) and without tags (``predict``).

    The outputs that settings decide: 'cams'; 'background', CAMs cut at the background score; 'refined', the same after
    refinement; 'crf'; 'soft', soft maps; 'segmentation', the segmenter's probabilities; 'masks', what ``label`` makes
    of these; 'guided', what tags and ``guides`` limit.
    """

    role: ClassVar[Role] = USED
    source: Annotated[Literal["auto", "cam", "segmenter"], used_for("masks")] = Field(
        "auto", description="what masks are made of; auto: of the segmenter where there is one"
    )
    cam_scales: Annotated[Scales, used_for("cams")] = [1.0, 0.5, 1.5, 2.0]
    cam_flip: Annotated[bool, used_for("cams")] = True
    threshold: Annotated[Share, used_for("background")] = Field(0.3, description="background score of a CAM")
    threshold_from: Annotated[Literal["fixed", "training"], used_for("background")] = Field(
        "fixed", description="training: the background score that the method found in training, instead"
    )
    high: Annotated[Share | None, used_for("masks")] = Field(
        None, description="with low: pixels between the two become 255"
    )
    low: Annotated[Share | None, used_for("masks")] = None
    refine: Annotated[str, used_for("refined")] = Field("par", description="none, par, pamr or varm, on CAMs")
    refine_masks: Annotated[str, used_for("masks")] = Field(
        "par", description="the same on the segmenter's probabilities, where tags are given"
    )
    complete: Annotated[bool, used_for("masks")] = Field(
        True, description="a tag's class that the segmenter finds nowhere is taken from its CAM"
    )
    crf: Annotated[str, used_for("crf")] = Field(
        "none", description="dense CRF preset for the segmenter, but in tiles: afa, toco, cosa, psa, irn, deeplab"
    )
    scales: Annotated[Scales, used_for("segmentation")] = Field([1.0], description="of the segmenter's test")
    flip: Annotated[bool, used_for("segmentation")] = False
    merge: Annotated[Literal["mean", "max"], used_for("segmentation")] = Field(
        "mean", description="of the segmenter's logits over scales and flip"
    )
    unsure: Annotated[Momentum, used_for("segmentation")] = Field(
        0.0, description="segmenter: 255 where the probability is lower"
    )
    soft: Annotated[bool, used_for("soft")] = Field(False, description="save half-precision probabilities, too")
    tile: Annotated[int | None, used_for("segmentation")] = Field(
        None, ge=8, le=2**16, description="predict: side of a tile for large images; default: whole image"
    )
    max_side: Annotated[int, used_for("cams", "segmentation")] = Field(
        2048, ge=32, le=2**16, description="larger images are tiled (segmenter) or reduced to it (CAMs)"
    )

    square: Annotated[Pixels | None, used_for("cams", "segmentation")] = Field(
        None, description="side of the square that networks see each photo as; maps are resized back to its shape"
    )

    @model_validator(mode="after")
    def _check_order(self) -> LabelConfig:
        if (self.high is None) != (self.low is None):
            raise ValueError("high and low go together: set both, or neither")
        if self.high is not None and self.low is not None and self.high < self.low:
            raise ValueError(f"high={self.high} is below low={self.low}")
        if self.square is not None and self.tile is not None:
            raise ValueError(f"square={self.square} is the whole photo, and tile={self.tile} a part of it; set one")
        return self


class EngineConfig(Strict):
    """Who makes the masks of many photos: this process, or workers of Ray. The masks are the same."""

    role: ClassVar[Role] = COMPUTED
    name: Literal["local", "ray"] = Field("local", description="ray: processes on one or many machines, by Ray Data")
    workers: Few | None = Field(None, description="of Ray, at most; default: as many as CPUs and GPUs there are for")
    cpus: float = Field(1.0, gt=0, le=1000, description="CPUs a worker; its networks use as many threads")
    gpus: float | None = Field(
        None, ge=0, le=1000, description="GPUs a worker; workers of 0.5 share one; default: 1 where Ray has one, else 0"
    )

    @field_validator("gpus")
    @classmethod
    def _whole(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError("up to 1, or a whole number")
        return gpus


class EvaluateConfig(Strict):
    """How scores are made. Settings decide these parts: 'curve', 'rims', 'without', 'only' and 'intervals'."""

    role: ClassVar[Role] = USED
    bootstrap: Annotated[int, used_for("intervals")] = Field(
        1000, ge=0, le=10**6, description="resamples of the interval over images; 0: none"
    )
    bins: Annotated[int, used_for("curve")] = Field(100, ge=2, le=10**4, description="thresholds on the CAM curve")
    boundary: Annotated[Share, used_for("rims")] = Field(
        0.02, description="rim of the boundary IoU, as a share of the diagonal; 0: not counted"
    )
    without: Annotated[list[str], used_for("without")] = Field([], description="classes left out of a second mean")
    only: Annotated[list[str], used_for("only")] = Field(
        [], description="classes of a further mean, C-mIoU, such as those that occur together"
    )
