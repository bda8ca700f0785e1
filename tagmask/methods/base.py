"""What every method is: losses for training, CAMs and masks for use."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.config import MethodConfig, RunConfig, ViewConfig
from tagmask.encoders import Encoder, build_encoder, norm_parameters
from tagmask.errors import ConfigError
from tagmask.registry import HEADS, METHODS, REFINERS
from tagmask.types import Batch, Losses

CAMS_WITHOUT_SCALES = "of ``cams`` where its caller names none; the tool names label.cam_scales and label.cam_flip"
"""What says a method's ``cam_scales`` that training does not read."""


class Method(nn.Module):
    """A way to learn masks. Subclasses add their heads in ``__init__`` and implement ``losses``.

    ``config_class``: pydantic model of its settings. ``reads_masks``: whether training may see masks.
    ``wanted_views``: views of the batch that it needs ('strong', 'local', 'photo'). ``training_only``: attributes,
    parts of the method, that only ``losses`` and ``after_step`` read: a saved model leaves them out, and when it is
    loaded they are None. ``segment(images)`` → (B,C+1,H,W) logits is defined only by methods that have a segmenter;
    ``has_cams`` and ``has_segmenter`` follow from what a subclass defines. ``used_encoder``: where in the state dict
    the encoder lies that a trained model sees with.
    """

    config_class: ClassVar[type[MethodConfig]] = MethodConfig
    reads_masks: ClassVar[bool] = False
    labels_from_tags: ClassVar[bool] = False
    default_for: ClassVar[str | None] = None
    wanted_views: frozenset[str] = frozenset()
    training_only: ClassVar[tuple[str, ...]] = ()
    has_cams: ClassVar[bool] = False
    has_segmenter: ClassVar[bool] = False
    used_encoder = "encoder"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.has_cams = cls.cams is not Method.cams
        cls.has_segmenter = callable(getattr(cls, "segment", None))

    def __init__(self, config: MethodConfig, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.classes = classes

    def set_views(self, views: ViewConfig) -> None:
        """Called once the method is built, with the settings of the training views."""

    def origin(self) -> str:
        """Where the weights come from that training starts from, or learns by."""
        return self.encoder.weights_origin

    def cam_threshold(self) -> tuple[float, bool] | None:
        """Background score of CAMs, in [0,1], that training went by, and whether it found it or was given it; None for
        methods that have none."""
        return None

    def losses(self, batch: Batch, step: int) -> Losses:
        """Terms of one training step; a term whose weight is 0 at this step is not computed."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called after the optimiser: EMA networks, prototypes, thresholds."""

    def figures(self) -> dict[str, float]:
        """Numbers of its state that change in training; the log keeps the first process's beside the losses."""
        return {}

    def param_groups(self, lr: float, head_lr: float = 10.0, freeze_norm: bool = True) -> list[dict[str, Any]]:
        """Optimiser groups: encoder at ``lr``, everything new at ``lr * head_lr``; norm layers at ``lr`` or frozen."""
        norms = {id(p) for p in norm_parameters(self.encoder)}
        inside = {id(p) for p in self.encoder.parameters()}
        groups: dict[str, list[nn.Parameter]] = {"encoder": [], "norm": [], "heads": []}
        for parameter in self.parameters():
            if freeze_norm and id(parameter) in norms:
                parameter.requires_grad_(False)
            if parameter.requires_grad:
                where = "heads" if id(parameter) not in inside else "norm" if id(parameter) in norms else "encoder"
                groups[where].append(parameter)
        rates = {"encoder": lr, "norm": lr, "heads": lr * head_lr}
        return [{"name": name, "params": group, "lr": rates[name]} for name, group in groups.items() if group]

    @torch.no_grad()
    def cams(
        self,
        images: Tensor,
        tags: Tensor | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
    ) -> Tensor:
        """(B,C,H,W) class activation maps in [0,1] at the images' size; absent classes are 0 where tags are given.

        scales, flip: of a multi-scale CAM; default: those of training.
        """
        raise ConfigError(f"Method '{self.config.name}' has no class activation maps.")

    @torch.no_grad()
    def class_scores(self, images: Tensor) -> Tensor | None:
        """(B,C) probabilities that a class is in the image; None where the method has no classifier."""
        return None


def build_head(name: str, encoder: Encoder, outputs: int, options: dict[str, Any] | None = None) -> nn.Module:
    """The segmentation head called ``name`` on an encoder. Raises ConfigError on an unknown name or option."""
    fixed = {"channels": encoder.channels, "strides": encoder.strides, "num_outputs": outputs}
    return _construct(f"Head '{name}'", HEADS.get(name), options, **fixed)


def build_refiner(name: str, options: dict[str, Any] | None = None) -> nn.Module | None:
    """The refinement module called ``name``; None for 'none'. Raises ConfigError on an unknown name or option."""
    return None if name == "none" else _construct(f"Refinement '{name}'", REFINERS.get(name), options)


def _construct(what: str, part: Any, options: dict[str, Any] | None, **fixed: Any) -> nn.Module:
    try:
        inspect.signature(part).bind(**fixed, **(options or {}))
    except TypeError as error:
        takes = inspect.signature(part)
        raise ConfigError(f"{what} does not take these options: {error}. It takes {takes}.") from error
    return part(**fixed, **(options or {}))


def to_image_size(logits: Tensor, images: Tensor) -> Tensor:
    """float32 logits resized bilinearly to the height and width of ``images``."""
    return F.interpolate(logits.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)


def build_method(config: RunConfig, classes: int) -> Method:
    """Encoder and method of a configuration for ``classes`` foreground classes. Raises ConfigError, WeightsError."""
    if classes < 1:
        raise ConfigError("There are no classes: no image has a tag. Check the tags file and its separator.")
    encoder = build_encoder(config.encoder)
    method: Method = METHODS.get(config.method.name)(config.method, encoder, classes)
    method.set_views(config.views)
    return method
