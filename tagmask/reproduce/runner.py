"""Runs a table row by row and seed by seed; what is done is not done again, and several processes can share it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tagmask.config import load_config, parse_overrides
from tagmask.data import fingerprint
from tagmask.errors import ConfigError, nearest
from tagmask.files import read_record, write_json, write_text
from tagmask.lock import held
from tagmask.reproduce.checks import check_needs
from tagmask.reproduce.configure import BUDGETS, configure, scoring_settings, small_column
from tagmask.reproduce.cost import show_plan
from tagmask.reproduce.job import Job
from tagmask.reproduce.render import render
from tagmask.reproduce.table import Table, read_table
from tagmask.workflow.opened import open_collection

PAUSE = 5.0
"""Seconds between two looks at what other processes are at."""


def reproduce(
    name: str,
    data: Path | None,
    out: Path,
    overrides: Sequence[str] = (),
    rows: Sequence[str] | None = None,
    seeds: int | None = None,
    plan: bool = False,
    console: Console | None = None,
    encoder: str | None = None,
    budget: str = "full",
) -> dict[str, Any]:
    """Run a table (path or packaged name) on ``data`` into ``out``/<table>; write table.md and table.json there.

    overrides: settings over every row's. rows: names of the rows to run, with those that they build on. seeds: number
    of seeds a row. plan: only say what it would cost. encoder: instead of the table's. budget: 'full' is the paper's
    schedule; 'small' plans schedule and crops for the data and the machine, as ``tagmask run`` does, and writes to
    ``out``/<table>-small.

    A run that was cut off is resumed; one that is finished is read, and only columns that it lacks are scored. Several
    processes, on one machine or on many with a common ``out``, can run the same command at the same time: each takes
    rows that no other is at, waits for those that its own build on, and ends when none is left to take. Raises
    ConfigError when a finished run has another configuration, WeightsError for weights that a row would lack, and
    DataError where a column's score would have nothing to compare with.
    """
    if budget not in BUDGETS:
        raise ConfigError(f"budget is '{budget}'; there are {' and '.join(BUDGETS)}.")
    small = budget == "small"
    table = read_table(name)
    if small:
        table = table.model_copy(update={"columns": [small_column(c) for c in table.columns]})
    home = out / Path(name).with_suffix("").name if Path(name).is_file() else out / name
    home = home.with_name(f"{home.name}-small") if small else home
    found = look_at(data, overrides) if small else None
    jobs = make_jobs(table, name, home, data, overrides, rows, seeds, encoder, found)
    if plan:
        return show_plan(table, jobs, home, console)
    check_needs(jobs)
    run_free(table, jobs, home, small, console)
    with held(home / ".locks" / "table", wait=True):
        summary = write_table(table, home, small)
    others = {job.lock for job in jobs if not job.done()}
    if console is not None:
        console.print(summary["markdown"], markup=False, highlight=False, soft_wrap=True)
        for lock in sorted(others):
            console.print(f"{lock.name}: left to another process", highlight=False)
        console.print(f"table: {home / 'table.md'}", highlight=False)
    return summary


def make_jobs(
    table: Table,
    name: str,
    home: Path,
    data: Path | None,
    overrides: Sequence[str],
    rows: Sequence[str] | None,
    seeds: int | None,
    encoder: str | None = None,
    found: Mapping[str, Any] | None = None,
) -> list[Job]:
    """Every row with every seed, in the table's order. Raises ConfigError for an unknown row, or nothing to run."""
    known = [row.name for row in table.rows]
    for unbuilt in table.not_built:
        if unbuilt.name in (rows or ()):
            raise ConfigError(f"{name}: row '{unbuilt.name}' is not built, only the paper's values: {unbuilt.why}")
    for wanted in rows or ():
        if wanted not in known:
            raise ConfigError(f"{name}: there is no row '{wanted}'.{nearest(wanted, known)}")
    chosen = {row.name for row in table.rows if not rows or row.name in rows}
    chosen |= {needed.name for row in table.rows if row.name in chosen for needed in table.needs(row)}
    jobs = []
    for row in (row for row in table.rows if row.name in chosen):
        for seed in table.seeds_of(row, seeds):
            config = configure(table, row, seed, data, home, overrides, encoder, found)
            jobs.append(Job(row, seed, home, config, table.columns, scoring_settings(row, config, overrides)))
    if not jobs:
        raise ConfigError(f"{name}: there is nothing to run; --seeds is the number of seeds, one at least.")
    return jobs


def run_free(table: Table, jobs: Sequence[Job], home: Path, small: bool, console: Console | None) -> None:
    """Run the jobs that no other process is running, until none is left.

    A job may build on another one. While another process runs that one, this process waits.
    """
    told = False
    while True:
        took = waits = False
        for number, job in enumerate(jobs):
            if job.done():
                continue
            if not job.ready():
                waits = True
                continue
            with held(job.lock) as mine:
                if not mine or job.done():
                    continue
                if console is not None:
                    text = f"[{number + 1}/{len(jobs)}] {job.row.name}, seed {job.seed}"
                    console.print(text, markup=False, highlight=False)
                job.run(console)
            took = True
            if job.missing():
                raise ConfigError(f"{job.folder}: there is no score for {job.missing()}, which a column asks for.")
            with held(home / ".locks" / "table", wait=True):
                write_table(table, home, small)
        if not took and not waits:
            return
        if not took:
            if console is not None and not told:
                console.print("waiting for rows that other processes are at", highlight=False)
                told = True
            time.sleep(PAUSE)


def write_table(table: Table, home: Path, small: bool) -> dict[str, Any]:
    """The table of what is finished, as table.json and table.md."""
    summary = render(table, finished(table, home), small)
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / "table.json", summary)
    write_text(home / "table.md", summary["markdown"])
    return summary


def finished(table: Table, home: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Results of all rows and seeds that lie in ``home``, those of earlier calls included."""
    results = {}
    for row in table.rows:
        for path in sorted((home / row.name).glob("seed*/result.json")):
            results[row.name, int(path.parent.name.removeprefix("seed"))] = read_record(path)
    return results


def look_at(data: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Fingerprint of the data that a small budget is planned for."""
    values = {"data": {"root": str(data)}} if data is not None else {}
    own = {"data": parse_overrides(overrides).get("data") or {}}
    return fingerprint(open_collection(load_config(values, own)))
