"""A finished (or half finished) table as Markdown and JSON: printed, ours, difference, interval, stamps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, cast

from tagmask.config import EvaluateConfig
from tagmask.evaluate.stamp import BY_SPLIT, BY_TRAINING, FIXED, Stamp, describe, difference
from tagmask.reproduce.table import COSTS, MEAN, Column, Table
from tagmask.workflow.localize import key_stamp
from tagmask.workflow.scorer import AT_VAL, LOCALIZATION, SPREAD

INTERVALS = {
    "miou": "interval",
    "precision": "interval_precision",
    "recall": "interval_recall",
    "miou_without": "interval_without",
    "c_miou": "interval_c_miou",
}
"""Where a score keeps the interval of a key; a CAM curve's peak, where it has the key."""
PEAKS = {"peak": "miou", "peak_precision": "precision", "peak_recall": "recall", "peak_c_miou": "c_miou"}
"""Keys of a column that are read off the CAM curve's peak."""
OWN = "settings.method."
"""Beginning of the keys of a method's settings for use, which rows of another method do not have."""
PARTS = {
    "miou_without": {"without"},
    "c_miou": {"only"},
    "peak_c_miou": {"only"},
    "boundary_iou": {"rims"},
    **dict.fromkeys((*PEAKS, "max_box_acc", "mean", "std"), {"curve"}),
}
"""The parts of a score that a key is of, by the names of ``EvaluateConfig``; other keys are of the whole."""


def render(table: Table, results: Mapping[tuple[str, int], dict[str, Any]], small: bool = False) -> dict[str, Any]:
    """results: contents of result.json by (row, seed). small: of a small budget, which the text then says.

    A cell is the mean over seeds in per cent, or of cost as it was measured, ± the standard deviation over seeds where
    there are several, the bootstrap interval over images of the first seed, and the paper's value with the difference
    to it where one is printed. Of a column by class it is that of the mIoU, with the classes' own under 'classes'.
    Where a cell was not made as the others of its column, it has a letter, and a note says in what it differs. Rows
    that are not built have printed values only. The machines that rows were trained on stand below the table. Returns
    rows of cells and the Markdown text.
    """
    rows: list[dict[str, Any]] = []
    units = {column.title: _unit(table, results, column) for column in table.columns}
    for row in table.rows:
        seeds = sorted(seed for name, seed in results if name == row.name)
        cells = {}
        for column in table.columns:
            unit = units[column.title]
            own = {} if unit is None else {seed: results[row.name, seed] for seed in seeds}
            cells[column.title] = _cells(own, column, row.printed.get(column.title), unit or 0)
        minutes = [results[row.name, seed]["minutes"] for seed in seeds]
        machines = {seed: _machine(results[row.name, seed]["environment"]) for seed in seeds}
        rows.append({"row": row.name, "seeds": seeds, "cells": cells, "minutes": minutes, "machines": machines})
    for unbuilt in table.not_built:
        cells = {c.title: _cells({}, c, unbuilt.printed.get(c.title)) for c in table.columns}
        rows.append(
            {"row": unbuilt.name, "seeds": [], "cells": cells, "minutes": [], "machines": {}, "not_built": unbuilt.why}
        )
    notes = {column.title: _compare([row["cells"][column.title] for row in rows]) for column in table.columns}
    summary = {"title": table.title, "about": table.about, "budget": "small" if small else "full", "rows": rows}
    return summary | {"notes": notes, "markdown": _markdown(table, rows, notes, small)}


def _unit(table: Table, results: Mapping[tuple[str, int], dict[str, Any]], column: Column) -> float | None:
    """What a column's values are multiplied by to be shown; None for a share of a row that is not there."""
    if column.key != "relative":
        return 1 if column.key in COSTS else 100
    found = [_find(result, column) for (name, _), result in results.items() if name == column.reference]
    values = [score["value"] for score in found if score]
    return 100 / mean(values) if values and mean(values) else None


