"""Tags from the label files of other projects (``cls_labels.npy``), which are pickles, without running their code."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tagmask.errors import DataError

DTYPES = frozenset(("b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"))


class _Refused(Exception):
    """The pickle asks for something that label files have no need of."""


class _DType:
    """Stands for numpy.dtype, so that nothing of NumPy's own unpickling sees what the file says."""

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        text = name.decode("latin1") if isinstance(name, bytes) else str(name)
        self.name = text.lstrip("<>|=")
        self.order = "<"
        if self.name not in DTYPES and self.name not in ("O", "O8", "object"):
            raise _Refused(f"values of type '{text}'")

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subtype, names, fields, size, alignment, flags)
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise _Refused("values of a structured type")
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise _Refused(f"byte order {order!r}")
        self.order = "<" if order in ("|", "=") else order

    @property
    def is_object(self) -> bool:
        return self.name not in DTYPES


class _Array:
    """Stands for numpy.ndarray; ``value`` is the array, built from checked bytes, or the list of its objects."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        # (version, shape, dtype, column order, bytes or list of objects)
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _DType):
            raise _Refused("an array in an unknown form")
        _, shape, dtype, columns, data = state
        if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise _Refused("an array without a shape")
        if dtype.is_object:
            if not isinstance(data, list) or len(data) != math.prod(shape):
                raise _Refused("an array of objects whose number does not fit")
            self.value = data
            return
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote bytes as text
        kind = np.dtype(dtype.order + dtype.name)
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * kind.itemsize:
            raise _Refused("an array whose bytes do not fit its shape")
        self.value = np.frombuffer(data, kind).reshape(shape, order="F" if columns else "C")


class _Call:
    """A function that the pickle may call; its state cannot be changed from there."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("a change of a function")


def _empty_array(*args: Any) -> _Array:
    return _Array()


def _bytes(text: Any, encoding: Any = None) -> bytes:
    # Old protocols write bytes as a call of _codecs.encode(text, "latin1").
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused("a call of an encoder other than latin1")
    return text.encode("latin1")


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _empty_array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("builtins", "dict"): dict,
    ("__builtin__", "dict"): dict,
    ("_codecs", "encode"): _bytes,
}


class _LabelUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise _Refused(f"a call of {module}.{name}")
        return _Call(ALLOWED[module, name])

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an outside object")


def read_label_file(path: str | Path) -> dict[str, np.ndarray]:
    """Vectors (C,) of 0/1, float32, by image name from a pickled dictionary in a ``.npy`` file.

    Nothing that the file names is imported or called: arrays of numbers and dictionaries are put together here, and
    any other object is refused. Raises DataError that says what the file asked for, and when it is no dictionary of
    equally long vectors of 0 and 1.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            _skip_header(file, path)
            found = _LabelUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    except _Refused as error:
        raise DataError(
            f"{path}: refused, because it contains {error}, which a label file has no need of. Opened in the usual way "
            "it could run code. Do not load it with NumPy, and take tags from the data set's own files."
        ) from error
    except DataError:
        raise
    except Exception as error:  # broken pickles raise nearly any type
        raise DataError(f"{path}: not a readable label file ({error!r}).") from error
    value = _plain(found)
    if isinstance(value, list) and len(value) == 1:  # a dictionary in an array of no dimensions
        value = value[0]
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: expected a dictionary of image names, found {type(value).__name__}.")
    result: dict[str, np.ndarray] = {}
    for name, entry in value.items():
        vector = _plain(entry)
        if not isinstance(name, str) or not isinstance(vector, np.ndarray) or vector.ndim != 1:
            raise DataError(f"{path}: entry {name!r} is not a name with a vector of 0 and 1.")
        if not np.isin(vector, (0, 1)).all():
            raise DataError(f"{path}: the vector of '{name}' holds other values than 0 and 1.")
        result[name] = vector.astype(np.float32)
    lengths = {len(vector) for vector in result.values()}
    if len(lengths) > 1:
        raise DataError(f"{path}: vectors of {min(lengths)} and of {max(lengths)} classes are mixed.")
    return result


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, _Array) else value


def _skip_header(file: BinaryIO, path: Path) -> None:
    version = np.lib.format.read_magic(file)
    reader = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}.get(version[0])
    if reader is None:
        raise DataError(f"{path}: .npy version {version[0]} is unknown.")
    _, _, dtype = reader(file)
    if not dtype.hasobject:
        raise DataError(f"{path}: an array of {dtype}, not a dictionary of image names.")


def write_tags(labels: Mapping[str, np.ndarray], classes: Sequence[str], out: str | Path) -> int:
    """Write vectors (C,) of 0/1 as a table that source 'table' and data.tags read (JSONL). Returns the rows.

    labels: by image name. classes: C names in the vectors' order. Raises DataError where C differs.
    """
    length = len(next(iter(labels.values()))) if labels else 0
    if length != len(classes):
        raise DataError(f"The labels are of {length} classes, {len(classes)} names were given.")
    out = Path(out)
    if out.suffix.lower() not in (".jsonl", ".ndjson"):
        raise DataError(f"{out}: tags are written as JSONL; let the name end in .jsonl.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for name, vector in labels.items():
            tags = [classes[i] for i in np.flatnonzero(vector).tolist()]
            file.write(json.dumps({"image": name, "tags": tags}, ensure_ascii=False) + "\n")
    return len(labels)
