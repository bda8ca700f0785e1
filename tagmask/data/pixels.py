"""Reading photos and masks, and writing masks. All pixels enter tagmask through this file, by ``open_picture``.

One policy for orientation: a photo is turned as its EXIF tag says, as any viewer shows it, and masks are taken as
they are, because they were drawn on the photo as shown. Transparent pixels are laid over white. torch is imported where
a tensor is made: an exported segmenter does without it.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy.io import loadmat

from tagmask.data.collection import Collection, ColourMap, Item
from tagmask.data.find import read_lines
from tagmask.data.formats import readable, unknown_content
from tagmask.data.spelling import clean_name
from tagmask.data.stored import Stored
from tagmask.errors import DataError, nearest
from tagmask.files import check_regular, written
from tagmask.types import IGNORE

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 150_000_000
"""Pixels of a picture, at most: what its header says is checked before anything is decoded."""
STRIP = 4_000_000
"""Pixels that are converted at once."""
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a photo is turned, by the number in its EXIF data; 1 and all others say that it is upright."""
NO_CLASSES = {"background": 0, "ignore": IGNORE, "void": IGNORE}
"""Names in a colour map that are no classes, and their labels."""
ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
Notes = dict[str, list[str]]
"""Names of the photos that something is odd about, by what it is (DARK, FOURTH or PAGES)."""
DARK = "nearly black: all values lie in the lowest sixteenth. If these are 12 bits saved as 16, multiply them by 16"
FOURTH = (
    "laid over white, because a fourth band says that hardly anything is opaque. If that band is something else (near "
    "infrared, say), save the photos without it"
)
PAGES = "the first of several pages or frames; the others are not read"


# Of odd EXIF data, and of sizes, which are bounded here. For the whole process, since threads decode side by side.
warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def open_picture(path: str | Path, what: str = "an image", content: bytes | None = None) -> Iterator[Image.Image]:
    """A photo or mask, opened and not yet decoded. All errors inside become DataErrors that name the file.

    content: of the file, where it has been read already.

    Only the formats of ``readable``: others make Pillow start programs. Only regular files: a pipe would never end.
    Only up to MAX_PIXELS.
    """
    try:
        if isinstance(path, Stored) and content is None:
            content = path.read_bytes()
        if content is None:
            check_regular(path)
        place = path if content is None else io.BytesIO(content)
        with Image.open(place, formats=tuple(set(readable().values()))) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield opened
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        limit = f"{MAX_PIXELS // 1_000_000} million pixels"
        raise DataError(f"{path}: larger than {limit}. Reduce it or cut it into parts.") from error
    except UnidentifiedImageError as error:
        if content is None:
            with open(path, "rb") as file:
                content = file.read(16)
        raise DataError(f"{path}: cannot be read as {what} ({unknown_content(content[:16])}).") from error
    except Exception as error:  # Pillow raises nearly any type on broken files
        raise _undecodable(path, what, error) from error


def _undecodable(path: str | Path, what: str, error: Exception, advice: str = "Replace or remove it.") -> DataError:
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"{path}: cannot be opened ({error.strerror}). Make it readable or leave it out.")
    said = str(error).replace(f" {str(path)!r}", "") or type(error).__name__  # libraries name the file, too
    return DataError(f"{path}: cannot be read as {what} ({said}). {advice}")


def count_pixels(path: str | Path, content: bytes | None = None) -> int:
    """Pixels of a picture by its header; 0 where it cannot be opened."""
    try:
        with open_picture(path, content=content) as opened:
            return opened.width * opened.height
    except DataError:
        return 0


def read_image(path: str | Path, notes: Notes | None = None, content: bytes | None = None) -> Tensor:
    """A photo as a tensor, by the rules of ``read_photo``."""
    import torch

    return torch.from_numpy(read_photo(path, notes, content))


