"""On-disk cache of a frozen network's features: its weights never change, so its features of a photo do not either."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tagmask.errors import DataError, TagmaskError
from tagmask.files import written

FORMAT = 1
"""Version of the entries; raise it with each change of an entry's content or of its computation."""
RECOUNT = 32
"""Calls of ``put`` after which a process counts the folder's bytes again."""


class GuideCache:
    """Tensors by key, one file an entry, in a folder of at most ``limit`` bytes.

    A full folder takes no more entries and evicts none: photos come in a new order each epoch, so no entry is more
    likely to be needed than another. Processes and runs may share a folder: a file is written under a temporary name,
    then renamed. Each process counts the folder's bytes at its first entry and after every ``RECOUNT`` entries, so w
    processes that fill it together may exceed the limit by w · RECOUNT entries.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._bytes = self._brought = 0
        self._told = False

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry's tensors, on the CPU, or None if there is none. Warns of a file that cannot be read: None, too."""
        path = self._path(key)
        try:
            return load_file(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError) as error:
            warnings.warn(f"{path}: not readable ({error}); the entry is computed again.", stacklevel=2)
            return None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors (contiguous, on the CPU) unless the folder is full. Raises TagmaskError if writing fails."""
        path = self._path(key)
        size = sum(x.numel() * x.element_size() for x in tensors.values()) + 512  # with the file's header
        try:
            if self._brought % RECOUNT == 0:
                self._bytes = sum(entry.stat().st_size for entry in self.folder.glob("??/*.safetensors"))
            self._brought += 1
            replaced = path.stat().st_size if path.exists() else 0  # an entry that could not be read
            if self._bytes + size - replaced > self.limit:
                if not self._told:
                    warnings.warn(
                        f"{self.folder}: the guide's cache is full ({self._bytes / 1e9:.1f} of {self.limit / 1e9:.1f} "
                        "GB); further photos are computed in each step. Raise method.guide.cache_gb to keep more.",
                        stacklevel=2,
                    )
                    self._told = True
                return
            with written(path) as part:
                save_file(tensors, part)
                self._bytes += part.stat().st_size - replaced
        except (DataError, OSError, SafetensorError) as error:
            raise TagmaskError(
                f"{path}: the guide's cache cannot be written ({error}). Make room, lower method.guide.cache_gb, name "
                "another folder as method.guide.cache, or leave that out."
            ) from error

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def content_key(*parts: str | Tensor) -> str:
    """A hash of texts and of tensors (type, shape and values)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}\n".encode())
            digest.update(part.detach().cpu().contiguous().numpy().tobytes())
        else:
            digest.update(f"{len(part)} {part}\n".encode())
    return digest.hexdigest()