def _cells(
    results: Mapping[int, dict[str, Any]], column: Column, printed: float | dict[str, float] | None, unit: float = 0
) -> dict[str, Any] | None:
    """The cell of a row's results by seed; of a column by class with those of the classes."""

    def cell(value: float | None, of: str | None = None) -> dict[str, Any] | None:
        found = {seed: _find(result, column, of) for seed, result in results.items()}
        return _cell({seed: score for seed, score in found.items() if score}, unit, value)

    if column.key != "per_class":
        return cell(cast(float | None, printed))
    values = cast(dict[str, float], printed or {})
    entries = (_entry(result, column) for result in results.values())
    names = [name for entry in entries if entry for name in entry["per_class"]]
    names += [name for name in values if name != MEAN]
    whole, classes = cell(values.get(MEAN)), {}
    for name in dict.fromkeys(names):
        found = cell(values.get(name), name) or {}
        classes[name] = {key: found[key] for key in ("mean", "std", "decimals", "seeds", "printed") if key in found}
    return {**(whole or {"printed": None}), "classes": classes} if whole or classes else None


def _entry(result: Mapping[str, Any], column: Column) -> dict[str, Any] | None:
    """The entry of a result that a column is read from."""
    wanted = (column.entry, column.split, column.set)
    return next((e for e in result["scores"] if (e["name"], e["stamp"]["split"], e["set"]) == wanted), None)


def _find(result: Mapping[str, Any], column: Column, of: str | None = None) -> dict[str, Any] | None:
    """{value, interval, stamp, decimals} of a column in one result, shares in [0,1]; None where it is not there.

    of: class, of a column by class; default: the mean.
    """
    score = _entry(result, column)
    if score is None:
        return None
    stamp, interval, decimals = score["stamp"], None, 1
    if column.key in PEAKS:
        peak = (score["curve"] or {}).get("peak") or {}
        key = PEAKS[column.key]
        value, interval = peak.get(key), peak.get(INTERVALS[key])
        stamp = stamp | {"threshold": peak.get("threshold"), "threshold_from": BY_SPLIT}
    elif column.score in (LOCALIZATION, SPREAD):
        value, interval = score.get(column.key), score.get("intervals", {}).get(column.key)
        stamp = key_stamp(score, column.key) if column.score == LOCALIZATION else stamp
    elif of is not None:
        value = score["per_class"].get(of, {}).get("iou")
    elif column.key in COSTS:
        value, decimals = score[column.key], 2
    elif column.key == "relative":
        value = score["miou"]
    else:
        key = "miou" if column.key == "per_class" else column.key
        value, interval = score.get(key), score.get(INTERVALS.get(key, ""))
    if value is None:
        return None
    return {"value": value, "interval": interval, "stamp": _of_key(stamp, column), "decimals": decimals}


def _of_key(stamp: Stamp, column: Column) -> dict[str, Any]:
    """The stamp without the settings of ``evaluate`` that decide other parts of the score than the column shows."""
    parts = PARTS.get(column.key, set()) | ({"curve"} if column.score == AT_VAL else set())
    other = {f"evaluate.{n}" for n, role in EvaluateConfig.roles().items() if not role.decides(frozenset(parts))}
    return {**stamp, "settings": {k: v for k, v in _shared(stamp["settings"]).items() if k not in other}}


def _shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without a background score that each training found for itself."""
    own = {"label.threshold"} if settings.get("label.threshold_from") == BY_TRAINING else set()
    return {key: value for key, value in settings.items() if key not in own}


def _cell(found: Mapping[int, dict[str, Any]], unit: float, printed: float | None) -> dict[str, Any] | None:
    if not found:
        return None if printed is None else {"printed": printed}
    values = {seed: unit * score["value"] for seed, score in found.items()}
    first = found[min(found)]
    interval = first["interval"]
    ours = mean(values.values())
    among = [_differing(first["stamp"], score["stamp"]) for score in found.values()]
    return {
        "mean": ours,
        "std": stdev(values.values()) if len(values) > 1 else None,
        "seeds": values,
        "interval": [unit * interval["low"], unit * interval["high"]] if interval else None,
        "decimals": first["decimals"],
        "printed": printed,
        "difference": None if printed is None else ours - printed,
        "stamp": first["stamp"],
        "thresholds": {seed: score["stamp"]["threshold"] for seed, score in found.items()},
        "seeds_differ": list(dict.fromkeys(line for lines in among for line in lines)),
    }


def _differing(one: Stamp, other: Stamp) -> list[str]:
    """'key: one's / the other's' for what two results of one column should share and do not.

    Rows differ in what is trained. They share how it is scored, where weights come from and what is learned from; rows
    of one method share its settings for use. A threshold that was searched is each run's own, and so are photos that a
    seed held out.
    """
    but = {"run", "version"}
    if one["threshold_from"] == other["threshold_from"] != FIXED:
        but.add("threshold")
    if one["run"]["seed"] != other["run"]["seed"]:
        but |= {"ids", "images"} | ({"truth"} if _folders(one) == _folders(other) else set())
    found = difference(one, other, but) | difference(_origin(one), _origin(other))
    alike = one["run"]["method"] == other["run"]["method"]
    return [f"{key}: {a} / {b}" for key, (a, b) in found.items() if alike or not key.startswith(OWN)]


def _origin(stamp: Stamp) -> dict[str, Any]:
    """What a run began with and learned from. The digest of a trained encoder that it began with is each run's own."""
    run = stamp["run"]
    weights = re.sub(r"(encoder of \w+) [0-9a-f]{12}", r"\1", run["weights"])
    masks = dict(run["masks"] or {})
    if "settings" in masks:
        masks["settings"] = _shared(masks["settings"])
    return {"weights": weights, "supervision": run["supervision"], "masks": masks}


