"""Plots as SVG text that takes its colours from the page, so that they suit light and dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Colours that stand for the page's own; they are exchanged in the finished SVG.
INK, LINE, ACCENT, SECOND = "#010203", "#040506", "#070809", "#0a0b0c"
CSS = {INK: "currentColor", LINE: "var(--line)", ACCENT: "var(--accent)", SECOND: "var(--second)"}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tagmask",
    # Names of classes and losses are text, even with a dollar sign in them.
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
}


def line(title: str, x: Sequence[float], y: Sequence[float], smooth: bool = True) -> str:
    """A quantity over training steps; ``smooth``: faint, with its running mean where there are many points. SVG."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(3.6, 2.1)
        values = np.asarray(y, dtype=np.float64)
        width = len(values) // 25
        if smooth and width >= 3:
            axes.plot(x, values, color=ACCENT, alpha=0.3, linewidth=0.8)
            kernel = np.ones(width) / width
            axes.plot(np.asarray(x)[width - 1 :], np.convolve(values, kernel, mode="valid"), color=ACCENT)
        else:
            axes.plot(x, values, color=ACCENT, marker="o" if len(values) < 2 else None)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        if values.size and np.nanmin(values) >= 0:
            axes.set_ylim(bottom=0)
        return _svg(figure, f"{title} over training steps")


def threshold_curve(
    thresholds: Sequence[float], miou: Sequence[float | None], peak: tuple[float, float], chosen: float | None = None
) -> str:
    """mIoU over the background threshold, with its peak and the threshold in use marked. Returns SVG."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(5.4, 2.9)
        values = np.array([np.nan if v is None else 100 * v for v in miou])
        axes.plot(thresholds, values, color=ACCENT)
        top = 100 * peak[1]
        axes.plot([peak[0]], [top], "o", color=ACCENT, markersize=5)
        axes.annotate(
            f"peak {top:.1f} at {peak[0]:g}", (peak[0], top), xytext=(0, 8), textcoords="offset points", ha="center"
        )
        if chosen is not None:
            at = float(np.interp(chosen, thresholds, values))
            axes.axvline(chosen, color=SECOND, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"in use: {chosen:g}, {at:.1f}", (chosen, 0), xytext=(5, 8), textcoords="offset points", color=SECOND
            )
        axes.set_xlabel("background threshold")
        axes.set_ylabel("mIoU, %")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, max(5.0, top * 1.25))
        return _svg(figure, f"mIoU over the background threshold, peak {top:.1f} at {peak[0]:g}")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def _svg(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The browser draws the text; matplotlib only measures it and need not have every script's glyphs.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None, "matplotlib writes a viewBox into every SVG"
    # Points to pixels: the size at which the letters match the page's small print.
    width = float(box.group(1).split()[2]) * 1.35
    for colour, css in CSS.items():
        body = body.replace(colour, css)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"(font(?:-family)?: [^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1system-ui, sans-serif", body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{escape(label)}" viewBox="{box.group(1)}" style="width:{width:.0f}px">{body}'
    )


PRINTED = {INK: "#1f2328", LINE: "#d8dee4", ACCENT: "#0969da", SECOND: "#bc4c00"}
"""Colours of pictures that stand alone."""
Draw = Callable[[Axes], None]


def png(title: str, panels: Sequence[Draw]) -> bytes:
    """Panels side by side under a title, as a PNG picture on white."""
    with _printed():
        figure = Figure(figsize=(5.6 * len(panels), 3.2), layout="constrained")
        for i, draw in enumerate(panels):
            draw(figure.add_subplot(1, len(panels), i + 1))
        figure.suptitle(title)
        return _png(figure)


def curves(series: Mapping[str, tuple[Any, Any]], x: str, y: str) -> Draw:
    """Lines by name, each its positions and values (n,); x, y: labels of the axes."""
    whole = all(isinstance(position, int) for at, _ in series.values() for position in at)

    def draw(axes: Axes) -> None:
        for name, (at, values) in series.items():
            axes.plot(at, values, label=name, marker="o" if len(at) < 30 else None, markersize=3)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))

    return draw


def heatmap(title: str, values: np.ndarray, edges: np.ndarray, rows: Sequence[int], x: str) -> Draw:
    """Values (rows,n) in per cent as colours, over bins with n+1 edges and training steps."""

    def draw(axes: Axes) -> None:
        axes.grid(False)
        extent = (edges[0], edges[-1], -0.5, len(rows) - 0.5)
        image = axes.imshow(values, aspect="auto", origin="lower", extent=extent, cmap="viridis", vmin=0, vmax=100)
        axes.figure.colorbar(image, ax=axes)
        axes.set_yticks(range(len(rows)), [str(row) for row in rows])
        axes.set_title(title)
        axes.set_xlabel(x)
        axes.set_ylabel("step")

    return draw


def _printed() -> Any:
    return matplotlib.rc_context({key: PRINTED.get(value, value) for key, value in STYLE.items()})


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
