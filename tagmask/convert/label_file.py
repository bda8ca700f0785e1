"""Tags from the label files of other projects (``cls_labels.npy``), which are pickles, without running their code."""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tagmask.errors import DataError
from tagmask.files import of_system, written
from tagmask.types import IGNORE

LARGEST = 1 << 28
"""Bytes of a label file; COCO's take 40 million."""
LONGEST_NAME = 1000
UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters, and halves of characters."""
MOST_NUMBER = 10**12
"""Of an image; COCO's have twelve digits."""


class _Refused(Exception):
    """The pickle asks for something that label files have no need of."""


class _DType:
    """Stands for numpy.dtype, so that nothing of NumPy's own unpickling sees what the file says."""

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        # The name alone makes a plain type; whatever has fields or a shape is of kind V.
        self.type = np.dtype(name) if isinstance(name, str) and len(name) < 9 else np.dtype("V")
        if self.type.kind not in "biufUO" or not self.type.itemsize:
            raise _Refused(f"values of type {reprlib.repr(name)}")

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subtype, names, fields, size, alignment, flags)
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise _Refused("values of a structured type")
        if state[1] not in ("<", ">", "|", "="):
            raise _Refused(f"byte order {reprlib.repr(state[1])}")
        self.type = self.type.newbyteorder(state[1])

    def read(self, data: Any, count: int) -> np.ndarray:
        """``count`` numbers or texts from exactly as many bytes, (count,)."""
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote bytes as text
        if not isinstance(data, bytes) or len(data) != count * self.type.itemsize:
            raise _Refused("an array or a number whose bytes do not fit its type and shape")
        return np.frombuffer(data, self.type)