def _folders(stamp: Stamp) -> set[str]:
    """Folders of the truth without the number of masks in each, which is another one for other photos."""
    return set(re.sub(r" \(\d+\)", "", stamp["truth"]).partition(":")[2].split(", "))


def _compare(cells: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Letters for cells of a column, entered as their 'mark'.

    Each says in what a cell differs from the column's first one, and in the method's settings from the first one of
    its method.
    """
    there = [cell for cell in cells if cell and "stamp" in cell]
    notes: dict[tuple[str, ...], str] = {}
    for cell in there:
        stamp = cell["stamp"]
        lines = tuple(_differing(stamp, there[0]["stamp"]))
        peer = next(c["stamp"] for c in there if c["stamp"]["run"]["method"] == stamp["run"]["method"])
        if peer is not there[0]["stamp"]:
            lines += tuple(line for line in _differing(stamp, peer) if line.startswith(OWN))
        lines += tuple(f"among seeds, {line}" for line in cell["seeds_differ"])
        cell["mark"] = notes.setdefault(lines, letter(len(notes))) if lines else ""
    return [{"mark": mark, "differs": list(lines)} for lines, mark in notes.items()]


def letter(number: int) -> str:
    """a to z, then aa, ab and so on."""
    return (letter(number // 26 - 1) if number >= 26 else "") + "abcdefghijklmnopqrstuvwxyz"[number % 26]


def _markdown(
    table: Table, rows: Sequence[Mapping[str, Any]], notes: Mapping[str, list[dict[str, Any]]], small: bool
) -> str:
    titles = [column.title for column in table.columns]
    lines = [f"## {table.title}{' (small budget)' if small else ''}", "", table.about.strip(), ""]
    lines.append(f"| row | {' | '.join(titles)} | seeds | min a seed |")
    lines.append("|" + "---|" * (len(titles) + 3))
    for row in rows:
        cells = [_text(row["cells"][title]) for title in titles]
        seeds = ", ".join(map(str, row["seeds"])) or ("not built" if "not_built" in row else "not run")
        minutes = f"{mean(row['minutes']):.1f}" if row["minutes"] else ""
        lines.append(f"| {row['row']} | {' | '.join(cells)} | {seeds} | {minutes} |")
    shares = "in per cent" if all(column.key not in COSTS for column in table.columns) else "(shares in per cent)"
    lines += [
        "",
        f"Mean over seeds {shares} ± standard deviation over seeds; in brackets the 95 % bootstrap interval",
    ]
    lines += ["over images of the first seed; where a threshold is the best on these images, at that threshold.", ""]
    unbuilt = [f"- {row['row']} is not built: {row['not_built']}" for row in rows if "not_built" in row]
    lines += [*unbuilt, ""] if unbuilt else []
    lines += _by_class(table, rows)
    lines += _against_paper(table, rows, small)
    lines += _stamps(table, rows, notes)
    lines += _trained_on(rows)
    return "\n".join(lines) + "\n"


def _by_class(table: Table, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of each column by class: a line a class, the rows beside each other."""
    lines: list[str] = []
    for title in (column.title for column in table.columns if column.key == "per_class"):
        there = [row for row in rows if row["cells"][title]]
        if there:
            lines += [f"### {title}, by class", "", f"| class | {' | '.join(row['row'] for row in there)} |"]
            lines.append("|" + "---|" * (len(there) + 1))
        for name in dict.fromkeys(name for row in there for name in row["cells"][title]["classes"]):
            cells = [_text(row["cells"][title]["classes"].get(name)) for row in there]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += [""] if there else []
    return lines


def _against_paper(table: Table, rows: Sequence[Mapping[str, Any]], small: bool) -> list[str]:
    """Every printed value beside ours: the difference, and how far each lies above the column's first value."""
    lines: list[str] = []
    for column in table.columns:
        cells = [(row["row"], row["cells"][column.title]) for row in rows]
        printed = [(name, c) for name, c in cells if c and c.get("printed") is not None and "mean" in c]
        for name, cell in printed:
            base = printed[0][1]
            decimals = max(len(str(c["printed"]).partition(".")[2]) for c in (cell, base))
            digits = cell["decimals"]
            gain = [f"{cell['printed'] - base['printed']:+.{decimals}f}", f"{cell['mean'] - base['mean']:+.{digits}f}"]
            gain = ["", ""] if cell is base else gain
            interval = "–" if cell["interval"] is None else "[{:.1f}, {:.1f}]".format(*cell["interval"])
            lines.append(
                f"| {name} | {column.title} | {cell['printed']} | {_number(cell)} | {cell['difference']:+.{digits}f} "
                f"| {interval} | {gain[0]} | {gain[1]} |"
            )
    if not lines:
        return []
    head = [
        "| row | column | printed | ours | difference | 95 % | over the first: printed | ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    if small:
        head = ["Printed values are of the paper's data and schedule: compare what rows gain, not the rows.", "", *head]
    return [*head, *lines, ""]


def _stamps(table: Table, rows: Sequence[Mapping[str, Any]], notes: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """How each column was made, by its first row, and in what other rows differ."""
    lines = []
    for column in table.columns:
        cells = (row["cells"][column.title] for row in rows)
        first = next((cell for cell in cells if cell and "stamp" in cell), None)
        share = f"share of row '{column.reference}': " if column.reference else ""
        lines += [] if first is None else [f"- {column.title}: {share}{describe(first['stamp'])}"]
    differing: dict[str, list[str]] = {}
    for title, marks in notes.items():
        for note in marks:
            differing.setdefault("; ".join(note["differs"]), []).append(f"{title} ({note['mark']})")
    for differs, places in differing.items():
        lines.append(f"- Not made as the column's first row (here / there): {', '.join(places)}: {differs}")
    return lines


def _machine(environment: Mapping[str, Any]) -> str:
    """The machine that a run was trained on, all of it: rounding and minutes depend on it."""
    gpus = [f"{count} × {name}" for name, count in Counter(environment["gpus"]).items()]
    parts = [f"{environment['cores']} cores ({environment['processor']})", *gpus]
    return f"{', '.join(parts)}, torch {environment['versions']['torch']}"


def _trained_on(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a machine: its rows, with their seeds where others of the row were trained elsewhere."""
    places: dict[str, list[str]] = {}
    for row in rows:
        for machine in dict.fromkeys(row["machines"].values()):
            seeds = [str(seed) for seed, other in row["machines"].items() if other == machine]
            whole = len(seeds) == len(row["machines"])
            places.setdefault(machine, []).append(row["row"] if whole else f"{row['row']} (seed {', '.join(seeds)})")
    return [f"- Trained on {machine}: {', '.join(names)}" for machine, names in places.items()]


def _text(cell: Mapping[str, Any] | None) -> str:
    cell, parts = cell or {}, []
    if "mean" in cell:
        parts.append(_number(cell) + (f" ({cell['mark']})" if cell.get("mark") else ""))
        if cell.get("interval"):
            parts.append(f"[{cell['interval'][0]:.1f}, {cell['interval'][1]:.1f}]")
    if cell.get("printed") is not None:
        parts.append(f"(printed {cell['printed']})")
    return " ".join(parts) or "–"


def _number(cell: Mapping[str, Any]) -> str:
    """Mean and deviation over seeds."""
    numbers = [cell["mean"], *([] if cell["std"] is None else [cell["std"]])]
    return " ± ".join(f"{number:.{cell['decimals']}f}" for number in numbers)
