"""Reading photos and masks, and writing masks. All pixels enter tagmask through this file.

One policy for orientation: a photo is turned as its EXIF tag says, as any viewer shows it, and masks are taken as
they are, because they were drawn on the photo as shown. Transparent pixels are laid over white.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.io import loadmat
from torch import Tensor

from tagmask.data.collection import ColourMap
from tagmask.data.find import read_lines
from tagmask.data.spelling import clean_name
from tagmask.errors import DataError, nearest
from tagmask.files import written
from tagmask.types import IGNORE


def read_image(path: str | Path) -> Tensor:
    """A photo as uint8 RGB (3,H,W), upright.

    Grey, palette, alpha (over white), CMYK and 16-bit (the upper eight bits) become RGB; of an animation the first
    frame is read. Raises DataError that names the file when it cannot be decoded whole.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                opened.load()
                return image_tensor(opened, path)
    except DataError:
        raise
    except Exception as error:  # Pillow raises nearly any type on broken files
        raise _undecodable(path, "an image", error) from error


def _undecodable(path: str | Path, what: str, error: Exception, advice: str = "Replace or remove it.") -> DataError:
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"{path}: cannot be opened ({error.strerror}). Make it readable or leave it out.")
    said = str(error).replace(f" {str(path)!r}", "")  # libraries name the file, too
    return DataError(f"{path}: cannot be read as {what} ({said}). {advice}")


def image_tensor(image: Image.Image, name: str | Path = "image") -> Tensor:
    """An opened picture as uint8 RGB (3,H,W), upright, by the rules of ``read_image``. name: for errors."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise DataError(f"{name}: values of 32 bits have no known range. Save it with 8 or 16 bits.")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def raw_mask(path: str | Path, colour_map: ColourMap | None = None) -> np.ndarray:
    """The values of a mask (H,W), int64, not checked against the classes. Raises DataError as ``read_mask``."""
    if Path(path).suffix == ".mat":
        return sbd_mask(path)
    try:
        with Image.open(path) as opened:
            opened.load()
            mode, values = opened.mode, np.array(opened)
    except Exception as error:
        raise _undecodable(path, "a mask", error) from error
    if mode in ("1", "P", "L") or mode.startswith("I"):
        return values.astype(np.int64)
    if mode not in ("RGB", "RGBA"):
        raise DataError(f"{path}: a mask in mode {mode}. Save it as a palette or grey PNG whose values are classes.")
    if colour_map is None:
        raise DataError(
            f"{path}: the mask is saved in colours, whose meaning is unknown. Save it as a palette or grey PNG, "
            "or give data.colour_map, a file of lines 'r g b name'."
        )
    codes = values[..., 0].astype(np.int64) << 16 | values[..., 1].astype(np.int64) << 8 | values[..., 2]
    colours, where = np.unique(codes, return_inverse=True)
    labels = []
    for code in colours.tolist():
        colour = (code >> 16, code >> 8 & 255, code & 255)
        if colour not in colour_map:
            raise DataError(f"{path}: colour {colour} is not in the colour map. Add a line for it to data.colour_map.")
        labels.append(colour_map[colour])
    return np.array(labels, dtype=np.int64)[where].reshape(codes.shape)


def sbd_mask(path: str | Path) -> np.ndarray:
    """The label map (H,W), int64, of a file of SBD (Hariharan et al. 2011), ``cls/<id>.mat``. Raises DataError."""
    try:
        record = loadmat(path, squeeze_me=True, struct_as_record=False)
    except Exception as error:  # SciPy raises many types on broken files
        raise _undecodable(path, "a .mat file", error, "Unpack SBD again.") from error
    values = getattr(record.get("GTcls"), "Segmentation", None)
    if not isinstance(values, np.ndarray) or values.ndim != 2:
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
    return torch.from_numpy(values.astype(np.uint8))


def check_size(path: Path, mask: Tensor, photo: Path, image: Tensor) -> None:
    """Raise DataError when a mask is not of its photo's size; names a turned photo as the likely cause."""
    (height, width), shape = mask.shape, image.shape[-2:]
    if (height, width) != shape:
        turned = (
            " The photo is shown turned (EXIF); save the mask turned the same way." if shape == (width, height) else ""
        )
        raise DataError(f"{path}: {width}x{height} pixels, its photo {photo} has {shape[1]}x{shape[0]}.{turned}")


def read_colour_map(path: str | Path, classes: list[str]) -> ColourMap:
    """Labels by colour from a file of lines ``r g b name``; '#' starts a comment.

    Names are those of ``classes`` (label 1..C), 'background' (0) and 'ignore' or 'void' (255). Raises DataError
    with the line's number.
    """
    known = {"background": 0, "ignore": IGNORE, "void": IGNORE} | {name: i + 1 for i, name in enumerate(classes)}
    result: ColourMap = {}
    for number, line in read_lines(Path(path)):
        parts = line.split("#")[0].split(None, 3)
        if not parts:
            continue
        if len(parts) != 4 or not all(p.isdigit() and int(p) < 256 for p in parts[:3]):
            raise DataError(f"{path}, line {number}: expected 'r g b name' with 0 to 255 each, found '{line}'.")
        name = clean_name(parts[3], f"{path}, line {number}")  # a comment may have followed
        if name not in known:
            raise DataError(f"{path}, line {number}: unknown class '{name}'.{nearest(name, known)}")
        colour = (int(parts[0]), int(parts[1]), int(parts[2]))
        if result.setdefault(colour, known[name]) != known[name]:
            raise DataError(f"{path}, line {number}: colour {colour} is given to two classes.")
    return result


def palette() -> np.ndarray:
    """Colours of the 256 labels, uint8 (256,3), as Pascal VOC draws them.

    Bit k of a label's red, green and blue, counted from the top, is bit 3k, 3k+1, 3k+2 of the label.
    """
    labels = np.arange(256)[:, None]
    colours = np.zeros((256, 3), dtype=np.int64)
    for k in range(8):
        colours |= (labels >> (3 * k + np.arange(3)) & 1) << (7 - k)
    return colours.astype(np.uint8)


def write_mask(path: str | Path, labels: Tensor | np.ndarray) -> None:
    """Write a label map (H,W), integers 0..255, as a palette PNG in VOC's colours.

    The file appears whole or not at all. Missing folders are made. Raises ValueError on other shapes or values, and
    DataError where the disk refuses.
    """
    values = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim != 2 or values.dtype.kind not in "iub":
        raise ValueError(f"a label map is (H,W) of integers, this is {values.shape} of {values.dtype}")
    if values.size and (values.min() < 0 or values.max() > 255):
        raise ValueError(f"labels go from 0 to 255, these from {values.min()} to {values.max()}")
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(palette().tobytes())
    with written(Path(path)) as part:
        image.save(part, format="PNG")
