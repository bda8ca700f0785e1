"""What auxiliary class maps need: an earlier map of the encoder, and a classifier that is trained."""

from __future__ import annotations

from typing import Any

from tagmask.encoders import Encoder
from tagmask.encoders.timm_vit import TimmViT
from tagmask.errors import ConfigError

BLOCKS = [-3, -1]
"""Blocks that a ViT returns where encoder.blocks names none: the auxiliary class maps' and the last."""
AUXILIARY = ("weight_cls_aux", "weight_c2s_aux", "weight_csc")
"""Weights of what trains the auxiliary classifier, and of what uses its CAMs."""


def give_earlier_map(encoder: Encoder, index: int) -> None:
    """Let a ViT of one map return BLOCKS. Raises ConfigError for an encoder without the map ``index``, -1 the last."""
    if isinstance(encoder, TimmViT) and len(encoder.channels) == 1:
        if not encoder.default_blocks:
            raise ConfigError(
                f"encoder.blocks names block {encoder.blocks[0]} alone, and method 'cosa' takes its auxiliary CAMs "
                f"from an earlier one than the last; name two, such as {BLOCKS}, or leave it out."
            )
        encoder.return_blocks(BLOCKS)
    maps = len(encoder.channels)
    if maps < -index:
        raise ConfigError(
            f"method.auxiliary_map={index}, but encoder '{type(encoder).__name__}' gives {maps} maps; name a later "
            "one, let encoder.blocks of a ViT name more blocks, or choose another encoder."
        )


def check_trained(config: Any) -> None:
    """Raise ConfigError where auxiliary CAMs are used that nothing trains. config: a method's, with AUXILIARY."""
    used = [f"method.{name}" for name in ("ensemble", *AUXILIARY[1:]) if getattr(config, name)]
    if config.weight_cls_aux == 0 and used:
        raise ConfigError(
            f"{' and '.join(used)}: auxiliary CAMs come from a classifier that method.weight_cls_aux=0 leaves "
            "untrained; set that above 0, or each of these to 0 (ensemble: false)."
        )
