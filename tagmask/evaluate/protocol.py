"""The stamp on a score: everything about how it was made that changes what it means."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version as installed_version
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ThresholdSource = Literal["fixed", "best on val", "best on this split (oracle)", "none"]


class Protocol(BaseModel):
    """How a score was made. JSON-able: ``model_dump()`` and ``Protocol(**values)`` are inverse."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    split: str = Field(description="name of the list of images")
    split_hash: str = Field(description="short digest of the images' ids")
    images: int = Field(ge=0, description="how many were scored")
    truth: str = Field(description="where the true masks came from")
    tags_at_test: bool = Field(description="whether the image's tags limited the classes predicted")
    supervision: str = Field("tags", description="what the method learned from")
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
    crop: int | None = Field(None, description="side of the training crops; None: not recorded")
    seed: int = Field(description="of the training run")
    weights: str = Field(description="origin of the pretrained weights")
    method: str
    encoder: str
    version: str = Field(default_factory=lambda: installed_version("tagmask"), description="of tagmask")

    def describe(self) -> str:
        """One line for people, the facts that move a score first."""
        parts = [
            f"{self.split} ({self.images} image{'' if self.images == 1 else 's'}, {self.split_hash[:4]})",
            "tags at test" if self.tags_at_test else "no tags",
        ]
        if self.left_out:
            parts.append(f"{self.left_out} more without tags left out")
        if self.threshold is not None:
            parts.append(f"threshold {self.threshold:g} ({self.threshold_source})")
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
        trained = f"{self.method} on {self.encoder}, from {self.supervision}"
        parts += [f"truth: {self.truth}", trained + (f", crops of {self.crop}" if self.crop is not None else "")]
        parts += [f"weights: {self.weights}"]
        return " · ".join([*parts, f"seed {self.seed}", f"tagmask {self.version}"])

    def differs(self, other: Protocol, but: Collection[str] = ()) -> list[str]:
        """One line 'field: mine / theirs' for each field in which the two were made differently.

        but: fields that are not looked at. A crop that one of the two did not record is no difference.
        """
        mine, theirs = self.model_dump(), other.model_dump()
        ignored = {*but, *(["crop"] if None in (self.crop, other.crop) else [])}
        return [
            f"{name}: {mine[name]} / {theirs[name]}"
            for name in mine
            if name not in ignored and mine[name] != theirs[name]
        ]
