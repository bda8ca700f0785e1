"""Draws docs/results.png from the CSV files in docs/results: python docs/results_plot.py"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
FOLDER = HERE / "results"
COLUMN = "segmenter, test"
METHODS = (  # (label, table, row), best first; the first one learns from true masks
    ("supervised twin (true masks)", "msrc14_baseline", "supervised-resnet50"),
    ("RCM + MAM, all stages", "msrc14_rcm_mam", "mam+rcm"),
    ("TSCD, VARM alone", "msrc14_tscd", "base+varm"),
    ("TSCD, all parts", "msrc14_tscd", "base+varm+scd+equ"),
    ("baseline", "msrc14_baseline", "baseline-resnet50"),
    ("CRT, all stages", "msrc14_crt", "lambda-0.1"),
    ("CoSA (GC, SA, DT)", "msrc14_cosa", "base+gc+sa+dt"),
    ("ECA", "msrc14_eca", "cam+carm+cce-low"),
)
COLOURS = {"EPYC": "tab:blue", "Xeon": "tab:orange", "H200": "tab:green"}


def rows(name: str) -> list[dict[str, str]]:
    """Lines of one CSV file."""
    with (FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw() -> None:
    """One line a method: the mean, each seed, the first seed's interval; a band for the supervised twin."""
    seeds = rows("msrc14_seeds")
    figure, axis = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for place, (_, table, row) in enumerate(METHODS):
        (cell,) = (line for line in rows(table) if line["row"] == row and line["column"] == COLUMN)
        low, high, mean = (float(cell[key]) for key in ("low", "high", "mean"))
        machine = next(name for name in COLOURS if name in cell["machine"])
        colour = COLOURS[machine]
        if place == 0:
            axis.axvspan(low, high, color="0.92", zorder=0)
            axis.axvline(mean, color="0.6", linestyle="--", linewidth=1, zorder=1)
        axis.plot((low, high), (place, place), color=colour, linewidth=2.5, alpha=0.5, solid_capstyle="butt", zorder=2)
        single = [float(s["value"]) for s in seeds if (s["table"], s["row"], s["column"]) == (table, row, COLUMN)]
        single = single or [mean]
        axis.plot(single, [place] * len(single), "o", color="white", markeredgecolor=colour, markersize=6, zorder=4)
        axis.plot(mean, place, "D", color=colour, markersize=9, zorder=3)
        count = int(cell["n_seeds"])
        axis.annotate(
            f"{mean:.1f}   {count} seed{'s' if count > 1 else ''}, {machine}",
            (max(high, *single, mean), place),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axis.set_yticks(range(len(METHODS)), [label for label, _, _ in METHODS])
    axis.invert_yaxis()
    axis.set_xlim(55, 85.5)
    axis.set_xlabel("mIoU on the 254 test photos of MSRC, no tags at test (%)")
    axis.set_title(
        "diamond: mean over seeds · circle: one seed · bar: 95 % bootstrap interval over photos, first seed\n"
        "grey: the supervised twin, the reference",
        fontsize=9,
        loc="left",
    )
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "results.png", dpi=110)


if __name__ == "__main__":
    draw()
