"""The stamp on a score: everything about how it was made that changes what it means."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version as installed_version
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

ThresholdSource = Literal["fixed", "found in training", "best on val", "best on this split (oracle)", "none"]
THRESHOLD_SOURCES: dict[str, ThresholdSource] = {"fixed": "fixed", "training": "found in training"}
"""By ``label.threshold_from``."""
LATER = ("crop", "grid", "precision", "rim", "masks", "bins", "without", "only")
"""Fields that earlier versions did not record; None says so."""


class Protocol(BaseModel):
    """How a score was made. JSON-able: ``model_dump()`` and ``Protocol(**values)`` are inverse."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    split: str = Field(description="name of the list of images")
    split_hash: str = Field(description="short digest of the images' ids")
    images: int = Field(ge=0, description="how many were scored")
    truth: str = Field(description="where the true masks came from")
    tags_at_test: bool = Field(description="whether the image's tags limited the classes predicted")
    supervision: str = Field("tags", description="what the method learned from")
    masks: str | None = Field(None, description="how the masks were made that it learned from; None: not recorded")
    left_out: int = Field(0, ge=0, description="images of the split that have a true mask but no tags to score with")
    threshold: float | None = Field(None, description="background score of CAMs")
    unsure: tuple[float, float] | float | None = Field(None, description="what made pixels 255, if anything")
    threshold_source: ThresholdSource = "none"
    scales: list[float] = Field([1.0], description="of the test images")
    flip: bool = False
    merge: Literal["mean", "max", "sum"] = Field("mean", description="over scales and flip")
    refine: str = Field("none", description="refinement of CAMs")
    crf: str | None = Field(None, description="preset of the dense CRF, if one was applied")
    tile: int | None = Field(None, description="side of the tiles that images were cut into")
    grid: str | None = Field(None, description="size that photos are reduced to; None: not recorded")
    precision: str | None = Field(None, description="of the networks when scored; None: not recorded")
    rim: float | None = Field(None, description="rim of the boundary IoU, of the diagonal; None: not recorded")
    bins: int | None = Field(None, description="thresholds that the best was searched among; None: not recorded")
    without: list[str] | None = Field(None, description="classes left out of the second mean; None: not recorded")
    only: list[str] | None = Field(None, description="classes of the C-mIoU; None: not recorded")
    crop: int | None = Field(None, description="side of the training crops; None: not recorded")
    seed: int = Field(description="of the training run")
    weights: str = Field(description="origin of the pretrained weights")
    method: str
    use: str | None = Field(None, description="in which settings it was used in another way than trained for")
    encoder: str
    version: str = Field(default_factory=lambda: installed_version("tagmask"), description="of tagmask")

    @field_validator("supervision")
    @classmethod
    def _without_folder(cls, value: str) -> str:
        """Earlier versions wrote 'masks of FOLDER', which differs between seeds of one row and between machines."""
        return "masks" if value.startswith("masks of ") else value

    def describe(self) -> str:
        """One line for people, the facts that move a score first."""
        parts = [
            f"{self.split} ({self.images} image{'' if self.images == 1 else 's'}, {self.split_hash[:4]})",
            "tags at test" if self.tags_at_test else "no tags",
        ]
        if self.left_out:
            parts.append(f"{self.left_out} more without tags left out")
        if self.threshold is not None:
            searched = f" of {self.bins}" if self.bins and self.threshold_source.startswith("best") else ""
            parts.append(f"threshold {self.threshold:g} ({self.threshold_source}{searched})")
        if self.unsure is not None:
            parts.append(f"255 by {self.unsure}")
        several = len(self.scales) > 1 or self.flip
        scales = f"scale{'s' if len(self.scales) > 1 else ''} {', '.join(f'{s:g}' for s in self.scales)}"
        parts.append(scales + (" + flip" if self.flip else "") + (f" ({self.merge})" if several else ""))
        if self.refine != "none":
            parts.append(f"refined by {self.refine}")
        if self.crf is not None:
            parts.append(f"CRF {self.crf}")
        if self.tile is not None:
            parts.append(f"tiles of {self.tile}")
        if self.grid is not None:
            parts.append(self.grid)
        if self.precision is not None:
            parts.append(self.precision)
        if self.rim:
            parts.append(f"rims of {self.rim:g}")
        if self.without:
            parts.append(f"second mean without {', '.join(self.without)}")
        if self.only:
            parts.append(f"C-mIoU of {', '.join(self.only)}")
        method = self.method + (f" ({self.use})" if self.use is not None else "")
        trained = f"{method} on {self.encoder}, from {self.supervision}"
        trained += f" ({self.masks})" if self.masks is not None else ""
        parts += [f"truth: {self.truth}", trained + (f", crops of {self.crop}" if self.crop is not None else "")]
        parts += [f"weights: {self.weights}"]
        return " · ".join([*parts, f"seed {self.seed}", f"tagmask {self.version}"])

    def differs(self, other: Protocol, but: Collection[str] = ()) -> list[str]:
        """One line 'field: mine / theirs' for each field in which the two were made differently.

        but: fields that are not looked at. A field of ``LATER`` that one of the two did not record is no difference.
        """
        mine, theirs = self.model_dump(), other.model_dump()
        ignored = {*but, *(name for name in LATER if None in (mine[name], theirs[name]))}
        return [
            f"{name}: {mine[name]} / {theirs[name]}"
            for name in mine
            if name not in ignored and mine[name] != theirs[name]
        ]
