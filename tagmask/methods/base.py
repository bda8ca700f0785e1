"""What every method is: losses for training, CAMs and masks for use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.cam import multi_scale
from tagmask.config import MethodConfig, RunConfig, ShortSchedule, ViewConfig
from tagmask.encoders import Encoder, build_encoder, norm_parameters
from tagmask.errors import ConfigError, DataError
from tagmask.heads import Classifier
from tagmask.registry import HEADS, METHODS, REFINERS
from tagmask.strict import Scales, used_for
from tagmask.tensors import full
from tagmask.types import Batch, Losses, View

MAIN = "main"
"""Name of the maps that are used, beside those of ``Method.others``."""


class Maps(NamedTuple):
    """What makes class maps (B,C,h,w) before ReLU and logits (B,C+1,H,W) of images (B,3,H,W); None: there are none."""

    cam_maps: Callable[[Tensor], Tensor] | None = None
    segment: Callable[[Tensor], Tensor] | None = None


class Analysis(NamedTuple):
    """What ``tagmask analyse`` can show of a method. about: its title; axis: of its plot.

    look: called with images (1,3,H,W) and tags (1,C), gives by kind:

    - 'numbers': a tensor (n,), whose mean over photos is plotted over 1, …, n.
    - 'accuracy': for each series by name, labels (H,W) and a value (H,W) of each label, which are binned by ``edges``.
      cut: one of the edges, up to which labels are relied on; None where low values do not mean that.
    - 'maps': tensors by name. bool and float (C+1,h,w) are of the background and each class, float (h,w) of the photo;
      long (H,W) are labels.
    - 'place': the same, with a third argument: a place (x,y) of the images, both in [0,1].
    """

    kind: Literal["numbers", "accuracy", "maps", "place"]
    about: str
    look: Callable[..., Any]
    axis: str = ""
    edges: Sequence[float] = ()
    cut: float | None = None


class Method(nn.Module):
    """A way to learn masks. What a subclass defines:

    It must have ``config_class``, the class of its settings, an ``__init__`` that adds its heads, and ``losses``.

    It may have ``cam_maps``, ``class_scores`` and ``segment``, as ``ClassifierMethod`` and ``SegmenterMethod`` have
    them; ``after_step``; ``wanted_views``: views of the batch that it trains on ('strong', 'local', 'photo');
    ``training_only``: parts that only training reads, which a saved model leaves out and a loaded one has as None;
    ``reads_masks``: whether training may see masks.

    Rarely it needs ``cams_of_scales``, ``param_groups``, ``set_views``, ``origin``, ``figures``, ``cam_threshold``;
    ``others`` and ``analyses``, which are looked at and never used;
    ``default_for``: the stage ('classifier', 'affinity', 'segmenter') that has it where no method is named; 'transfer'
    is the classifier where the encoder's pretrained classes tell the tags;
    ``reads_classes``: whether its encoder's map has the logits of the classes that the encoder was pretrained on;
    ``labels_from_tags``: whether the masks that it reads were made from tags, never true ones; ``used_encoder``: where
    in the state dict the encoder lies that a trained model sees with.

    ``has_cams`` and ``has_segmenter`` follow from what is defined.
    """

    config_class: ClassVar[type[MethodConfig]] = MethodConfig
    reads_masks: bool = False
    labels_from_tags: ClassVar[bool] = False
    reads_classes: ClassVar[bool] = False
    wanted_views: frozenset[str] = frozenset()
    training_only: ClassVar[tuple[str, ...]] = ()
    default_for: ClassVar[str | None] = None
    has_cams: ClassVar[bool] = False
    has_segmenter: ClassVar[bool] = False
    used_encoder = "encoder"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.has_cams = cls.cam_maps is not Method.cam_maps or cls.cams is not Method.cams
        cls.has_segmenter = cls.segment is not Method.segment
        cls.default_for = vars(cls).get("default_for")  # not inherited: a stage has one default

    def __init__(self, config: MethodConfig, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.classes = classes

    def losses(self, batch: Batch, step: int) -> Losses:
        """Terms of one training step; a term whose weight is 0 at this step is not computed."""
        raise NotImplementedError

    def cam_maps(self, images: Tensor) -> Tensor:
        """(B,C,h,w) class maps of images (B,3,H,W), before ReLU."""
        raise NotImplementedError

    def segment(self, images: Tensor) -> Tensor:
        """(B,C+1,H,W) segmentation logits of images (B,3,H,W)."""
        raise NotImplementedError

    @torch.no_grad()
    def class_scores(self, images: Tensor) -> Tensor | None:
        """(B,C) probabilities that a class is in the image; None where the method has no classifier."""
        return None

    def after_step(self, step: int) -> None:
        """Called after the optimiser: running averages, prototypes, thresholds."""

    @torch.no_grad()
    def cams(
        self,
        images: Tensor,
        tags: Tensor | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        which: str = MAIN,
    ) -> Tensor:
        """(B,C,H,W) multi-scale class activation maps in [0,1], of images (B,3,H,W); tags (B,C): others' maps are 0.

        scales, flip: of the images; default: ``cam_scales`` and ``cam_flip`` of the settings. which: 'main', or one of
        ``others``. Raises ConfigError for a method without such class maps.
        """
        if not self.has_cams:
            raise ConfigError(f"Method '{self.config.name}' has no class activation maps.")
        config: Any = self.config
        scales, flip = scales or config.cam_scales, config.cam_flip if flip is None else flip
        if which == MAIN:
            cams = self.cams_of_scales(images, scales, flip)
        else:
            cams = multi_scale(self._other(which, "cam_maps"), images, scales, flip, flip_merge=config.flip_merge)
        return cams if tags is None else cams * tags[:, :, None, None]

    def cams_of_scales(self, images: Tensor, scales: Sequence[float], flip: bool) -> Tensor:
        """(B,C,H,W) CAMs in [0,1] of all classes: ``cam_maps`` over scales and, with ``flip``, mirror images."""
        config: Any = self.config
        return multi_scale(self.cam_maps, images, scales, flip, flip_merge=config.flip_merge)

    def others(self) -> dict[str, Maps]:
        """Maps, by name, of other parts than are used: an earlier layer's, another network's."""
        return {}

    def segmenter(self, which: str = MAIN) -> Callable[[Tensor], Tensor]:
        """``segment``, or that of ``others``. Raises ConfigError where there is none."""
        return self.segment if which == MAIN else self._other(which, "segment")

    def _other(self, which: str, kind: str) -> Any:
        found = {name: part for name, maps in self.others().items() if (part := getattr(maps, kind)) is not None}
        if which not in found:
            has = ", ".join([MAIN, *found])
            raise ConfigError(f"which='{which}': method '{self.config.name}' has no such {kind}. There is: {has}.")
        return found[which]

    def analyses(self) -> dict[str, Analysis]:
        """What can be shown of a trained method, by name."""
        return {}

    def param_groups(self, lr: float, head_lr: float = 10.0, freeze_norm: bool = True) -> list[dict[str, Any]]:
        """Optimiser groups: encoders at ``lr``, everything new at ``lr * head_lr``; norm layers at ``lr`` or frozen."""
        encoders = [part for part in self.children() if isinstance(part, Encoder)]
        norms = {id(p) for encoder in encoders for p in norm_parameters(encoder)}
        inside = {id(p) for encoder in encoders for p in encoder.parameters()}
        groups: dict[str, list[nn.Parameter]] = {"encoder": [], "norm": [], "heads": []}
        for parameter in self.parameters():
            if freeze_norm and id(parameter) in norms:
                parameter.requires_grad_(False)
            if parameter.requires_grad:
                where = "heads" if id(parameter) not in inside else "norm" if id(parameter) in norms else "encoder"
                groups[where].append(parameter)
        rates = {"encoder": lr, "norm": lr, "heads": lr * head_lr}
        return [{"name": name, "params": group, "lr": rates[name]} for name, group in groups.items() if group]

    def set_views(self, views: ViewConfig) -> None:
        """Called once the method is built, with the settings of the training views."""

    def origin(self) -> str:
        """Where the weights come from that training starts from, or learns by."""
        return self.encoder.weights_origin

    def figures(self) -> dict[str, float]:
        """Numbers of its state that change in training, for the log; of several processes, the first one's are kept."""
        return {}

    def cam_threshold(self, which: str = MAIN) -> tuple[float, bool] | None:
        """Background score of CAMs in [0,1] that training used, and whether it was learned; None: it used none."""
        return None

    def weighted(self, terms: dict[str, Tensor]) -> Losses:
        """The terms with their total, each times its setting ``weight_<name>``."""
        total = torch.stack([getattr(self.config, f"weight_{name}") * term for name, term in terms.items()]).sum()
        return Losses(terms, total)

    def view(self, batch: Batch, name: str) -> View:
        """A further view of the batch. Raises ConfigError where it was loaded without."""
        if name not in batch.views:
            raise ConfigError(f"Method '{self.config.name}' trains on the view '{name}'; load the batch with it.")
        return batch.views[name]


