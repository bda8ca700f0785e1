"""Defaults for ``tagmask run``, chosen from the data's fingerprint and the machine, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch

from tagmask.config import EncoderConfig, MethodConfig, RunConfig, ShortSchedule, load_config
from tagmask.encoders import build_encoder
from tagmask.encoders.saliency import open_saliency
from tagmask.encoders.weights import LITE0, NoWeights, find_weights
from tagmask.errors import ConfigError, WeightsError
from tagmask.methods import Method, default_method
from tagmask.registry import METHODS
from tagmask.stage_config import CLASSIFIER, StagesConfig, stage_mapping
from tagmask.workflow.matching import Match

LABEL_THRESHOLDS = {"resnet50": (0.25, 0.15), "tf_efficientnet_lite0": (0.45, 0.3)}
"""Thresholds of CAM labels by encoder, found on held-out photos (docs/notes/baseline.md): some have broader CAMs."""
Effort = Literal["quick", "standard", "best"]
"""How much is done: one training; the recipe (docs/methods/recipe.md); the recipe with more rounds and steps."""
ROUNDS = {"standard": 2, "best": 3}
SCALES = {"quick": [1.0], "standard": [0.75, 1.0, 1.25, 1.5], "best": [0.75, 1.0, 1.25, 1.5]}
"""Image scales at which a segmenter makes masks."""
HUNDREDS = 1000
"""Steps up to which a schedule counts as a short one."""
TRANSFORMERS = ("vit", "deit", "swin", "beit", "eva", "mit", "mocov3", "flexivit", "aimv2", "test_vit")
PICK = "--method picks another"
DESIGN = ("name", "layout")
"""Settings of an encoder that decide whether another encoder's weights fit it."""


