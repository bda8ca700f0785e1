"""Checkpoints: written whole or not at all, the newest one is resumed from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from tagmask.errors import TrainingError


def save_checkpoint(fabric: Fabric, folder: Path, state: dict[str, Any], step: int, keep: int) -> None:
    """Save ``state`` as step_XXXXXXX.ckpt and delete all but the ``keep`` newest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:07d}.ckpt"
    part = path.with_suffix(".part")
    fabric.save(part, state)
    if fabric.is_global_zero:
        part.replace(path)
        for old in checkpoints(folder)[:-keep]:
            old.unlink()
    fabric.barrier()


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(folder.glob("step_*.ckpt"))


def load_checkpoint(fabric: Fabric, folder: Path, state: dict[str, Any]) -> int:
    """Fill ``state`` in place from the newest checkpoint and return its step; 0 when there is none.

    Raises TrainingError when it belongs to another configuration.
    """
    found = checkpoints(folder)
    if not found:
        return 0
    try:
        fabric.load(found[-1], state, weights_only=True)
    except (RuntimeError, KeyError, ValueError) as error:
        raise TrainingError(
            f"{found[-1]}: cannot be resumed ({error}). It was written by another configuration or is damaged; "
            "delete it to go on from the one before, or train into another folder."
        ) from error
    return int(state["step"])
