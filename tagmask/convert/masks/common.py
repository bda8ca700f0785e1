"""What the formats of masks share: what is written and read, names of classes, files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from tagmask.data.pixels import palette
from tagmask.data.spelling import visible
from tagmask.data.stored import Stored
from tagmask.errors import DataError, nearest
from tagmask.files import of_system, written
from tagmask.types import IGNORE

BACKGROUND = "background"
UNSURE = "unsure"
"""What pixels of 255 are called in formats where people draw."""
REST = "other"
"""The split of photos that are in none."""
Size = tuple[int, int]


class Labelled(NamedTuple):
    """A mask to write. name: of the photo, below the folder of all. split: 'train' and so on, or REST.
    labels: uint8 (H,W)."""

    id: str
    image: Path
    name: str
    split: str
    labels: np.ndarray


class Drawn(NamedTuple):
    """A mask to read. names: what the photo may be called, the likeliest first. draw: (H,W) of the photo → uint8 (H,W);
    raises DataError."""

    names: tuple[str, ...]
    draw: Callable[[Size], np.ndarray]


@dataclass(frozen=True)
class Target:
    """Where masks are written. copy: photos are copied, where a format wants them, and not linked. url: what stands
    before names of photos, where a format wants addresses."""

    out: Path
    classes: Sequence[str]
    copy: bool = False
    url: str = ""

    @property
    def names(self) -> dict[int, str]:
        """By label what people draw: the classes, and 'unsure'."""
        return dict(enumerate(self.classes, 1)) | {IGNORE: UNSURE}

    @property
    def all_names(self) -> dict[int, str]:
        """By label, 'background' too."""
        return {0: BACKGROUND} | self.names

    def place(self, photo: Path, name: str) -> None:
        """Link or copy a photo to ``out``/``name``; what lies in a shard or at a URI is copied. Raises DataError."""
        path = self.out / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(photo, Stored):
                path.write_bytes(photo.read_bytes())
            elif self.copy:
                shutil.copyfile(photo, path)
            else:
                path.symlink_to(photo.absolute())
        except OSError as error:
            raise of_system(error, path) from error


class Names:
    """The labels of class names, however they are spelled. own: the table of labels that stay as they are."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.own = {0: 0, IGNORE: IGNORE} | {label: label for label in range(1, len(classes) + 1)}
        self._labels = {BACKGROUND: 0, UNSURE: IGNORE} | {visible(name): i for i, name in enumerate(classes, 1)}

    def label(self, name: Any, where: str | Path) -> int:
        """1..C of a class, 0 of 'background', 255 of 'unsure'. Raises DataError that names the nearest class."""
        if not isinstance(name, str):
            raise DataError(f"{where}: has no class. Give it one.")
        found = self._labels.get(visible(name))
        if found is None:
            raise DataError(f"{where}: '{name}' is no class of the run.{nearest(name, self._labels)}")
        return found


def name_of(number: Any, table: Mapping[Any, Any], where: str | Path, listed: str) -> Any:
    """The name that a file's own list gives a number. listed: what the list is called. Raises DataError."""
    if number not in table:
        raise DataError(f"{where}: class {number} is not in {listed}. Add it there.")
    return table[number]


class Spill:
    """JSON values by a key, in a temporary file: memory holds where they lie."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this object)
        self._places: dict[Any, list[int]] = defaultdict(list)

    def add(self, key: Any, value: Any) -> None:
        self._places[key].append(self._file.seek(0, 2))
        self._file.write(json.dumps(value).encode() + b"\n")

    def keys(self) -> set[Any]:
        return set(self._places)

    def take(self, key: Any) -> list[Any]:
        """The values of a key, in the order in which they came."""
        found = []
        for place in self._places.get(key, ()):
            self._file.seek(place)
            found.append(json.loads(self._file.readline()))
        return found


@contextmanager
def sound(where: str | Path) -> Iterator[None]:
    """What breaks inside, because a value is not what the format says, is a DataError that begins with ``where``."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = str(error)
        if isinstance(error, KeyError):
            what = f"{error} is missing"
        elif isinstance(error, LookupError | TypeError | AttributeError):
            what = "something in it is of another kind"
        raise DataError(f"{where}: not as the format says ({what}). Mend it, or export it again.") from error


def write_list(file: IO[str], entries: Iterable[Any]) -> None:
    """A JSON list, an entry a line, as the entries come."""
    file.write("[")
    for number, entry in enumerate(entries):
        file.write((",\n" if number else "\n") + json.dumps(entry, separators=(",", ":")))
    file.write("\n]")


def write_coco(path: Path, annotations: Iterable[Any], categories: Sequence[Any], images: Sequence[Any]) -> None:
    """COCO's three lists. ``images`` may grow while the annotations come."""
    with written(path) as part, part.open("w", encoding="utf-8") as file:
        file.write('{"annotations": ')
        write_list(file, annotations)
        file.write(f', "categories": {json.dumps(categories)}, "images": {json.dumps(images)}}}\n')


def find_file(source: Path, name: str) -> Path:
    """The file, or that of this name in the folder. Raises DataError."""
    path = source / name if source.is_dir() else source
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give the file, or the folder that holds {name}.")
    return path


def find_masks(source: Path, pattern: str) -> list[Path]:
    """Files below a folder. Raises DataError where there are none."""
    found = sorted(source.rglob(pattern)) if source.is_dir() else []
    if not found:
        raise DataError(f"{source}: no folder that holds {pattern}.")
    return found


def id_of(path: Path, folder: Path, suffix: str) -> str:
    """The photo's id, of the name of its file below a folder."""
    return path.relative_to(folder).as_posix().removesuffix(suffix)


def check_declared(width: Any, height: Any, size: Size, where: str) -> None:
    """Raise DataError where masks were drawn on a photo of another size."""
    if (int(height), int(width)) != size:
        raise DataError(
            f"{where}: drawn on {width}x{height} pixels, the run's photo has {size[1]}x{size[0]}. Was it turned or "
            "resized? Draw on the run's photo."
        )


def relabel(values: np.ndarray, table: Mapping[int, int], where: Path) -> np.ndarray:
    """Integers (H,W) by a table of labels, uint8. Raises DataError for a value that is not in it."""
    found, places = np.unique(values, return_inverse=True)
    unknown = [value for value in found.tolist() if value not in table]
    if unknown:
        raise DataError(f"{where}: the value {unknown[0]} is not in the list of labels. Add it there.")
    return np.array([table[value] for value in found.tolist()], dtype=np.uint8)[places].reshape(values.shape)


def colour(label: int) -> list[int]:
    """Red, green and blue of a label, in VOC's colours."""
    return palette()[label].tolist()


def hex_colour(label: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour(label))
