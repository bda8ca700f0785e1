"""Checkpoints: written whole or not at all. The newest sound one is resumed from."""

from __future__ import annotations

import errno
import pickle
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor

from tagmask.errors import TrainingError
from tagmask.files import of_system, written
from tagmask.pickles import check_saved


class Damaged(Exception):
    """A checkpoint's bytes are not those that were written."""


class InPlace(TorchCheckpointIO):
    """Writes the very file that it is given, not by way of $TMPDIR, and checks the bytes that it reads."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        torch.save(checkpoint, path)

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Its parts carry checksums: it is a zip file. Raises Damaged, and DataError where the disk refuses."""
        try:
            with zipfile.ZipFile(path) as parts:
                if broken := parts.testzip():
                    raise Damaged(f"checksum of {broken}")
            check_saved(Path(path))
            return super().load_checkpoint(path, *args, **options)
        except OSError as error:
            if error.errno != errno.EINVAL:  # which says that the zip file's directory points outside it
                raise of_system(error, path) from error
            raise Damaged(str(error)) from error
        except MemoryError:
            raise
        except pickle.UnpicklingError as error:  # whose text advises to trust the file
            raise Damaged("it holds other things than tensors and numbers") from error
        except Exception as error:  # zlib's and zipfile's, pickle's and torch's, of all kinds
            raise Damaged(str(error) or type(error).__name__) from error


def save_checkpoint(fabric: Fabric, folder: Path, state: dict[str, Any], step: int, keep: int) -> None:
    """Save ``state`` as step_XXXXXXX.ckpt and delete all others but the ``keep`` newest up to it.

    Later ones are of a training that went on from here once more.
    """
    path = folder / f"step_{step:07d}.ckpt"
    with written(path) if fabric.is_global_zero else nullcontext(path) as part:
        fabric.save(part, state)
    if fabric.is_global_zero:
        found = checkpoints(folder)
        kept = [other for other in found if other <= path][-keep:]
        for other in found:
            if other not in kept:
                other.unlink()
    fabric.barrier()


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(folder.glob("step_*.ckpt"))


def weights_of(path: Path) -> tuple[int, dict[str, Tensor]]:
    """Step of a checkpoint, and the method's weights: with ``train.ema`` their average. Raises TrainingError."""
    try:
        state = InPlace().load_checkpoint(path, map_location="cpu", weights_only=True)
    except Damaged as error:
        raise TrainingError(f"{path}: is damaged ({error}). Delete it.") from error
    prefix = "module."  # of the average
    average = {k.removeprefix(prefix): v for k, v in state.get("ema", {}).items() if k.startswith(prefix)}
    return int(state["step"]), average or state["method"]


def load_checkpoint(fabric: Fabric, folder: Path, state: dict[str, Any], say: Callable[[str], None]) -> int:
    """Fill ``state`` in place from the newest sound checkpoint and return its step; 0 when there is none.

    say: is told of each damaged one. Raises TrainingError when all are damaged, or when one belongs to another
    configuration.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            fabric.load(path, state, weights_only=True)
            return int(state["step"])
        except Damaged as error:
            say(f"{path}: is damaged ({error}) and left out.")
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"{path}: cannot be resumed ({error}). It was written by another configuration; delete it to go on "
                "from the one before, or train into another folder."
            ) from error
    if found:
        raise TrainingError(f"{folder}: no checkpoint is sound any more. Delete the folder to train from the start.")
    return 0
