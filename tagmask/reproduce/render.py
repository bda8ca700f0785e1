"""A finished (or half finished) table as Markdown and JSON: means over seeds, spread, intervals, protocol."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from tagmask.evaluate import Protocol
from tagmask.reproduce.table import Column, Table

INTERVALS = {"miou": "interval", "miou_without": "interval_without", "c_miou": "interval_c_miou"}
"""Where a score keeps the interval of a key."""


def render(table: Table, results: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """results: contents of result.json by (row, seed). Returns rows of cells and the Markdown text.

    A cell is the mean over seeds in per cent, ± the standard deviation over seeds where there are several, the
    bootstrap interval over images of the first seed, and the paper's value where one is printed.
    """
    rows = []
    for row in table.rows:
        seeds = sorted(seed for name, seed in results if name == row.name)
        cells = {}
        for column in table.columns:
            found = {seed: _find(results[row.name, seed], column) for seed in seeds}
            cells[column.title] = _cell({s: v for s, v in found.items() if v}, column, row.printed.get(column.title))
        minutes = [results[row.name, seed]["minutes"] for seed in seeds]
        rows.append({"row": row.name, "seeds": seeds, "cells": cells, "minutes": minutes})
    return {"title": table.title, "about": table.about, "rows": rows, "markdown": _markdown(table, rows)}


def _find(result: dict[str, Any], column: Column) -> dict[str, Any] | None:
    for score in result["scores"]:
        # A result of an earlier version may lack the key.
        there = (score["name"], score["protocol"]["split"]) == (column.score, column.split)
        if there and score.get(column.key) is not None:
            return score
    return None


def _cell(found: dict[int, dict[str, Any]], column: Column, printed: float | None) -> dict[str, Any] | None:
    if not found:
        return None if printed is None else {"printed": printed}
    values = {seed: 100 * score[column.key] for seed, score in found.items()}
    first = found[min(found)]
    interval = first.get(INTERVALS.get(column.key, ""))
    return {
        "mean": mean(values.values()),
        "std": stdev(values.values()) if len(values) > 1 else None,
        "seeds": values,
        "interval": [100 * interval["low"], 100 * interval["high"]] if interval else None,
        "printed": printed,
        "protocol": first["protocol"],
        "thresholds": {seed: score["protocol"]["threshold"] for seed, score in found.items()},
        "peak": (first["curve"] or {}).get("peak"),
    }


def _markdown(table: Table, rows: list[dict[str, Any]]) -> str:
    titles = [column.title for column in table.columns]
    lines = [f"## {table.title}", "", table.about.strip(), ""]
    lines.append(f"| row | {' | '.join(titles)} | seeds | min a seed |")
    lines.append("|" + "---|" * (len(titles) + 3))
    for row in rows:
        cells = [_text(row["cells"][title]) for title in titles]
        seeds = ", ".join(map(str, row["seeds"])) or "not run"
        minutes = f"{mean(row['minutes']):.1f}" if row["minutes"] else ""
        lines.append(f"| {row['row']} | {' | '.join(cells)} | {seeds} | {minutes} |")
    lines += [
        "",
        "Mean over seeds in per cent ± standard deviation over seeds; in brackets the 95 % bootstrap interval",
    ]
    lines += ["over images of the first seed.", ""]
    for column in table.columns:
        made: dict[str, list[str]] = {}
        for row in rows:
            cell = row["cells"][column.title]
            if cell and cell.get("protocol"):
                made.setdefault(Protocol(**cell["protocol"]).describe(), []).append(row["row"])
        for line, names in made.items():
            lines.append(f"- {column.title} ({', '.join(names)}): {line}")
    return "\n".join(lines) + "\n"


def _text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    parts = []
    if "mean" in cell:
        parts.append(f"{cell['mean']:.1f}" + (f" ± {cell['std']:.1f}" if cell["std"] is not None else ""))
        if cell["interval"]:
            parts.append(f"[{cell['interval'][0]:.1f}, {cell['interval'][1]:.1f}]")
    if cell["printed"] is not None:
        parts.append(f"(printed {cell['printed']:.1f})")
    return " ".join(parts)