@dataclass(frozen=True)
class Choice:
    """One setting that was chosen: its dotted key, value and why."""

    key: str
    value: Any
    why: str


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is done in hardware on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose(
    found: Mapping[str, Any],
    device: torch.device,
    given: Mapping[str, Any] | None = None,
    user: RunConfig | None = None,
    effort: Effort | None = None,
    match: Match | None = None,
) -> list[Choice]:
    """Settings that suit a data set (its fingerprint) and a device, but for those that the user sets.

    given: sections of what the user sets; user: the configuration that they make. effort: how much is done; None: only
    the training is planned, not how masks are made. match: whether pretrained classes tell the tags; the first
    masks then come from them. The choices fit the user's encoder, method and schedule. What suits a method, its
    configuration class says (``short_schedule``). Nothing is chosen for ``plan: false``, as published
    configurations have it. Raises ConfigError for an unknown encoder or method.
    """
    given = dict(given or {})
    if given.get("stages") is not None:
        given["stages"] = stage_mapping(given["stages"])
    user = user or load_config(given)
    if not user.plan:
        return []
    transfers = match is not None and match.tells
    teach = masks_teach(found, given)
    name = default_method("transfer" if transfers else "segmenter") if transfers or teach else user.method.name
    kind = METHODS.get(name)
    recipe = effort in ROUNDS and user.stages is None and kind.has_cams and not kind.reads_masks
    own = {section: given.get(section) or {} for section in ("views", "encoder", "method", "train")}
    gpu = device.type == "cuda"
    images = found["splits"].get("train", {}).get("labelled", found["counts"]["labelled"])
    short = min(found["sizes"]["width"]["median"], found["sizes"]["height"]["median"]) if found["sizes"] else 224
    fitting = max(96, min(448 if gpu else 224, round(short / 32) * 32))
    crop = user.views.crop if "crop" in own["views"] else fitting
    batch = user.train.batch_size if "batch_size" in own["train"] else max(1, min(16, images))
    epochs, most = (40, 20000) if gpu else (13, 600)
    longer = 2 if effort == "best" else 1
    fewest, epochs, most = 230 * longer, epochs * longer, most * longer
    steps = user.train.steps if "steps" in own["train"] else max(fewest, min(most, round(epochs * images / batch)))
    machine = "a GPU" if gpu else "a CPU"
    limit = round(1.3 * fitting)
    fast = gpu or fast_bf16(device) or effort == "best"
    learner, why_learner = _encoder(user.encoder, own["encoder"], fast)
    encoder, why_encoder = learner, why_learner
    if match is not None and transfers:
        encoder, why_encoder = match.encoder, "the one whose classes were looked at"
    elif kind.reads_classes:  # the packaged weights have them
        encoder, why_encoder = _encoder(user.encoder, own["encoder"], fast=False)
    own["method"] = {**own["method"], "name": name}
    own["encoder"] = {**own["encoder"], "name": encoder}
    thresholds = LABEL_THRESHOLDS.get(encoder.partition(".")[0], LABEL_THRESHOLDS["resnet50"])
    side = user.views.short_side if "short_side" in own["views"] else limit
    seen = min(short, side or short)
    schedule = ShortSchedule(
        steps, crop, seen, *thresholds, classes=len(found["classes"]), one_class=have_one_class(found)
    )
    choices = [
        Choice("views.crop", crop, f"photos are {short:g} pixels on the short side; {machine} trains"),
        Choice("views.scale", [0.6, 1.6], "few steps: less variation than the papers' long schedules"),
        Choice("train.batch_size", batch, f"{images} tagged photos to train on"),
        Choice("train.steps", steps, f"about {steps * batch / max(images, 1):.0f} passes over the photos"),
        *_optimiser(encoder),
        Choice("train.ema", schedule.momentum, "the running average of the weights is what is used"),
        Choice("train.warmup", min(steps - 1, max(1, steps // 20)), "a twentieth of the steps"),
        Choice("train.power", 0.9, "polynomial decay"),
        Choice("train.checkpoint_every", max(20, steps // 5), "five places to resume from"),
        Choice("encoder.name", encoder, why_encoder),
        Choice(
            "method.name",
            name,
            "it learns from the true masks (data.tags_from)" if teach else match.why if match else PICK,
        ),
    ]
    if short > limit:
        choices.append(Choice("views.short_side", limit, f"photos of {short:g} pixels: a crop should hold its objects"))
    if fast_bf16(device):
        choices.append(Choice("train.precision", "bf16", f"{machine} with fast bfloat16"))
    if effort is not None:
        choices += _labels(kind.has_segmenter or recipe, effort)
    if effort == "best" and recipe:
        choices += _guides(user)
    general = {choice.key: choice for choice in choices}
    planned = general | {choice.key: choice for choice in _method(own, schedule)}
    stages = user.stages
    if recipe and effort in ROUNDS:
        choices = _recipe(kind, ROUNDS[effort])
        stages = StagesConfig.model_validate({"segmenter": {}, **as_mapping(choices)["stages"]})
        planned.update({choice.key: choice for choice in choices})
    if stages is not None:
        # What the classifier's method plans for its own training is not the segmenter's.
        instead = [c for key, c in general.items() if planned[key] is not c and not _is_set(given, key)]
        if kind.reads_classes:
            stride = user.encoder.output_stride
            own["encoder"] = {"output_stride": stride, **(given.get("encoder") or {}), "name": learner}
            planned |= {choice.key: choice for choice in _encoders(stages, own["encoder"], why_learner)}
        planned |= {choice.key: choice for choice in _stages(stages, own, schedule, kind.reads_classes, instead)}
    # A stage's method is named even where the user names it: settings go when another method's name comes over them.
    return [c for c in planned.values() if not _is_set(given, c.key) or _names_stage_method(c.key)]


def masks_teach(found: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether a segmenter learns from the true masks, because the user asks for them (``data.tags_from``) alone.

    Not where the classes come from elsewhere (another source), nor where the user sets stages, or anything of a method.
    found: the fingerprint; given: sections of what the user sets.
    """
    return found.get("source") == "masks" and not given.get("method") and given.get("stages") is None


def have_one_class(found: Mapping[str, Any]) -> bool:
    """Whether every tagged photo has exactly one class. found: the fingerprint."""
    tags = found.get("tags", {})
    return 0 < sum(tags.values()) == found["counts"]["labelled"] and not found["counts"]["empty"]


def _encoder(config: EncoderConfig, own: Mapping[str, Any], fast: bool) -> tuple[str, str]:
    """The encoder's name and why: the user's, or the first of ours whose weights can be had.

    fast: whether the larger one trains in minutes here.
    """
    if own.keys() & {"name", "weights", "layout"}:
        return config.name, "as set"
    names = [config.name, LITE0] if fast else [LITE0, config.name]
    for name in names:
        try:
            find_weights(config.model_copy(update={"name": name}))
        except NoWeights:
            continue
        better = "the stronger one" if name != LITE0 else "trains several times as fast"
        other = "its weights are at hand" if name == names[0] else f"there are no weights of {names[0]}"
        return name, f"{better}; {other}; any other with --encoder"
    return config.name, "any other with --encoder"


def _labels(segments: bool, effort: Effort) -> list[Choice]:
    """How a segmenter makes masks."""
    if not segments:
        return []
    return [
        Choice("label.scales", SCALES[effort], "of the photo, whose logits are averaged"),
        Choice("label.flip", True, "and with the mirror image"),
        Choice("label.crf", "afa", "masks follow the photo's edges"),
        Choice("label.refine_masks", "none", "the CRF does that"),
    ]


def _guides(user: RunConfig) -> list[Choice]:
    """The saliency network, where it and onnxruntime are at hand."""
    for name in ("u2netp", "u2net"):
        try:
            open_saliency(name, user.encoder.weights_dir)
        except (ConfigError, WeightsError):
            continue
        why = "it is at hand; it learned from masks of other photos: null for tags alone"
        return [Choice("guides.saliency", name, why)]
    return []


def _recipe(kind: type[Method], rounds: int) -> list[Choice]:
    """Stages of the recipe after a classifier of this kind."""
    source = "segmenter" if kind.has_segmenter else "cams"
    choices = [Choice("stages.masks.source", source, "the first masks, limited to each photo's tags")]
    if not kind.has_segmenter:
        choices.append(Choice("stages.masks.crf", "afa", "masks follow the photo's edges"))
    if kind.reads_classes:
        choices.append(Choice("label.refine", "none", "the CRF does that"))
    return [*choices, Choice("stages.rounds.count", rounds, "segmenters, each taught by the one before")]


def _encoders(stages: StagesConfig, encoder: Mapping[str, Any], why: str) -> list[Choice]:
    """The encoder of stages that train, after a classifier on one of its own; not where a configuration is named."""
    reasons = {"name": why, "output_stride": "finer maps than those of the first masks"}
    parts = {"affinity": stages.affinity, "segmenter": stages.segmenter}
    return [
        Choice(f"stages.{name}.encoder.{key}", value, reasons.get(key, "as set"))
        for name, part in parts.items()
        if part is not None and not part.configs
        for key, value in encoder.items()
    ]


def _names_stage_method(key: str) -> bool:
    return key.startswith("stages.") and key.endswith(".method.name")


def _method(own: Mapping[str, Mapping[str, Any]], schedule: ShortSchedule) -> list[Choice]:
    """What the method's configuration class plans for the schedule, and what the encoder asks of it.

    Nothing is planned that the user's variant sets, and no options for a head that the user names.
    """
    settings = own["method"]
    kind: type[MethodConfig] = METHODS.get(settings.get("name", default_method("classifier"))).config_class
    plan = kind.short_schedule(schedule._replace(asked=settings))
    variant = kind.presets.get(str(settings.get("variant")), {})
    for name in variant:
        plan.pop(f"method.{name}", None)
    if settings.get("head", "largefov") != "largefov":
        plan.pop("method.head_options", None)
    left_open = "affinity" in kind.model_fields and "affinity" not in settings
    if left_open and not _has_attention(own["encoder"]):
        plan = {key: value for key, value in plan.items() if not key.startswith("method.affinity_")}
        plan["method.affinity"] = ("none", "the encoder has no self-attention to learn affinities from")
    return [Choice(key, value, why) for key, (value, why) in plan.items()]


def _stages(
    stages: StagesConfig,
    own: Mapping[str, Mapping[str, Any]],
    schedule: ShortSchedule,
    frozen: bool,
    instead: Sequence[Choice],
) -> list[Choice]:
    """The same for stages that train, unless a configuration of its own is named for one.

    frozen: whether the classifier's encoder learns nothing, so that no segmenter starts from it. instead: of the
    segmenter, where the classifier's method has others.
    """
    choices = []
    if stages.affinity is not None and not stages.affinity.configs:
        choices += [Choice(f"stages.{c.key}", c.value, c.why) for c in _affinity(stages, own, schedule)]
    segmenter = stages.segmenter
    if segmenter is not None and not segmenter.configs:
        method = {"name": default_method("segmenter"), **segmenter.method}
        planned = _method({**own, "method": method, "encoder": segmenter.encoder or own["encoder"]}, schedule)
        choices.append(Choice("stages.segmenter.method.name", method["name"], "learns from the masks"))
        choices += [Choice(f"stages.segmenter.{c.key}", c.value, c.why) for c in [*instead, *planned]]
        same = all(segmenter.encoder.get(key, own["encoder"].get(key)) == own["encoder"].get(key) for key in DESIGN)
        if (same or frozen) and schedule.steps <= HUNDREDS:
            if not frozen:
                why = "its encoder has learned the classes already, for which a segmenter's few steps hardly suffice"
                choices.append(Choice("stages.segmenter.encoder.weights", CLASSIFIER, why))
            stage = {"views": {**own["views"], **segmenter.views}, "train": {**own["train"], **segmenter.train}}
            learner = _learner({**stage, "encoder": segmenter.encoder or own["encoder"]})
            choices += [Choice(f"stages.segmenter.{c.key}", c.value, c.why) for c in learner]
    return choices


def _learner(own: Mapping[str, Mapping[str, Any]]) -> list[Choice]:
    """How a segmenter of a CNN learns in few steps (docs/notes/recipe.md).

    own: what the user sets of the run and of the stage. Rates are left out where the user sets one.
    """
    if own["encoder"].get("name", EncoderConfig.model_fields["name"].default).startswith(TRANSFORMERS):
        return []
    choices = [
        Choice("views.jitter", [0.3, 0.3, 0.0, 0.0], "masks are the same in other light"),
        Choice("views.scale", [0.75, 1.5], "few steps: less variation than the papers' long schedules"),
        Choice("encoder.freeze_to", 4, "edges and colours are learned already"),
    ]
    if not {"lr", "optimizer", "momentum"} & own["train"].keys():
        choices += [
            Choice("train.lr", 0.005, "it starts from a pretrained encoder"),
            Choice("train.nesterov", True, "with SGD"),
            Choice("train.weight_decay", 1e-4, "with SGD"),
            Choice("train.clip", 5.0, "masks ask for larger steps than tags"),
        ]
    return [choice for choice in choices if not _is_set(own, choice.key)]


def _affinity(stages: StagesConfig, own: Mapping[str, Mapping[str, Any]], schedule: ShortSchedule) -> list[Choice]:
    """Schedule, walk and labels of stage affinity, keys without 'stages.'; nothing for thousands of steps.

    A rate of its own is left out where the user set the run's, or where the encoder learns, too.
    """
    stage, cams = stages.affinity, stages.cams
    assert stage is not None and cams is not None  # 'affinity' needs 'cams'
    steps = stage.train.get("steps", min(schedule.steps, max(60, schedule.steps // 4)))
    if steps > HUNDREDS:
        return []
    method = {"name": default_method("affinity"), **stage.method}
    choices = [Choice("affinity.method.name", method["name"], "learns which pixels belong together")]
    labels = METHODS.get(method["name"]).config_class.stage_labels()
    if "rule" not in cams.model_fields_set or cams.rule == labels.get("rule"):
        choices += [Choice(f"cams.{key}", value, f"labels of {method['name']}") for key, value in labels.items()]
    choices += [
        Choice("affinity.train.steps", steps, "affinities are learned in few passes"),
        Choice("affinity.train.warmup", min(steps - 1, max(1, steps // 20)), "a twentieth of the steps"),
        Choice("affinity.train.ema", None, "so few steps are not averaged"),
    ]
    encoder = {**own["encoder"], **stage.encoder}
    learns = encoder.get("freeze") is False or encoder.get("weights") == "none"
    rated = {"lr", "optimizer"} & own["train"].keys()
    for choice in _method({**own, "method": method}, schedule._replace(steps=steps)):
        if not (learns and choice.key.startswith(("encoder.", "train.")) or rated and choice.key.startswith("train.")):
            choices.append(Choice(f"affinity.{choice.key}", choice.value, choice.why))
    return choices


def _has_attention(settings: Mapping[str, Any]) -> bool:
    """Whether the encoder has attention that can be read: found by building it, without its weights."""
    return build_encoder(EncoderConfig.model_validate({**settings, "weights": "none"})).has_attention


def _is_set(given: Mapping[str, Any], key: str) -> bool:
    for part in key.split("."):
        if not isinstance(given, Mapping) or part not in given:
            return False
        given = given[part]
    return True


def _optimiser(encoder: str) -> list[Choice]:
    if encoder.startswith(TRANSFORMERS):
        return [
            Choice("train.optimizer", "adamw", "transformers do not train well with plain SGD"),
            Choice("train.lr", 6e-5, "the papers' rate for transformers"),
            Choice("train.weight_decay", 0.01, "with AdamW"),
        ]
    return [
        Choice("train.optimizer", "sgd", "CNNs learn in hundreds of steps what AdamW needs thousands for"),
        Choice("train.lr", 0.01, "with SGD, decaying"),
        Choice("train.weight_decay", 5e-4, "with SGD"),
    ]


def as_mapping(choices: list[Choice]) -> dict[str, Any]:
    """Choices as nested sections, to be merged under what the user sets."""
    result: dict[str, Any] = {}
    for choice in choices:
        *sections, key = choice.key.split(".")
        reduce(lambda place, section: place.setdefault(section, {}), sections, result)[key] = choice.value
    return result