class _Array:
    """Stands for numpy.ndarray; ``value`` is the array, built from checked bytes, or the list of its objects."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        # (version, shape, dtype, column order, bytes or list of objects)
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _DType):
            raise _Refused("an array in an unknown form")
        _, shape, dtype, columns, data = state
        if not isinstance(shape, tuple) or len(shape) > 4 or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
            raise _Refused("an array without a shape")
        if dtype.type.kind == "O":
            if not isinstance(data, list) or len(data) != math.prod(shape):
                raise _Refused("an array of objects whose number does not fit")
            self.value = data
        elif dtype.type.kind == "U":
            raise _Refused("an array of text")
        else:
            self.value = dtype.read(data, math.prod(shape)).reshape(shape, order="F" if columns else "C")


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


def _empty_dictionary() -> dict[Any, Any]:
    return {}


def _scalar(dtype: Any = None, data: Any = None) -> Any:
    """A number or name of NumPy's, as Python's own."""
    if not isinstance(dtype, _DType) or dtype.type.kind == "O":
        raise _Refused("a single value that is neither a number nor text")
    return dtype.read(data, 1)[0].item()


def _bytes(text: Any, encoding: Any = None) -> bytes:
    # Old protocols write bytes as a call of _codecs.encode(text, "latin1").
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused("a call of an encoder other than latin1")
    return text.encode("latin1")


ALLOWED: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _empty_array,
    "numpy.dtype": _DType,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _scalar,
    "builtins.dict": _empty_dictionary,
    "_codecs.encode": _bytes,
}
"""Names as of Python 3 and NumPy 1."""


CODES = """
PROTO FRAME STOP MARK POP POP_MARK GLOBAL STACK_GLOBAL REDUCE BUILD PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET
LONG_BINGET NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING
SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_TUPLE TUPLE
TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT
"""
"""Instructions of pickles that label files need, besides those that fill dictionaries."""
_PurePython: Any = pickle._Unpickler


class _LabelUnpickler(_PurePython):
    """The standard library's unpickler with few instructions and bounded keys.

    It is the one written in Python: the other takes gigabytes for a high number of its memo. A key is bounded before a
    dictionary takes it: the hash of nested tuples never ends, or overflows the stack.
    """

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def load_setitems(self) -> None:
        self._fill(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._fill(items)

    def _fill(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise _Refused("entries of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2]):
            if type(key) not in (str, int, bool, float) or (type(key) is int and abs(key) > MOST_NUMBER):
                raise _Refused(f"an entry whose name is a {type(key).__name__}, or too large a number")
            self.stack[-1][key] = value

    def _refuse(self) -> None:
        raise _Refused("an instruction beyond those of arrays, dictionaries, numbers and text")

    dispatch = {
        **dict.fromkeys(range(256), _refuse),
        **{getattr(pickle, name)[0]: _PurePython.dispatch[getattr(pickle, name)[0]] for name in CODES.split()},
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
    }

    def find_class(self, module: str, name: str) -> Any:
        known = f"{module}.{name}".replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if known not in ALLOWED:
            raise _Refused(f"a call of {module}.{name}")
        return _Call(ALLOWED[known])


def read_label_file(path: str | Path) -> dict[str | int, np.ndarray]:
    """Vectors (C,) of 0/1, float32, by image name or number from a pickled dictionary in a ``.npy`` file.

    Nothing that the file names is imported or called: arrays of numbers, single numbers and names, and dictionaries
    are put together here, and any other object is refused. Numbers instead of names are left as they are, see
    ``image_names``. Raises DataError that says what the file asked for, and when it is no dictionary of equally long
    vectors of 0 and 1.
    """
    path = Path(path)
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= LARGEST):
            raise DataError(f"{path}: not a regular file, or larger than any label file.")
        file = io.BytesIO(path.read_bytes())
        _skip_header(file)
        found = _LabelUnpickler(file, encoding="latin1").load()
    except DataError:
        raise
    except OSError as error:
        raise of_system(error, path) from error
    except _Refused as error:
        raise DataError(
            f"{path}: refused, because it contains {error}, which no label file needs. Opened in the usual way "
            "it could run code. Do not load it with NumPy, and take tags from the data set's own files."
        ) from error
    except Exception as error:  # broken pickles raise nearly any type
        raise DataError(f"{path}: not a readable label file ({error}).") from error
    value = _plain(found)
    if isinstance(value, list) and len(value) == 1:  # a dictionary in an array of no dimensions
        value = value[0]
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: expected a dictionary of image names, found {type(value).__name__}.")
    result: dict[str | int, np.ndarray] = {}
    for name, entry in value.items():
        vector = _plain(entry)
        named = _is_name(name) if isinstance(name, str) else type(name) is int
        if not named or not isinstance(vector, np.ndarray) or vector.ndim != 1:
            raise DataError(f"{path}: entry {reprlib.repr(name)} is not a name or number with a vector of 0 and 1.")
        if len(vector) >= IGNORE:
            raise DataError(f"{path}: the vector of '{name}' is of {len(vector)} classes; the most are {IGNORE - 1}.")
        if not np.isin(vector, (0, 1)).all():
            raise DataError(f"{path}: the vector of '{name}' holds other values than 0 and 1.")
        result[name] = vector.astype(np.float32)
    lengths = {len(vector) for vector in result.values()}
    if len(lengths) > 1:
        raise DataError(f"{path}: vectors of {min(lengths)} and of {max(lengths)} classes are mixed.")
    return result


def _is_name(text: str) -> bool:
    return bool(text.strip()) and len(text) <= LONGEST_NAME and not UNFIT.search(text)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, _Array) else value


def _skip_header(file: BinaryIO) -> None:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        dtype = read(file)[2]
    except Exception as error:  # not repeated: NumPy advises to trust the file
        raise ValueError("it does not begin as .npy files do") from error
    if not dtype.hasobject:
        raise ValueError(f"an array of {dtype}, not a dictionary of image names")


def image_names(labels: Mapping[str | int, np.ndarray], numbers: str = "", prefix: str = "") -> dict[str, np.ndarray]:
    """The same vectors by image name, where other projects keep numbers for names.

    numbers: 'voc', where 2007000032 is 2007_000032; 'coco', where 9 is ``prefix`` and 000000009 with 12 digits in all
    (prefix 'COCO_train2014_' for its photos of 2014, none for those of 2017); else names have to be text. Raises
    DataError for a number that no photo of the set has, for two entries of one photo, and for a prefix without use.
    """
    result: dict[str, np.ndarray] = {}
    for key, vector in labels.items():
        name = key if isinstance(key, str) else _numbered(key, numbers, prefix)
        if name in result:
            raise DataError(f"The label file has two entries of image '{name}'.")
        result[name] = vector
    if prefix and (numbers != "coco" or not any(isinstance(key, int) for key in labels)):
        raise DataError(f"The prefix '{prefix}' is for COCO's numbers, and these are others or names: leave it out.")
    return result


def _numbered(number: int, numbers: str, prefix: str) -> str:
    digits = f"{number:012d}" if numbers == "coco" else str(number)
    if number < 0 or len(digits) != {"voc": 10, "coco": 12}.get(numbers):
        raise DataError(
            f"The label file has the number {number} for an image's name. Numbers are known for the classes 'voc' "
            "(2007000032 for 2007_000032) and 'coco' (9 for 000000000009) only."
        )
    return f"{digits[:4]}_{digits[4:]}" if numbers == "voc" else prefix + digits


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
    with written(out) as part, part.open("w", encoding="utf-8") as file:
        for name, vector in labels.items():
            tags = [classes[i] for i in np.flatnonzero(vector).tolist()]
            file.write(json.dumps({"image": name, "tags": tags}, ensure_ascii=False) + "\n")
    return len(labels)
