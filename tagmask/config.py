"""Configuration: pydantic models, YAML files, dotted overrides; unknown keys are refused by name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from tagmask.errors import ConfigError, nearest
from tagmask.registry import METHODS
from tagmask.stage_config import StagesConfig, stage_mapping
from tagmask.strict import (
    APART,
    COMPUTED,
    LEARNED_AND_USED,
    PLACE,
    Block,
    Count,
    Factor,
    Few,
    Momentum,
    Natural,
    Pixels,
    Place,
    Positive,
    Scale,
    Seed,
    Share,
    Strict,
    explain,
)
from tagmask.use_config import EngineConfig, EvaluateConfig, GuidesConfig, LabelConfig
from tagmask.yaml_text import parse_yaml, plain_value, read_yaml_file, to_yaml

Jitter = Annotated[float, Field(ge=0, le=10)]
DEVICES = re.compile(r"auto|-1|[1-9][0-9]{0,3}|[0-9]{1,4}(,[0-9]{1,4})+|[0-9]{1,4},")


class DataConfig(Strict):
    """Where images, tags and true masks are."""

    root: Annotated[Place | None, COMPUTED] = Field(None, description="folder of the data set")
    source: str = Field("auto", description="auto, table, folders, shards, masks, voc, coco, cub or demo")
    tags: Annotated[Place | None, PLACE] = Field(
        None, description="CSV or JSONL of tags; default: tags.csv or tags.jsonl in root"
    )
    tags_from: Literal["masks"] | None = Field(
        None, description="masks: a photo's tags are the classes in its true mask, and a plan learns from the masks"
    )
    separator: str = Field(";", description="between tags in one CSV cell")
    images: Annotated[Place | None, PLACE] = Field(
        None, description="folder that image names are relative to; default: found"
    )
    shards: Annotated[str | None, PLACE] = Field(
        None,
        description="tar shards: path, glob or URI, as in s3://photos/train-{000..099}.tar; default: those in root",
    )
    masks: Annotated[Place | None, PLACE] = Field(
        None, description="folder of true masks: for evaluation, and to learn from where there are no tags"
    )
    reviewed: Annotated[Place | None, PLACE] = Field(
        None, description="folder with the review of a run (review.jsonl): its tags and masks are in force"
    )
    train_masks: Place | None = Field(
        None, description="masks to train on instead of true ones, such as another run's masks/"
    )
    classes: list[str] | Place | None = Field(None, description="class names, or a file with one a line")
    colour_map: Annotated[Place | None, PLACE] = Field(
        None, description="file of lines 'r g b name', for masks saved as RGB"
    )
    train: str | None = Field(None, description="list file, or name of a split, to train on; default: all")
    val: str | None = Field(None, description="list file or split held out; default: a seeded share")
    test: str | None = Field(None, description="list file or split that is only scored")
    val_share: float = Field(0.1, ge=0, lt=1, description="share held out where no val list is given")
    seed: Seed | None = Field(None, description="seed of the held-out share; default: the run's own seed")
    demo_images: int = Field(160, ge=8, le=10**6, description="number of scenes drawn by source 'demo'")


class LocalViewConfig(Strict):
    """Local crops of the main view (ECA)."""

    count: int = Field(2, ge=1, le=1000)
    size: Pixels = 256


class ViewConfig(Strict):
    """Geometric and photometric augmentation of the training views."""

    crop: Pixels = Field(512, description="side of the square crop, pixels")
    short_side: Annotated[Pixels | None, LEARNED_AND_USED] = Field(
        None, description="photos larger than this on the short side are reduced to it, in training and in use"
    )
    square: Pixels | None = Field(
        None,
        description="side of the square that photos are resized to in training, before scale and in the place of "
        "short_side; see label.square",
    )
    scale: tuple[Scale, Scale] = Field((0.5, 2.0), description="range of the random resize")
    flip: Share = Field(0.5, description="probability of a horizontal flip")
    jitter: tuple[Jitter, Jitter, Jitter, Annotated[float, Field(ge=0, le=0.5)]] = Field(
        (0.0, 0.0, 0.0, 0.0), description="brightness, contrast, saturation, hue of the main view"
    )
    blur: Share = Field(0.0, description="probability of a Gaussian blur of the main view")
    strong: int = Field(1, ge=0, le=9, description="photometric operations in a row in the strong view (CoSA)")
    local: LocalViewConfig = LocalViewConfig()

    @model_validator(mode="after")
    def _check_scale(self) -> ViewConfig:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale={list(self.scale)}: the smaller number comes first")
        return self


class EncoderConfig(Strict):
    """Which network turns pixels into features, and where its weights come from."""

    name: str = Field("resnet50", description="a timm model, or one of tagmask's own")
    weights: str = Field("auto", description="auto, none, package, a checkpoint's path, or a finished run's folder")
    weights_dir: Annotated[Place | None, COMPUTED] = Field(
        None, description="local directory that 'auto' searches first"
    )
    layout: Literal["auto", "default", "v1"] = Field(
        "auto", description="ResNet: v1 strides on the first 1x1; auto: as the content of the weights tells"
    )
    output_stride: Few | None = Field(16, description="8, 16 or 32 for CNNs; ignored where fixed")
    dilate: bool = Field(True, description="ResNet: stages that output_stride keeps from striding dilate instead")
    mean: tuple[Share, Share, Share] | None = Field(None, description="default: the weights' own")
    std: tuple[Scale, Scale, Scale] | None = Field(None, description="default: the weights' own")
    blocks: list[Block] | None = Field(None, description="ViT: blocks to return; default: the last one")
    drop_path: Momentum = 0.0
    freeze: bool = Field(False, description="train the heads only")
    freeze_to: Few | None = Field(None, description="layers up to the map of this stride do not train; such as 4")
    norm_eval: bool = Field(True, description="CNN: batch norm uses its stored statistics in training")
    checkpointing: bool = Field(False, description="recompute activations to save memory")


class ShortSchedule(NamedTuple):
    """A training of hundreds of steps.

    crop: side, pixels. short: side of the photos that CAMs are made of at scale 1, pixels. high, low: thresholds that
    suit the encoder's CAMs. classes: of the foreground. asked: what the user sets of the method. one_class: whether
    every photo has exactly one.
    """

    steps: int
    crop: int
    short: float
    high: float
    low: float
    classes: int
    asked: Mapping[str, Any] = MappingProxyType({})
    one_class: bool = False

    @property
    def momentum(self) -> float:
        """Of an exponential moving average over a seventh of the steps."""
        return max(0.0, round(1 - 7 / self.steps, 4))

    @property
    def small_crop(self) -> bool:
        """Whether crops are much smaller than those that the papers' defaults are for."""
        return self.crop < 320


