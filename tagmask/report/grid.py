"""Rows of pictures with a title above and a line under each, as one PNG or one HTML page."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageDraw, ImageFont

from tagmask.data.pixels import palette
from tagmask.errors import ConfigError
from tagmask.files import write_text, written
from tagmask.label.overlay import STRIPE, data_uri
from tagmask.types import IGNORE

GAP, LINE, SWATCH = 12, 18, 12
"""Pixels of a PNG: between pictures, of a line of text, of a colour in the legend."""
INK, SOFT = (29, 35, 41), (102, 112, 122)


@dataclass
class Picture:
    """pixels: uint8 (h,w,3). title stands above it, under below it."""

    title: str
    pixels: np.ndarray
    under: str = ""


Rows = Sequence[Sequence[Picture | None]]
"""Pictures by row; None leaves a place empty."""
Legend = Sequence[tuple[int, str]]
"""Labels with what they mean."""


def check_suffix(path: Path) -> None:
    """Raise ConfigError for a file that is neither .png nor .html."""
    if path.suffix.lower() not in (".png", ".html"):
        raise ConfigError(f"{path} (--out): pictures are written as .png or .html.")


def write_grid(path: Path, rows: Rows, legend: Legend = (), notes: Sequence[str] = ()) -> None:
    """Write the pictures as PNG or HTML, by the suffix. legend and notes stand below. Raises ConfigError, DataError."""
    check_suffix(path)
    if path.suffix.lower() == ".html":
        write_text(path, page(rows, legend, notes))
        return
    with written(path) as part:
        part.write_bytes(grid_png(rows, legend, notes))


def grid_png(rows: Rows, legend: Legend = (), notes: Sequence[str] = ()) -> bytes:
    """The pictures as a PNG."""
    buffer = io.BytesIO()
    drawn(rows, legend, notes).save(buffer, format="PNG")
    return buffer.getvalue()


def page(rows: Rows, legend: Legend, notes: Sequence[str]) -> str:
    """HTML that needs nothing else."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, undefined=StrictUndefined
    )
    pages.filters["address"] = data_uri
    colours = {
        label: None if label == IGNORE else "#{:02x}{:02x}{:02x}".format(*palette()[label]) for label, _ in legend
    }
    return pages.get_template("grid.html").render(
        rows=rows, columns=max(len(row) for row in rows), legend=legend, colours=colours, notes=notes
    )


def drawn(rows: Rows, legend: Legend, notes: Sequence[str]) -> Image.Image:
    """The pictures on white, all columns as wide as the widest picture."""
    # matplotlib brings it, and it has the letters of more scripts than Pillow's own.
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 12)
    there = [picture.pixels.shape for row in rows for picture in row if picture is not None]
    across = max(shape[1] for shape in there)
    width = GAP + max(len(row) for row in rows) * (across + GAP)
    heights = [max(p.pixels.shape[0] for p in row if p is not None) + 2 * LINE for row in rows]
    lines = [line for note in notes for line in textwrap.wrap(note, max(20, int(width / font.getlength("n"))))]
    places: list[tuple[int, int]] = []  # of the legend's entries
    x = y = 0
    for _, name in legend:
        wide = SWATCH + GAP // 2 + round(font.getlength(name)) + 2 * GAP
        if x and x + wide > width - GAP:
            x, y = 0, y + LINE
        places.append((x, y))
        x += wide
    below = (y + LINE if legend else 0) + LINE * len(lines)
    sheet = Image.new("RGB", (width, GAP + sum(heights) + GAP * len(rows) + below + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, height in zip(rows, heights):
        for n, picture in enumerate(row):
            if picture is not None:
                left = GAP + n * (across + GAP)
                draw.text((left, top), _fitting(picture.title, font, across), INK, font)
                sheet.paste(Image.fromarray(picture.pixels), (left, top + LINE))
                draw.text(
                    (left, top + LINE + picture.pixels.shape[0] + 3), _fitting(picture.under, font, across), SOFT, font
                )
        top += height + GAP
    for (label, name), (x, y) in zip(legend, places):
        corner = (GAP + x, top + y)
        sheet.paste(Image.fromarray(_swatch(label)), corner)
        draw.text((corner[0] + SWATCH + GAP // 2, corner[1] - 2), name, INK, font)
    top += below - LINE * len(lines)
    for n, line in enumerate(lines):
        draw.text((GAP, top + n * LINE), line, SOFT, font)
    return sheet


def _swatch(label: int) -> np.ndarray:
    """uint8 (SWATCH,SWATCH,3) in a label's colour; 255 is hatched, as on photos."""
    rows, columns = np.indices((SWATCH, SWATCH))
    stripes = np.where((rows + columns) // STRIPE % 2, 225, 120).astype(np.uint8)
    return np.repeat(stripes[..., None], 3, 2) if label == IGNORE else np.full((SWATCH, SWATCH, 3), palette()[label])


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
