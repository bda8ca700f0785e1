"""Defaults for ``tagmask run``, chosen from the data's fingerprint and the machine, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

LABEL_THRESHOLDS = {"resnet50": (0.25, 0.15), "tf_efficientnet_lite0": (0.45, 0.3)}
"""Thresholds of CAM labels by encoder, found on held-out photos (docs/results.md): some have broader CAMs."""


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


def choose(found: Mapping[str, Any], device: torch.device, encoder: str = "resnet50") -> list[Choice]:
    """Settings for a data set (its fingerprint) on a device. What the user sets goes before these."""
    gpu = device.type == "cuda"
    images = found["splits"].get("train", {}).get("labelled", found["counts"]["labelled"])
    short = min(found["sizes"]["width"]["median"], found["sizes"]["height"]["median"]) if found["sizes"] else 224
    crop = max(96, min(448 if gpu else 224, round(short / 32) * 32))
    batch = max(1, min(16, images))
    epochs, most = (40, 20000) if gpu else (13, 600)
    steps = max(230, min(most, round(epochs * images / batch)))
    warmup = round(steps * 50 / 230)
    machine = "a GPU" if gpu else "a CPU"
    limit = round(1.3 * crop)
    high, low = LABEL_THRESHOLDS.get(encoder, LABEL_THRESHOLDS["resnet50"])
    choices = [
        Choice("views.crop", crop, f"photos are {short:g} pixels on the short side; {machine} trains"),
        Choice("views.scale", [0.6, 1.6], "few steps: less variation than the papers' long schedules"),
        Choice("train.batch_size", batch, f"{images} tagged photos to train on"),
        Choice("train.steps", steps, f"about {steps * batch / max(images, 1):.0f} passes over the photos"),
        *_optimiser(encoder),
        Choice("train.ema", round(1 - 7 / steps, 4), "the running average of the weights is what is used"),
        Choice("train.warmup", max(1, steps // 20), "a twentieth of the steps"),
        Choice("train.power", 0.9, "polynomial decay"),
        Choice("train.checkpoint_every", max(20, steps // 5), "five places to resume from"),
        Choice("encoder.name", encoder, "runs everywhere; any other with --encoder"),
        Choice("method.name", "baseline", "--method picks another"),
        Choice("method.warmup", warmup, "classification only, before its CAMs teach the segmenter"),
        Choice("method.pooling", "avg", "max pooling learns too slowly for short schedules"),
        Choice("method.high", high, "CAM above which a pixel teaches its class"),
        Choice("method.low", low, "CAM up to which it teaches background"),
        Choice("method.cam_scales", [1.0], "one scale and its flip in training; more when labelling"),
        Choice("method.head_options", {"dilation": 2} if crop < 320 else {}, f"the head's reach on crops of {crop}"),
        Choice("method.weight_seg", 1.0, "short schedules need the full weight"),
        Choice("method.gate", 0.1, "do not trust a tag whose object was cropped out"),
    ]
    if short > limit:
        choices.append(Choice("views.short_side", limit, f"photos of {short:g} pixels: a crop should hold its objects"))
    if fast_bf16(device):
        choices.append(Choice("train.precision", "bf16", f"{machine} with fast bfloat16"))
    return choices


def _optimiser(encoder: str) -> list[Choice]:
    if encoder.startswith(("vit", "deit", "swin", "beit", "eva", "mit")):
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
        section, key = choice.key.split(".")
        result.setdefault(section, {})[key] = choice.value
    return result
