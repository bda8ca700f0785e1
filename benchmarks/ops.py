"""Time and memory of tagmask's operators beside what people use instead, in one run.

    python benchmarks/ops.py                          # all cases
    python benchmarks/ops.py --list
    python benchmarks/ops.py --cases step --operators par --json ops.json
    python benchmarks/ops.py --device cuda

The cases lie in ``benchmarks/alternatives``; how to write one is said there. All forms of a case are timed in this one
process, in turn, so that a machine that is busy for a while slows them alike; a form that has spent its budget of
seconds is left out of further turns. Each form's peak memory is measured in a process of its own: on a CPU the growth
of the resident set at its peak over what it was with the inputs made, on a GPU that of the allocated memory. A ratio
is the alternative's figure over ours: above 1, ours is faster or smaller.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import alternatives
import torch
from alternatives import Case
from torch import Tensor

TURN = 0.02
THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def all_cases() -> list[Case]:
    names = sorted(module.name for module in pkgutil.iter_modules(alternatives.__path__))
    cases = [case for name in names for case in importlib.import_module(f"alternatives.{name}").cases()]
    seen: set[tuple[str, str]] = set()
    for case in cases:
        if "ours" not in case.forms or (case.operator, case.name) in seen:
            raise SystemExit(f"Case {case.operator}/{case.name}: it needs a form 'ours' and a name of its own.")
        seen.add((case.operator, case.name))
    return cases


def compare(case: Case, args: argparse.Namespace) -> dict:
    """Everything about one case, as it is saved."""
    device = torch.device(args.device)
    calls = {name: form(device) for name, form in case.forms.items()}
    seconds, results = timed(calls, args)
    del calls
    rows = {}
    for name, values in seconds.items():
        rows[name] = {"seconds": statistics.median(values), "fastest": min(values), "runs": len(values)}
        rows[name]["peak_mb"] = None if args.no_memory else in_own_process(case, name, args)
    for name, row in rows.items():
        if name != "ours":
            ours = rows["ours"]
            row["time_ratio"] = row["seconds"] / ours["seconds"]
            # Below 1 MB the figure is that of the allocator, not of the operator.
            row["memory_ratio"] = None if args.no_memory else row["peak_mb"] / max(ours["peak_mb"], 1.0)
            row["difference"] = difference(results[name], results["ours"]) if case.compare else None
    head = {"operator": case.operator, "case": case.name, "shape": case.shape, "target": case.target}
    return {**head, "missing": list(case.missing), "forms": rows}


def timed(calls: dict[str, Callable[[], Tensor]], args: argparse.Namespace) -> tuple[dict, dict]:
    """Seconds of the forms' runs, taken in turn, and a result of each on the CPU.

    The first run warms up and is not counted, unless it alone spends the budget. In a turn a short form runs again
    until ``TURN`` seconds are over: once alone it would be measured with the caches full of what ran before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results = {}
    for turn in range(args.repeats + 1):
        for name, call in calls.items():
            if sum(seconds[name]) >= args.budget:
                continue
            spent: list[float] = []
            while not spent or (turn > 0 and sum(spent) < TURN):
                start = time.perf_counter()
                result = call()
                synchronize(args.device)
                spent.append(time.perf_counter() - start)
            if turn == 0:
                results[name] = result.detach().cpu()
            if turn > 0 or sum(spent) >= args.budget:
                seconds[name] += spent
    return seconds, results


def difference(theirs: Tensor, ours: Tensor) -> float | None:
    if theirs.numel() == 0:
        return None
    if theirs.shape != ours.shape:
        raise SystemExit(f"Results of shapes {tuple(theirs.shape)} and {tuple(ours.shape)}: set compare=False.")
    return (theirs.double() - ours.double()).abs().max().item()


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def in_own_process(case: Case, name: str, args: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--one", name, "--operators", case.operator, "--cases", case.name]
    command += ["--device", args.device, "--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_growth(case: Case, name: str, device: str) -> float:
    """MB that one run of a form needs at its peak besides its inputs, in this process; its result counts."""
    call = case.forms[name](torch.device(device))
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        del result
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if sys.platform != "linux":  # no way to reset the peak: what making the inputs needed counts as used before
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    # What was freed while the inputs were made would be used again and not be seen as growth.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status_mb("VmRSS")
    call()
    return max(status_mb("VmHWM") - before, 0.0)


def status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


HEADER = ("operator", "case", "form", "median s", "runs", "peak MB", "time x", "memory x", "difference", "target")
WIDTHS = (14, 10, 16, 11, 6, 9, 9, 10, 12, 8)


def line(*cells: str) -> str:
    left = "".join(cell.ljust(width) for cell, width in zip(cells[:3], WIDTHS))
    right = "".join(cell.rjust(width) for cell, width in zip(cells[3:9], WIDTHS[3:]))
    return f"{left}{right}  {cells[9]}".rstrip()


def show(row: dict) -> None:
    print(f"{row['operator']} {row['case']}: {row['shape']}")
    for package in row["missing"]:
        print(f"  {package} is not installed; the form that needs it is left out")
    for name, form in row["forms"].items():
        cells = [row["operator"], row["case"], name, f"{form['seconds']:.5f}", str(form["runs"])]
        cells.append("" if form["peak_mb"] is None else f"{form['peak_mb']:.0f}")
        for key, pattern in (("time_ratio", "{:.2f}"), ("memory_ratio", "{:.2f}"), ("difference", "{:.1e}")):
            value = form.get(key)
            cells.append("" if value is None else pattern.format(value))
        print(line(*cells, row["target"] if name == "ours" else ""), flush=True)


def main() -> None:
    cases = all_cases()
    operators, names = (list(dict.fromkeys(v)) for v in zip(*((c.operator, c.name) for c in cases)))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", nargs="+", default=operators, choices=operators, metavar="NAME")
    parser.add_argument("--cases", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="show the cases and end")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="turns of each form; the median run is shown")
    parser.add_argument("--budget", type=float, default=15.0, help="seconds after which a form is run no more")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the form whose peak memory this process measures
    args = parser.parse_args()
    wanted = dict.fromkeys(THREAD_SETTINGS, str(args.threads))
    if any(os.environ.get(key) != value for key, value in wanted.items()):
        # Libraries read them when they are loaded, and torch's number is not theirs: begin again with them set.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)
    torch.set_num_threads(args.threads)
    chosen = [case for case in cases if case.operator in args.operators and case.name in args.cases]
    if args.one:
        print(json.dumps(peak_growth(chosen[0], args.one, args.device)))
        return
    if args.list:
        for case in chosen:
            print(f"{case.operator:<16}{case.name:<12}{case.shape:<44}{', '.join(case.forms)}")
        return

    environment = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else args.device,
        "threads": args.threads,
    }
    print(", ".join(f"{key} {value}" for key, value in environment.items()))
    print(line(*HEADER))
    rows = []
    for case in chosen:
        rows.append(compare(case, args))
        show(rows[-1])
    if args.json:
        args.json.write_text(json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
