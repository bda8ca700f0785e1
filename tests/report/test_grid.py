"""Pictures in rows, as PNG and as HTML."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data.pixels import palette
from tagmask.errors import ConfigError
from tagmask.report.grid import GAP, LINE, Picture, write_grid

RED, GREEN, BLUE = ([(200, 30, 30), (30, 200, 30), (30, 30, 200)][i] for i in range(3))


def plain(
    colour: tuple[int, int, int], height: int = 20, width: int = 60, title: str = "t", under: str = ""
) -> Picture:
    return Picture(title, np.full((height, width, 3), colour, dtype=np.uint8), under)


def boxes(picture: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the pixels of a colour."""
    rows, columns = np.nonzero((picture == colour).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_pictures_stand_in_their_columns(tmp_path: Path) -> None:
    rows = [[plain(RED), plain(GREEN, 30, 50)], [None, plain(BLUE, 10, 60)]]
    write_grid(tmp_path / "a" / "grid.png", rows, [(1, "cat"), (255, "unsure")], ["A note.", "Another one."])
    drawn = np.asarray(Image.open(tmp_path / "a" / "grid.png"))
    second = GAP + 60 + GAP
    assert drawn.shape[1] == second + 60 + GAP
    assert boxes(drawn, RED) == (GAP, GAP + LINE, GAP + 60, GAP + LINE + 20)
    assert boxes(drawn, GREEN) == (second, GAP + LINE, second + 50, GAP + LINE + 30)
    top = GAP + (30 + 2 * LINE) + GAP + LINE
    assert boxes(drawn, BLUE) == (second, top, second + 60, top + 10)
    swatch = boxes(drawn, tuple(palette()[1].tolist()))
    assert swatch[1] > top and swatch[2] - swatch[0] == 12
    assert not (drawn[:, -GAP:] != 255).any(), "no text runs out of the picture"


def test_long_titles_are_cut_to_their_column(tmp_path: Path) -> None:
    write_grid(tmp_path / "grid.png", [[plain(RED, title="long " * 50, under="longer " * 50), plain(GREEN)]])
    drawn = np.asarray(Image.open(tmp_path / "grid.png"))
    assert (drawn[:, GAP + 60 : GAP + 60 + GAP] == 255).all(), "nothing stands between the columns"
    assert (drawn[GAP : GAP + LINE, GAP : GAP + 60] < 100).any(), "the title"


def test_page_holds_all_and_escapes_names(tmp_path: Path) -> None:
    rows = [[plain(RED, title="<b>one</b>", under="IoU 12.3"), plain(GREEN)], [None, plain(BLUE)]]
    write_grid(tmp_path / "grid.html", rows, [(2, "a & b"), (255, "unsure")], ["<i>note</i>"])
    text = (tmp_path / "grid.html").read_text(encoding="utf-8")
    assert text.count("<figure>") == text.count("data:image/jpeg;base64,") == 3 and "<div></div>" in text
    assert "<b>one" not in text and "<i>note" not in text and "IoU 12.3" in unescape(text)
    assert "background:#{:02x}{:02x}{:02x}".format(*palette()[2]) in text and "a &amp; b" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text), "it needs nothing else"


@pytest.mark.parametrize("name", ["grid.jpg", "grid"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} \(--out\)"):
        write_grid(tmp_path / name, [[plain(RED)]])