class MethodConfig(Strict):
    """Base of every method's configuration; ``name`` picks the method.

    presets: the values of each ``variant``, for a method that has variants. A value that is set replaces the variant's.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    name: str

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        return merge(cls.preset(values), values) if isinstance(values, Mapping) else values

    @classmethod
    def preset(cls, values: Mapping) -> dict[str, Any]:
        """The preset of the variant that ``values`` name; a method may leave out what other ``values`` rule out."""
        return cls.presets.get(str(values.get("variant", "paper")), {})

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """What ``tagmask run`` plans for this method: values that suit a short training, with reasons.

        A paper's defaults are for tens of thousands of steps. Keys are dotted and may be of other sections
        ('method.warmup', 'train.ema'). A subclass adds its own to those of ``super()``.
        """
        return {}

    def phases(self) -> dict[str, bool]:
        """Fields that are a step from which something is on, and whether these settings have what is on from there.

        By their names these are ``warmup``, ``*_warmup`` and ``start_*``. A method says when nothing waits for one.
        """
        return {name: True for name in type(self).model_fields if name.endswith("warmup") or name.startswith("start_")}


class TrainConfig(Strict):
    """Optimisation, precision, devices and logging."""

    steps: Count = 20000
    batch_size: int = Field(8, ge=1, le=2**16, description="images a step, all processes and accumulation together")
    accumulate: int = Field(1, ge=1, le=2**16, description="parts that a step is computed in")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 6e-5
    head_lr: Positive = Field(10.0, description="learning rate of new layers over that of the encoder")
    weight_decay: Factor = 0.01
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    momentum: Momentum = Field(0.9, description="of SGD")
    nesterov: bool = Field(False, description="SGD looks ahead by its momentum")
    freeze_norm: bool = Field(True, description="learning rate 0 for the encoder's norm layers")
    warmup: Natural = Field(1500, description="steps of linear warm-up of the learning rate")
    warmup_ratio: Share = Field(1e-6, description="learning rate at step 0, relative")
    power: Factor = Field(1.0, description="of the polynomial decay")
    clip: Positive | None = Field(5.0, description="largest gradient norm; null to switch off")
    ema: Momentum | None = Field(None, description="momentum of a running average of the weights, used to score")
    precision: Annotated[Literal["fp32", "bf16", "fp16"], LEARNED_AND_USED] = Field(
        "fp32", description="of the networks; fp16 on GPUs only"
    )
    channels_last: bool = True
    accelerator: Annotated[Literal["auto", "cpu", "gpu", "cuda", "mps"], COMPUTED] = "auto"
    devices: Annotated[int | str, COMPUTED] = Field(
        1, description="processes, one a device; -1 for all devices; or numbers of GPUs, as in 0,2"
    )
    nodes: Annotated[Few, COMPUTED] = 1
    strategy: Annotated[Literal["auto", "ddp", "ddp_find_unused_parameters_true"], COMPUTED] = "auto"
    workers: Annotated[Annotated[int, Field(ge=0, le=256)] | Literal["auto"], COMPUTED] = Field(
        "auto", description="processes that read images; auto: 2, more on a GPU where there are cores"
    )
    log_every: Annotated[Count, COMPUTED] = Field(10, description="steps between lines of the log")
    evaluate_every: Annotated[Natural, COMPUTED] = Field(
        0, description="steps between scores on held-out masks; 0: at the end alone"
    )
    watch: Annotated[list[str], COMPUTED] = Field(
        [],
        description="what these scores are of: segmenter, cam, or of a method's other networks and layers, such as "
        "cam_aux; default: segmenter, or cam where there is none",
    )
    checkpoint_every: Annotated[Count, COMPUTED] = Field(500, description="steps between checkpoints")
    keep: Annotated[Count, COMPUTED] = Field(2, description="checkpoints kept")
    tensorboard: Annotated[bool, COMPUTED] = False

    @model_validator(mode="after")
    def _check_nesterov(self) -> TrainConfig:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true needs a momentum above 0")
        return self

    @field_validator("devices")
    @classmethod
    def _check_devices(cls, devices: int | str) -> int | str:
        if not DEVICES.fullmatch(str(devices)):
            raise ValueError("a number of processes from 1 on, -1 for all devices, or numbers of GPUs, as in 0,2")
        return devices


class RunConfig(Strict):
    """Everything that decides a run. Saved, resolved, as ``config.yaml`` in its folder."""

    seed: Seed = 0
    plan: Annotated[bool, COMPUTED] = Field(
        True, description="'tagmask run' chooses what is left open; false: the configuration is complete"
    )
    data: DataConfig = DataConfig()
    views: ViewConfig = ViewConfig()
    encoder: EncoderConfig = EncoderConfig()
    method: SerializeAsAny[MethodConfig] = Field(default_factory=lambda: method_config({}))
    train: TrainConfig = TrainConfig()
    label: LabelConfig = LabelConfig()
    guides: GuidesConfig = GuidesConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    engine: EngineConfig = EngineConfig()
    stages: Annotated[StagesConfig | None, APART] = Field(
        None, description="what 'tagmask run' does after training; default: masks"
    )

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> Any:
        return method_config(value) if isinstance(value, Mapping) else value

    @field_validator("stages", mode="before")
    @classmethod
    def _stages(cls, value: Any) -> Any:
        return stage_mapping(value)


def method_config(values: Mapping[str, Any]) -> MethodConfig:
    """The configuration object of the method that ``values['name']`` names."""
    return _method_class(values).model_validate(dict(values))


def _method_class(section: Mapping[str, Any]) -> type[MethodConfig]:
    """The configuration class of the method that a section names; without a name that of the default method."""
    from tagmask.methods import default_method  # which imports this file

    return METHODS.get(str(section.get("name") or default_method("classifier"))).config_class


def merge(base: dict, over: Mapping) -> dict:
    """``base`` with the values of ``over``; nested mappings are joined.

    Three keys carry others with them. A new ``method.name`` replaces the whole section. A new ``method.variant`` drops
    the keys of ``base`` that the variant has values for. A ``label.threshold`` drops ``label.threshold_from`` of
    ``base``: the number is meant.
    """
    result = _join(_without_preset(base, over), over)
    label = over.get("label")
    if isinstance(label, Mapping) and "threshold" in label and "threshold_from" not in label:
        result["label"].pop("threshold_from", None)
    return result


def _join(base: Mapping, over: Mapping) -> dict:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if key == "stages":
            old, value = stage_mapping(old), stage_mapping(value)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            renamed = key == "method" and "name" in value and value["name"] != old.get("name")
            result[key] = dict(value) if renamed else _join(old, value)
        else:
            result[key] = value
    return result


def _without_preset(base: dict, over: Mapping) -> dict:
    """``base`` without the method's keys for which a variant that is new in ``over`` has values."""
    old, new = base.get("method"), over.get("method")
    if not isinstance(old, Mapping) or not isinstance(new, Mapping) or "variant" not in new:
        return base
    if new["variant"] == old.get("variant"):
        return base
    preset = _method_class({"name": new.get("name", old.get("name"))}).presets.get(str(new["variant"]), {})
    return base | {"method": _prune(old, preset)}


