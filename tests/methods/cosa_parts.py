"""What the tests of ``cosa`` share: its settings, a batch with both views, the method."""

from __future__ import annotations

from typing import Any, cast

import torch

from tagmask.methods import build_method
from tagmask.methods.cosa import CoSA
from tagmask.types import Batch, View
from tests.methods.contract import CLASSES, ENCODERS, squares, tiny

SETTINGS: dict[str, Any] = {
    "name": "cosa", "warmup": 2, "head_options": {"hidden": 8, "dilation": 1}, "momentum": 0.9, "queue": 4,
    "threshold_start": 0.3, "weight_reg": 0.05, "energy": {"weight": 1e-4},
}  # fmt: skip
WEIGHTS = {"cls": 1.0, "cls_aux": 1.0, "c2s": 0.1, "c2s_aux": 0.1, "s2c": 0.05, "csc": 0.1, "reg": 0.05}
PARTS = ("encoder", "classifier", "auxiliary", "decoder")


def two_views(seed: int = 0, masks: bool = False) -> Batch:
    """The contract's squares; the strong view is darker."""
    batch = squares(seed, masks)
    eye = torch.eye(3)[:2].expand(len(batch.images), 2, 3)
    batch.views["strong"] = View(batch.images * 0.7, batch.boxes, eye)
    return batch


def build(encoder: str = "cnn", classes: int = CLASSES, **changes: Any) -> CoSA:
    torch.manual_seed(0)
    return cast(CoSA, build_method(tiny(SETTINGS | changes, ENCODERS[encoder]), classes).train())


def without(*names: str) -> dict[str, float]:
    return {f"weight_{name}": 0.0 for name in names}
