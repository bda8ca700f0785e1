"""Puts rows of a finished table into docs/results: python docs/results_csv.py runs/tables/msrc14/tscd/table.json ROW…

The lines of these rows in the table's CSV file are replaced, and so are their single seeds.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

from tagmask.evaluate.stamp import describe

FOLDER = Path(__file__).parent / "results"
SINGLE = "segmenter, test"
"""The column whose single seeds are kept."""


def put(path: Path, lines: list[dict[str, str]], key: tuple[str, ...]) -> None:
    """Write lines into a CSV file in the place of those with the same values under ``key``, or at its end."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names, old = list(reader.fieldnames or ()), list(reader)
    gone = {tuple(line[name] for name in key) for line in lines}
    places = [i for i, line in enumerate(old) if tuple(line[name] for name in key) in gone]
    start = places[0] if places else len(old)
    kept = [line for i, line in enumerate(old) if i not in places]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept[:start] + lines + kept[start:])


def main(table: str, *names: str) -> None:
    """Put the rows of these names."""
    name = "_".join(Path(table).parts[-3:-1])
    rows = [row for row in json.loads(Path(table).read_text(encoding="utf-8"))["rows"] if row["row"] in names]
    lines, seeds = [], []
    for row in rows:
        machines = {
            re.sub(r" \((.*)\), torch (\d+\.\d+).*", r" of an \1; torch \2", m) for m in row["machines"].values()
        }
        about = {
            "row": row["row"],
            "minutes": f"{sum(row['minutes']) / len(row['minutes']):.1f}",
            "machine": " and ".join(sorted(machines)),
        }
        for column, cell in row["cells"].items():
            if cell is None or cell.get("mean") is None:
                continue
            several = len(cell["seeds"]) > 1
            low, high = cell["interval"] or (None, None)
            lines.append(
                about
                | {
                    "column": column,
                    "mean": f"{cell['mean']:.1f}",
                    "std": f"{cell['std']:.1f}" if several else "",
                    "low": "" if low is None else f"{low:.1f}",
                    "high": "" if high is None else f"{high:.1f}",
                    "seeds": " ".join(cell["seeds"]),
                    "n_seeds": str(len(cell["seeds"])),
                    "protocol": describe(cell["stamp"]),
                    "differs": "",
                }
            )
            if column == SINGLE and several:
                seeds += [
                    {"table": name, "row": row["row"], "column": column, "seed": seed, "value": f"{value:.1f}",
                     "machine": about["machine"]}
                    for seed, value in cell["seeds"].items()
                ]  # fmt: skip
    put(FOLDER / f"{name}.csv", lines, ("row",))
    put(FOLDER / "msrc14_seeds.csv", seeds, ("table", "row"))


if __name__ == "__main__":
    main(*sys.argv[1:])