def _prune(values: Mapping, keys: Mapping) -> dict:
    """``values`` without the leaves that ``keys`` has."""
    result = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(keys.get(key), Mapping):
            result[key] = _prune(value, keys[key])
        elif key not in keys:
            result[key] = value
    return result


def parse_overrides(overrides: Iterable[str]) -> dict:
    """``["train.steps=9"]`` → ``{"train": {"steps": 9}}``. Raises ConfigError.

    A value in brackets, braces or quotes is YAML. Any other is one word or number, and text may hold any sign.
    """
    result: dict = {}
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign or not key:
            raise ConfigError(f"Override '{item}' is not of the form key.subkey=value, as in train.lr=1e-4.")
        bare = text.strip()
        if len(bare) > 1 and bare[0] in "[{\"'":
            value = parse_yaml(bare, f"Override '{item[:200]}'")
        else:
            value = plain_value(bare or text)
        for part in reversed(key.split(".")):
            value = {part: value}
        result = _join(result, value)
    return result


def named_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in files("tagmask.configs").iterdir() if p.name.endswith(".yaml"))


def read_yaml(name: str | Path) -> dict:
    """A YAML file by path, or a packaged configuration by name. Raises ConfigError naming the file."""
    known = str(name) in named_configs()
    if os.path.isfile(name) or not known and (Path(name).suffix in (".yaml", ".yml") or os.path.exists(name)):
        values = read_yaml_file(Path(name))
    elif known:
        values = parse_yaml(files("tagmask.configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8"), name)
    else:
        raise ConfigError(f"Unknown configuration '{name}'.{nearest(str(name), named_configs())}")
    if not isinstance(values, dict | None):
        raise ConfigError(f"{name}: a configuration is a mapping of sections, this is a {type(values).__name__}.")
    return values or {}


def load_config(*sources: str | Path | Mapping, overrides: Iterable[str] = ()) -> RunConfig:
    """Merge configurations (paths, packaged names or mappings; later ones win), then dotted overrides.

    Raises ConfigError that names the wrong key and the nearest known one.
    """
    values: dict = {}
    for source in sources:
        values = merge(values, source if isinstance(source, Mapping) else read_yaml(source))
    values = merge(values, parse_overrides(overrides))
    return validate(values)


def validate(values: Mapping) -> RunConfig:
    """The checked configuration. Raises ConfigError with one line a wrong key or value."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        method = values.get("method")
        inner = {"method": _method_class(method)} if isinstance(method, Mapping) else {}
        raise ConfigError(explain(error, RunConfig, inner)) from error


def dump_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML that ``load_config`` reads back."""
    return to_yaml(config.model_dump(mode="json"))
