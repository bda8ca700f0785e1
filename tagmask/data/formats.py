"""Which pictures are read: an explicit list, since Pillow would try others, one of which starts a program."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from PIL import Image, features

SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif"),
}
"""Endings of the names of pictures, by Pillow's name of their format."""
HEIC_WAY = "HEIC is read after 'pip install pillow-heif'; or save it as JPEG"
OTHERS = frozenset(
    (
        *(".svg", ".svgz", ".eps", ".ai", ".psd", ".psb", ".xcf", ".kra", ".ico", ".tga", ".pcx", ".qoi", ".wmf"),
        *(".jp2", ".j2k", ".jpf", ".jpx", ".jxl", ".jxr", ".hdr", ".exr", ".pfm", ".dds", ".sgi", ".ras", ".fits"),
        *(".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf"),
        *(".pef", ".srw", ".x3f", ".3fr", ".iiq", ".dcm"),
    )
)
"""Endings of pictures that are never read here."""


MASK_COLOURS = (0, 3)
"""Colour types of PNG that masks have: grey and palette."""


@cache
def readable() -> dict[str, str]:
    """Format by ending, of the pictures that are read on this machine."""
    Image.init()
    there = {name for name in SUFFIXES if name in Image.OPEN} - {"AVIF", "HEIF"}
    there |= {"AVIF"} if "AVIF" in Image.OPEN and features.check("avif") else set()
    there |= {"HEIF"} if _register_heif() else set()
    return {suffix: name for name, suffixes in SUFFIXES.items() if name in there for suffix in suffixes}


def _register_heif() -> bool:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def is_image(name: str | Path) -> bool:
    """Whether the name ends as pictures do that are read."""
    return os.path.splitext(name)[1].lower() in readable()


def png_colour(path: Path) -> int | None:
    """The colour type in a PNG's header (0 grey, 2 RGB, 3 palette); None for any other file."""
    if path.suffix.lower() != ".png" or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError:
        return None
    return head[25] if len(head) == 26 and head.startswith(b"\x89PNG") else None


def why_not(name: str | Path) -> str:
    """Why a file is not read that looks like a picture by its name; empty for all others."""
    suffix = Path(name).suffix.lower()
    if suffix in readable():
        return ""
    if suffix in SUFFIXES["HEIF"]:
        return HEIC_WAY
    if suffix in OTHERS or suffix in SUFFIXES["AVIF"]:
        return f"{suffix} is not read; save it as JPEG or PNG"
    return ""


def unknown_content(head: bytes) -> str:
    """What is wrong with a file whose content is none of the formats that are read, by its first bytes."""
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return HEIC_WAY
    names = ", ".join(name for name in dict.fromkeys(readable().values()) if name != "DIB")
    return f"its content is none of {names}"
