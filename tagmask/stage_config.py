"""Settings of the stages of a staged run: what ``stages:`` in a configuration holds (docs/stages.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from tagmask.errors import ConfigError, nearest
from tagmask.strict import Positive, Share, Strict

CLASSIFIER = "classifier"
"""``encoder.weights`` of a stage that starts from the encoder of the run's classifier."""


class ClassifierStage(Strict):
    """The run itself: its encoder, method and training."""


class CamsStage(Strict):
    """Confident labels from CAMs: a class where it wins against much background, background where it wins against
    little, 255 between."""

    rule: Literal["constant", "power"] = Field(
        "constant", description="the background: a score (IRN), or a power of what the CAMs leave (AffinityNet)"
    )
    high: Share = Field(0.3, description="constant: background score that a class has to beat")
    low: Share = Field(0.05, description="constant: background score that has to win")
    power_high: Positive = Field(4, description="power: (1 - strongest CAM)^this has to be beaten")
    power_low: Positive = Field(32, description="power: (1 - strongest CAM)^this has to win")
    crf: str = Field("irn", description="dense CRF preset over either labelling; none")
    confidence: float | None = Field(0.7, gt=0, lt=1, description="of hard labels in the CRF; null: it gets the scores")
    soft: bool = Field(False, description="save the tagged classes' CAMs in half precision, too")

    @model_validator(mode="after")
    def _check_order(self) -> CamsStage:
        if self.high < self.low or self.power_high > self.power_low:
            raise ValueError("high is the stricter background: high >= low and power_high <= power_low")
        return self


class NetworkStage(Strict):
    """A stage that trains a network in a run folder of its own. What is not set is as in the main run."""

    configs: list[str] = Field([], description="YAML files or packaged names, merged under what is set here")
    views: dict[str, Any] = {}
    encoder: dict[str, Any] = {}
    method: dict[str, Any] = {}
    train: dict[str, Any] = {}
    label: dict[str, Any] = {}


class MasksStage(Strict):
    """Masks of the training photos: CAMs are made again, walk over the affinities or are refined, and become labels.

    Or they are those of the classifier's own segmenter, as 'label' says; nothing else is set then.
    """

    source: Literal["cams", "segmenter"] = Field("cams", description="segmenter: of the classifier's own segmenter")
    threshold: float | None = Field(
        None, gt=0, lt=1, description="background score of refined CAMs, without an affinity; default: label.threshold"
    )
    walk: dict[str, Any] = Field({}, description="beta, walk_steps and the like, over those of the affinity's method")
    crf: str = Field("none", description="dense CRF preset over the scores")
    soft: bool = Field(False, description="save the scores of background and tagged classes in half precision, too")


class RoundsStage(Strict):
    """Self-training: the segmenter's own masks of the training photos, limited to their tags, teach it anew."""

    count: int = Field(2, ge=2, le=9, description="segmenters that are trained one after the other")


class StagesConfig(Strict):
    """The stages of a staged run, in their order; those that are not named are left out."""

    classifier: ClassifierStage = ClassifierStage()
    cams: CamsStage | None = None
    affinity: NetworkStage | None = Field(None, description="the network of affinities that masks walk over")
    masks: MasksStage | None = None
    segmenter: NetworkStage | None = Field(None, description="the segmenter that learns from the masks")
    rounds: RoundsStage | None = Field(None, description="further segmenters, that learn from the one before")

    @model_validator(mode="after")
    def _check_needs(self) -> StagesConfig:
        if self.affinity is not None and self.cams is None:
            raise ValueError("stage 'affinity' learns from the labels of stage 'cams'; add it")
        if self.segmenter is not None and self.masks is None:
            raise ValueError("stage 'segmenter' learns from the masks of stage 'masks'; add it")
        own = self.masks is not None and self.masks.source == "segmenter"
        if own and (self.affinity is not None or self.masks != MasksStage(source="segmenter")):
            raise ValueError("masks with source=segmenter have no other settings, and no stage 'affinity' before")
        if self.rounds is not None and self.segmenter is None:
            raise ValueError("stage 'rounds' trains the segmenter again; add stage 'segmenter'")
        return self

    def named(self) -> list[str]:
        """Names of the stages that are there, in order."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]


def stage_mapping(value: Any) -> Any:
    """A list of stages as a mapping, as they are merged and overridden (``stages.masks.crf=psa``).

    Entries are names, or names with settings: ``[classifier, {cams: {high: 0.35}}, masks]``. Anything else is given
    back as it is, for the model to check. Raises ConfigError for a list that is out of order.
    """
    if not isinstance(value, list | tuple):
        return value
    result: dict[str, Any] = {}
    for entry in value:
        if isinstance(entry, Mapping) and len(entry) != 1:
            raise ConfigError(f"stages: an entry is a name, or one name with its settings, got {dict(entry)}.")
        name, settings = next(iter(entry.items())) if isinstance(entry, Mapping) else (str(entry), None)
        if name not in StagesConfig.model_fields:
            raise ConfigError(f"stages: there is no stage '{name}'.{nearest(str(name), StagesConfig.model_fields)}")
        result[name] = {} if settings is None else settings
    order = [name for name in StagesConfig.model_fields if name in result]
    if list(result) != order or len(result) != len(value) or "classifier" not in result:
        raise ConfigError(f"stages: each is named once, in this order: {', '.join(StagesConfig.model_fields)}.")
    return result
