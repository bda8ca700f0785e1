"""Losses, one a file. The multi-label classification loss is torch's own ``multilabel_soft_margin_loss``."""

from __future__ import annotations

from tagmask.losses.balanced_cross_entropy import balanced_cross_entropy

__all__ = ["balanced_cross_entropy"]