CAM_SCALES = "image scales of CAMs made from Python; commands use label.cam_scales and label.cam_flip"
"""Help of ``cam_scales`` where training does not use it."""
GATE = "class probability below which a crop's tag is not trusted"
"""Help of ``gate``."""


def short_gate(schedule: ShortSchedule) -> tuple[float, str]:
    """``gate`` in a short training, and why."""
    if short_loss(schedule) == "softmax":
        return 0.0, "a softmax says which class a crop shows, not whether it shows one"
    return 0.1, "do not trust a tag whose object was cropped out"


def short_loss(schedule: ShortSchedule) -> str:
    """``cls_loss`` in a short training: the user's, or softmax where every photo has one of more than RATED_CLASSES."""
    many = schedule.one_class and schedule.classes > RATED_CLASSES
    return schedule.asked.get("cls_loss", "softmax" if many else "multilabel")


class ClassifierConfig(MethodConfig):
    """Settings of a ``ClassifierMethod``."""

    cls_loss: Literal["multilabel", "softmax"] = Field(
        "multilabel", description="softmax: cross-entropy, where every photo has exactly one class"
    )
    cam_scales: Scales = Field([1.0], description=CAM_SCALES)
    cam_flip: bool = Field(True, description="whether those CAMs use mirror images, too")
    flip_merge: Annotated[Literal["max", "sum"], used_for("cams")] = Field(
        "max", description="CAMs in use: of an image's map and its mirror image's, the larger value or the sum"
    )

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """``cls_loss``, its weights by the number of classes (``class_share``), clipping that acts, and warm-ups.

        A softmax is no mean over classes: its weights stay. At first the classifier learns alone (``warmup``); what has
        its own ``*_warmup`` comes later.
        """
        plan = super().short_schedule(schedule)
        plan["train.clip"] = (1.0, "gradients are larger than this where a classifier jumps about")
        softmax = short_loss(schedule) == "softmax"
        if softmax:
            why = f"every photo has one of {schedule.classes} classes, each too rare to be learned by itself"
            plan["method.cls_loss"] = ("softmax", why)
        for name, field in cls.model_fields.items():
            if name.startswith("weight_cls") and not softmax:
                weight = round(field.default * class_share(schedule.classes), 4)
                plan[f"method.{name}"] = (weight, f"the loss is a mean over {schedule.classes} classes")
            elif name == "warmup":
                share = round(schedule.steps * 50 / 230)
                plan["method.warmup"] = (share, "classification only, before its CAMs teach")
            elif name.endswith("_warmup") and field.default is not None:
                plan[f"method.{name}"] = (round(schedule.steps * 100 / 230), "its share of a long schedule")
        return plan