def read_photo(path: str | Path, notes: Notes | None = None, content: bytes | None = None) -> np.ndarray:
    """A photo as uint8 RGB (3,H,W), upright. notes: takes what is odd about it. content: as ``open_picture`` takes it.

    Grey, palette, alpha (over white), CMYK and 16-bit (the upper eight bits) become RGB; of an animation the first
    frame is read. Raises DataError that names the file when it cannot be decoded whole.
    """
    with open_picture(path, content=content) as opened:
        opened.load()
        image = image_array(opened, path)
        if notes is not None:
            for kind in _oddities(opened, image):
                notes.setdefault(kind, []).append(str(path))
        return image


def image_array(image: Image.Image, name: str | Path = "image") -> np.ndarray:
    """An opened picture as uint8 RGB (3,H,W), upright, by the rules of ``read_photo``. name: for errors."""
    turn = _turn(image)
    if turn is not None:
        image = image.transpose(turn)
    result = np.empty((3, image.height, image.width), dtype=np.uint8)
    for rows in _strips(image.height, image.width):  # so that a large photo is in memory twice only
        strip = image.crop((0, rows.start, image.width, rows.stop))
        result[:, rows] = np.asarray(_rgb(strip, name)).transpose(2, 0, 1)
    return result


def _strips(height: int, width: int) -> Iterator[slice]:
    """Rows of a picture in parts of STRIP pixels at most."""
    step = max(1, STRIP // max(1, width))
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def _rgb(image: Image.Image, name: str | Path) -> Image.Image:
    """A picture of any mode as RGB."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise DataError(f"{name}: values of 32 bits have no known range. Save it with 8 or 16 bits.")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif _has_alpha(image):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How a photo is to be turned, or None. A number of any type counts, of several the first one."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
        value = value[0] if isinstance(value, tuple | bytes) else value
        return None if isinstance(value, str) else TURNS.get(int(value))
    except Exception:  # Pillow raises nearly any type on broken EXIF data
        return None


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ALPHA_MODES or "transparency" in image.info


def _oddities(opened: Image.Image, photo: np.ndarray) -> list[str]:
    """What is odd about a photo, of DARK, FOURTH and PAGES."""
    found = [DARK] if int(photo.max()) < 16 else []
    if _has_alpha(opened):
        whole = opened if opened.mode in ("RGBA", "LA") else opened.convert("RGBA")
        alpha = np.array(whole.getchannel("A").histogram()) / photo[0].size
        if alpha[128:].sum() < 0.01 or alpha[8:248].sum() > 0.5:  # true alpha shows something and is mostly 0 or 255
            found.append(FOURTH)
    if _has_pages(opened):
        found.append(PAGES)
    return found


def _has_pages(opened: Image.Image) -> bool:
    """Whether a second page or frame follows, which is not the first one reduced, or its mask. It is moved to."""
    if not getattr(opened, "is_animated", False) or opened.format == "MPO":  # an MPO's second picture is for 3D
        return False
    try:
        opened.seek(1)
        return not (opened.format == "TIFF" and opened.tag_v2.get(254, 0) & 5)  # type: ignore[attr-defined]
    except Exception:  # of a broken page
        return False


def describe_notes(notes: Mapping[str, list[str]]) -> list[str]:
    """A sentence for each kind of oddity, with the number of its photos and the first."""
    said = []
    for kind in (kind for kind in (DARK, FOURTH, PAGES) if kind in notes):
        names = sorted(notes[kind])
        are = "1 photo is" if len(names) == 1 else f"{len(names)} photos are"
        said.append(f"{are} {kind} ('{Path(names[0]).name}'{' and others' if len(names) > 1 else ''}).")
    return said


def raw_mask(path: str | Path, colour_map: ColourMap | None = None, content: bytes | None = None) -> np.ndarray:
    """The values of a mask (H,W), integers, not checked against the classes. Raises DataError as ``read_mask``."""
    if Path(path).suffix == ".mat":
        return sbd_mask(path)
    with open_picture(path, "a mask", content) as opened:
        opened.load()
        mode, values = opened.mode, np.array(opened)
    if mode in ("1", "P", "L"):
        return values.astype(np.uint8, copy=False)
    if mode.startswith("I"):
        return values.astype(np.int64)
    if mode not in ("RGB", "RGBA"):
        raise DataError(f"{path}: a mask in mode {mode}. Save it as a palette or grey PNG whose values are classes.")
    if colour_map is None:
        raise DataError(
            f"{path}: the mask is saved in colours, whose meaning is unknown. Save it as a palette or grey PNG, "
            "or give data.colour_map, a file of lines 'r g b name'."
        )
    labels = np.empty(values.shape[:2], dtype=np.uint8)
    for rows in _strips(values.shape[0], values.shape[1]):
        labels[rows] = _of_colours(values[rows], colour_map, path)
    return labels


def _of_colours(values: np.ndarray, colour_map: ColourMap, path: str | Path) -> np.ndarray:
    """Labels (H,W) of colours (H,W,3 or 4). Raises DataError for a colour that is not in the map."""
    codes = values[..., 0].astype(np.int64) << 16 | values[..., 1].astype(np.int64) << 8 | values[..., 2]
    colours, where = np.unique(codes, return_inverse=True)
    labels = []
    for code in colours.tolist():
        colour = (code >> 16, code >> 8 & 255, code & 255)
        if colour not in colour_map:
            raise DataError(f"{path}: colour {colour} is not in the colour map. Add a line for it to data.colour_map.")
        labels.append(colour_map[colour])
    return np.array(labels, dtype=np.uint8)[where].reshape(codes.shape)


def sbd_mask(path: str | Path) -> np.ndarray:
    """The label map (H,W), int64, of a file of SBD (Hariharan et al. 2011), ``cls/<id>.mat``. Raises DataError."""
    try:
        check_regular(path)
        record = loadmat(path, squeeze_me=True, struct_as_record=False)
    except DataError:
        raise
    except Exception as error:  # SciPy raises many types on broken files
        raise _undecodable(path, "a .mat file", error, "Unpack SBD again.") from error
    values = getattr(record.get("GTcls"), "Segmentation", None)
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iub":
        raise DataError(f"{path}: there is no GTcls.Segmentation in it. SBD's class masks lie in 'cls', not in 'inst'.")
    return values.astype(np.int64)


def read_mask(path: str | Path, classes: int, colour_map: ColourMap | None = None) -> Tensor:
    """A mask as uint8 (H,W): 0 background, 1..``classes`` the foreground classes, 255 ignore.

    Palette, grey, 1-bit and 16-bit masks and SBD's .mat files are read as indices; RGB only through ``colour_map``.
    Raises DataError on unreadable files, RGB without a map, colours that the map lacks, and values that are no class.
    """
    values = raw_mask(path, colour_map)
    wrong = np.unique(values[(values != IGNORE) & ((values > classes) | (values < 0))])
    if wrong.size:
        raise DataError(
            f"{path}: value {wrong[0]} in a mask of {classes} classes (0 is background, 1..{classes} the classes, 255 "
            "ignored). Off by one, another class list, or a 0/255 mask? 'tagmask check' shows the values."
        )
    import torch

    return torch.from_numpy(values.astype(np.uint8))


def true_mask(item: Item, collection: Collection) -> Tensor:
    """The true mask of a photo that has one, by the rules of ``read_mask``."""
    assert item.mask is not None
    return read_mask(item.mask, len(collection.classes), collection.colour_map)


def upright_size(path: str | Path) -> tuple[int, int]:
    """(H,W) of a photo as ``read_image`` gives it, by its header: nothing is decoded. Raises DataError."""
    with open_picture(path) as opened:
        turned = _turn(opened) in (TURNS[5], TURNS[6], TURNS[7], TURNS[8])
        return (opened.width, opened.height) if turned else (opened.height, opened.width)


def check_size(path: Path, mask: Tensor, photo: Path, image: Tensor) -> None:
    """Raise DataError when a mask is not of its photo's size; names a turned photo as the likely cause."""
    check_shape(path, mask.shape, photo, image.shape[-2:])


def check_shape(path: Path, found: Sequence[int], photo: Path, shape: Sequence[int]) -> None:
    """``check_size`` by the (H,W) of mask and photo."""
    height, width = found
    if (height, width) != tuple(shape):
        turned = (
            " The photo is shown turned (EXIF); save the mask turned the same way."
            if (width, height) == tuple(shape)
            else ""
        )
        raise DataError(f"{path}: {width}x{height} pixels, its photo {photo} has {shape[1]}x{shape[0]}.{turned}")


def read_colour_map(path: str | Path, classes: list[str]) -> ColourMap:
    """Labels by colour from a file of lines ``r g b name``; '#' starts a comment.

    Names are those of ``classes`` (label 1..C), 'background' (0) and 'ignore' or 'void' (255). Raises DataError
    with the line's number.
    """
    known = NO_CLASSES | {name: i + 1 for i, name in enumerate(classes)}
    result: ColourMap = {}
    for where, colour, name in _colour_lines(path):
        if name not in known:
            raise DataError(f"{where}: unknown class '{name}'.{nearest(name, known)}")
        if result.setdefault(colour, known[name]) != known[name]:
            raise DataError(f"{where}: colour {colour} is given to two classes.")
    return result


def colour_names(path: str | Path) -> list[str]:
    """The classes that a colour map names, in its order. Raises DataError with the line's number."""
    return list(dict.fromkeys(name for _, _, name in _colour_lines(path) if name not in NO_CLASSES))


def _colour_lines(path: str | Path) -> Iterator[tuple[str, tuple[int, int, int], str]]:
    """File and line, colour and name of each line of a colour map."""
    for number, line in read_lines(Path(path)):
        parts, where = line.split("#")[0].split(None, 3), f"{path}, line {number}"
        if not parts:
            continue
        if len(parts) != 4 or not all(p.isdigit() and int(p) < 256 for p in parts[:3]):
            raise DataError(f"{where}: expected 'r g b name' with 0 to 255 each, found '{line}'.")
        # A comment may have followed the name.
        yield where, (int(parts[0]), int(parts[1]), int(parts[2])), clean_name(parts[3], where)


def palette() -> np.ndarray:
    """Colours of the 256 labels, uint8 (256,3), as Pascal VOC draws them.

    Bit k of a label's red, green and blue, counted from the top, is bit 3k, 3k+1, 3k+2 of the label.
    """
    labels = np.arange(256)[:, None]
    colours = np.zeros((256, 3), dtype=np.int64)
    for k in range(8):
        colours |= (labels >> (3 * k + np.arange(3)) & 1) << (7 - k)
    return colours.astype(np.uint8)


def as_array(values: Tensor | np.ndarray) -> np.ndarray:
    """The values of a tensor on any device, or of an array, as an array."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


def write_mask(path: str | Path, labels: Tensor | np.ndarray) -> None:
    """Write a label map (H,W), integers 0..255, as a palette PNG in VOC's colours.

    The file appears whole or not at all. Missing folders are made. Raises ValueError on other shapes or values, and
    DataError where the disk refuses.
    """
    values = as_array(labels)
    if values.ndim != 2 or values.dtype.kind not in "iub":
        raise ValueError(f"a label map is (H,W) of integers, this is {values.shape} of {values.dtype}")
    if values.size and (values.min() < 0 or values.max() > 255):
        raise ValueError(f"labels go from 0 to 255, these from {values.min()} to {values.max()}")
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(palette().tobytes())
    with written(Path(path)) as part:
        image.save(part, format="PNG")
