"""What a frozen network saw in photos, kept on disk: its weights never change, so neither does what it sees."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tagmask.errors import TagmaskError

FORMAT = 1
"""Of the entries; to be raised with each change of what a guide's entry holds or of how it is computed."""
RECOUNT = 32
"""Entries that a process adds, or is refused, before it counts the folder's bytes anew."""
STALE = 3600.0
"""Seconds after which a file that was not moved to its place is that of a process that ended in between."""


class GuideCache:
    """Tensors by key, a file each, in one folder of at most ``limit`` bytes.

    When the folder is full nothing more is kept, and nothing is thrown out: photos come in a new order each epoch, so
    that no entry is likelier to be asked for than another. A file is written beside its place and then moved there,
    so that processes and runs may share a folder; each counts its bytes at the first entry that it brings and after
    every ``RECOUNT`` of them, so w processes that fill it at once may pass the limit by w · RECOUNT entries.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._bytes = self._brought = 0
        self._told = False

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry's tensors, on the CPU, or None. A file that cannot be read is warned of and counts as none."""
        path = self._path(key)
        try:
            return load_file(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError) as error:
            warnings.warn(f"{path}: not readable ({error}); it is made anew.", stacklevel=2)
            return None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors (contiguous, on the CPU), unless the folder is full. Raises TagmaskError where writing fails."""
        path = self._path(key)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        size = sum(x.numel() * x.element_size() for x in tensors.values()) + 512  # with the file's header
        try:
            if self._brought % RECOUNT == 0:
                self._bytes = self._count()
            self._brought += 1
            replaced = path.stat().st_size if path.exists() else 0  # an entry that could not be read
            if self._bytes + size - replaced > self.limit:
                self._tell()
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, beside)
            self._bytes += beside.stat().st_size - replaced
            os.replace(beside, path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise TagmaskError(
                f"{path}: the guide's cache cannot be written ({error}). Make room, lower method.guide.cache_gb, name "
                "another folder as method.guide.cache, or leave it out."
            ) from error

    def _count(self) -> int:
        """Bytes of the folder's entries; throws out what processes that were killed have left beside them."""
        total = 0
        for path in self.folder.glob("??/*"):
            with suppress(FileNotFoundError):  # another process moved or threw it out in between
                about = path.stat()
                if path.name.startswith(".") and time.time() - about.st_mtime > STALE:
                    path.unlink()
                else:
                    total += about.st_size
        return total

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _tell(self) -> None:
        if not self._told:
            warnings.warn(
                f"{self.folder}: the guide's cache is full ({self._bytes / 1e9:.1f} of {self.limit / 1e9:.1f} GB); "
                "what it has not is computed in each step. Raise method.guide.cache_gb to keep more.",
                stacklevel=3,
            )
            self._told = True


def content_key(*parts: str | Tensor) -> str:
    """A hash of texts and tensors: of a tensor its type, shape and values."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}\n".encode())
            digest.update(part.detach().cpu().contiguous().numpy().tobytes())
        else:
            digest.update(f"{len(part)} {part}\n".encode())
    return digest.hexdigest()


def weights_key(network: nn.Module) -> str:
    """A hash of all of a network's parameters and buffers with their names."""
    return content_key(*(part for name, value in network.state_dict().items() for part in (name, value)))