class ClassifierMethod(Method):
    """A method whose ``classifier`` makes class maps of the encoder's last map, for CAMs and class scores."""

    config: ClassifierConfig
    classifier: Classifier

    def class_maps(self, images: Tensor) -> Tensor:
        """(B,C,h,w) class maps before ReLU."""
        return self.classifier.cam(self.encoder(images).maps[-1])

    def cam_maps(self, images: Tensor) -> Tensor:
        """The class maps; a method that refines them says how."""
        return self.class_maps(images)

    def class_logits(self, images: Tensor) -> Tensor:
        """(B,C) class scores, logits, of images (B,3,H,W)."""
        return self.classifier(self.encoder(images).maps[-1])

    def tag_loss(self, scores: Tensor, tags: Tensor) -> Tensor:
        """Loss of class scores (B,C), logits, against tags (B,C), as ``cls_loss`` says."""
        return tag_loss(scores, tags, self.config.cls_loss)

    def probabilities(self, scores: Tensor) -> Tensor:
        """(B,C) float32 probabilities of class scores (B,C): sigmoid, or softmax over the classes (``cls_loss``)."""
        scores = scores.float()
        return scores.softmax(1) if self.config.cls_loss == "softmax" else scores.sigmoid()

    @torch.no_grad()
    def class_scores(self, images: Tensor) -> Tensor:
        """(B,C) probabilities."""
        return self.probabilities(self.class_logits(images))


class SegmenterConfig(MethodConfig):
    """Settings of a ``SegmenterMethod``."""

    head: str = Field("largefov", description="segmentation head: largefov, aspp, segformer or upernet")
    head_options: dict[str, Any] = Field({}, description="of the head, such as dilation and hidden of largefov")

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """A head of few layers, whose dilation suits the crop."""
        options = {"dilation": 2} if schedule.small_crop else {}
        return super().short_schedule(schedule) | {
            "method.head": ("largefov", "few layers, which learn in few steps"),
            "method.head_options": (options, f"the head's reach on crops of {schedule.crop}"),
        }


class SegmenterMethod(Method):
    """A method whose ``decoder`` makes segmentation logits of the encoder's features."""

    decoder: nn.Module

    def segment(self, images: Tensor) -> Tensor:
        """(B,C+1,H,W) logits at the images' size."""
        return to_image_size(self.decoder(self.encoder(images)), images)


