"""Large JSON files, such as COCO's annotations, a value at a time: memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson

from tagmask.errors import DataError


def stream_json(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(key, element) for each element of the lists that a file's object has under ``keys``.

    Key by key in the order of ``keys``, with one pass over the file for each; what lies under other keys is skipped.
    Raises DataError that names the file where it cannot be read or is not valid JSON.
    """
    try:
        for key in keys:
            with path.open("rb") as file:
                for value in ijson.items(file, f"{key}.item", use_float=True, buf_size=1 << 20):
                    yield key, value
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    except (ijson.JSONError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())
        raise DataError(f"{path}: not valid JSON ({what}). A download may have broken off: get it again.") from error
