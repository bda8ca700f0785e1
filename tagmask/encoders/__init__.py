"""Pixels to ``Features``: adapters to timm's networks, tagmask's own encoders, and their pretrained weights."""

from __future__ import annotations

import fnmatch

import timm
import torch

from tagmask.config import EncoderConfig
from tagmask.encoders.base import ENCODERS, Encoder, EncoderFactory, norm_parameters
from tagmask.encoders.mit import MiT
from tagmask.encoders.pretrained_classes import PretrainedClasses
from tagmask.encoders.timm_cnn import TimmCNN
from tagmask.encoders.timm_swin import TimmSwin
from tagmask.encoders.timm_vit import TimmViT
from tagmask.encoders.weights import LITE0, load_trained, trained_encoder
from tagmask.encoders.wide_resnet38 import WideResNet38
from tagmask.errors import ConfigError, nearest

__all__ = ["ENCODERS", "Encoder", "MiT", "WideResNet38", "build_encoder", "list_encoders", "norm_parameters"]

FAMILIES: dict[str, EncoderFactory] = {
    **dict.fromkeys(
        (
            "convnext",
            "cspnet",
            "densenet",
            "dla",
            "efficientnet",
            "ghostnet",
            "hrnet",
            "inception_next",
            "mobilenetv3",
            "regnet",
            "repvgg",
            "res2net",
            "resnest",
            "resnet",
            "resnetv2",
            "rexnet",
            "sknet",
            "vgg",
            "xception_aligned",
        ),
        TimmCNN,
    ),
    "deit": TimmViT,
    "vision_transformer": TimmViT,
    "swin_transformer": TimmSwin,
}
"""Adapters by timm's model file."""


def build_encoder(config: EncoderConfig, classes: bool = False) -> Encoder:
    """The encoder that ``config`` describes, with its weights.

    classes: the one map has the logits of the classes that the network was pretrained on (``PretrainedClasses``).
    Raises ConfigError for an unknown name and for a setting that the network does not have or support, WeightsError if
    pretrained weights are not found or do not fit.
    """
    own = config.name in ENCODERS.names()
    factory = ENCODERS.get(config.name) if own else _timm_factory(config.name)
    if classes and factory is not TimmCNN:
        raise ConfigError(f"Encoder '{config.name}': its own classes have no CAMs; set encoder.name to {LITE0}.")
    if config.layout == "v1" and factory is not TimmCNN:
        raise ConfigError(f"encoder.layout=v1 is for ResNets, not for '{config.name}'; leave it at auto.")
    if classes:
        factory = PretrainedClasses
    trained = trained_encoder(config)
    if trained is None:
        encoder = factory(config)
    else:
        encoder = factory(config.model_copy(update={"weights": "none", "layout": trained.layout}))
        load_trained(encoder, trained)
        encoder.weights_origin = trained.origin
    for buffer, values in ((encoder.mean, config.mean), (encoder.std, config.std)):
        if values is not None:
            buffer.copy_(torch.tensor(values).view(1, 3, 1, 1))
    if config.freeze:
        encoder.freeze()
    elif config.freeze_to is not None:
        encoder.freeze_to(config.freeze_to, "encoder.freeze_to")
    return encoder


def list_encoders(pattern: str = "*") -> list[str]:
    """Names that ``build_encoder`` takes and that match a shell wildcard, sorted.

    timm names weights by a tag after a dot; a pattern with a dot ('vit_*.dino') lists those.
    """
    tagged = "." in pattern
    names = {name for family in FAMILIES for name in timm.list_models(module=family, pretrained=tagged)}
    return sorted(fnmatch.filter(names.union(ENCODERS.names()), pattern))


def _timm_factory(name: str) -> EncoderFactory:
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise ConfigError(f"Unknown encoder '{name}'.{nearest(base, list_encoders())}")
    if tag and not timm.is_model_pretrained(name):
        tags = [n.partition(".")[2] for n in timm.list_models(f"{base}.*", pretrained=True)]
        raise ConfigError(f"Encoder '{base}' has no weights called '{tag}'.{nearest(tag, tags)}")
    family = timm.models.model_entrypoint(base).__module__.rpartition(".")[2]
    if family not in FAMILIES:
        raise ConfigError(
            f"Encoder '{name}' is of timm's family '{family}', for which there is no adapter; "
            f"there are adapters for {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[family]