class OneStageConfig(ClassifierConfig, SegmenterConfig):
    """Settings of a ``OneStageMethod``."""

    pooling: Literal["max", "avg"] = Field("max", description="of the features, for class scores")
    gate: float = Field(0.0, ge=0, lt=1, description=GATE)
    refine: str = Field("none", description="refinement of the pseudo labels: none, par, pamr or varm")
    refine_options: dict[str, Any] = Field({}, description="of the refinement, such as iterations")

    @classmethod
    def short_schedule(cls, schedule: ShortSchedule) -> dict[str, tuple[Any, str]]:
        """Pooling that learns sooner, and a gate."""
        return super().short_schedule(schedule) | {
            "method.pooling": ("avg", "max pooling learns too slowly for short schedules"),
            "method.gate": short_gate(schedule),
        }


class OneStageMethod(ClassifierMethod, SegmenterMethod):
    """A method whose CAMs are the pseudo labels of its own segmenter."""

    config: OneStageConfig


def tag_loss(scores: Tensor, tags: Tensor, kind: str = "multilabel") -> Tensor:
    """Loss of class scores (B,C), logits, in full precision; tags (B,C) of 0/1.

    kind: 'multilabel' is the soft margin loss, the mean over classes; 'softmax' the cross-entropy with the image's one
    class. Raises DataError for 'softmax' where an image has no tag or several.
    """
    if kind == "multilabel":
        return F.multilabel_soft_margin_loss(full(scores), tags)
    if (tags.sum(1) != 1).any():
        raise DataError("method.cls_loss=softmax takes images of one class each; set method.cls_loss=multilabel.")
    return F.cross_entropy(full(scores), tags.argmax(1))


RATED_CLASSES = 14
"""Classes of the data set on which the planned learning rates were found (docs/notes/baseline.md).

Up to as many, both ``cls_loss`` learn one class a photo equally fast (docs/notes/rates.md).
"""


def class_share(classes: int) -> float:
    """Weight of a loss that is a mean over ``classes``, so that a class learns as fast as each of 14 does."""
    return classes / RATED_CLASSES


def build_head(name: str, encoder: Encoder, outputs: int, options: dict[str, Any] | None = None) -> nn.Module:
    """The segmentation head called ``name`` on an encoder. Raises ConfigError on an unknown name or option."""
    fixed = {"channels": encoder.channels, "strides": encoder.strides, "num_outputs": outputs}
    return _construct(f"Head '{name}'", HEADS.get(name), options, **fixed)


def build_refiner(name: str, options: dict[str, Any] | None = None) -> nn.Module | None:
    """The refinement module called ``name``; None for 'none'. Raises ConfigError on an unknown name or option."""
    return None if name == "none" else _construct(f"Refinement '{name}'", REFINERS.get(name), options)


def _construct(what: str, part: Any, options: dict[str, Any] | None, **fixed: Any) -> nn.Module:
    given, takes = options or {}, inspect.signature(part)
    try:
        takes.bind(**fixed, **given)
    except TypeError as error:
        raise ConfigError(f"{what} does not take these options: {error}. It takes {takes}.") from error
    for key, value in given.items():
        known = takes.parameters.get(key)
        if known and type(known.default) is int and not (isinstance(value, int) and 1 <= value <= 10_000):
            raise ConfigError(f"{what}: its option {key} is a whole number from 1 to 10000, got {value!r}.")
    try:
        return part(**fixed, **given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{what} cannot be made with the options {given}: {error}") from error


def to_image_size(logits: Tensor, images: Tensor) -> Tensor:
    """float32 logits resized bilinearly to the height and width of ``images``."""
    return F.interpolate(logits.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)


def whole_image(images: Tensor, tags: Tensor) -> Batch:
    """A batch of one image that is all photo, with the view 'photo' of it."""
    boxes = torch.tensor([[0, 0, images.shape[-1], images.shape[-2]]], device=images.device)
    same = torch.eye(2, 3, device=images.device)[None]
    generator = torch.Generator(device=images.device).manual_seed(0)
    return Batch(images, tags, boxes, {"photo": View(images, boxes, same)}, [""], generator)


def build_method(config: RunConfig, classes: int) -> Method:
    """Encoder and method of a configuration for ``classes`` foreground classes. Raises ConfigError, WeightsError."""
    if classes < 1:
        raise ConfigError("There are no classes: no image has a tag. Check the tags file and its separator.")
    kind = METHODS.get(config.method.name)
    method: Method = kind(config.method, build_encoder(config.encoder, kind.reads_classes), classes)
    method.set_views(config.views)
    return method
