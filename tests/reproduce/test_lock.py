"""Rows that several processes share: nobody works on another's row, and nothing is left over when one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tagmask.data import write_demo
from tagmask.reproduce.lock import SILENCE, held, holder
from tests.reproduce.test_reproduce import TABLE

HOLD = """
import sys, time
from pathlib import Path
from tagmask.reproduce.lock import held
with held(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_one_at_a_time_and_free_again_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "row.seed0"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline().strip() == "True"
    with held(path) as mine:
        assert not mine
    assert holder(path).endswith(f"process {other.pid}")
    other.send_signal(signal.SIGKILL)
    other.wait()
    with held(path) as mine:
        assert mine and holder(path).endswith(f"process {os.getpid()}")
        with held(path) as again:
            assert not again
    assert holder(path) == ""


def test_another_machine_counts_while_it_gives_signs_of_life(tmp_path: Path) -> None:
    """Where the file system's locks do not reach other machines, the file itself tells."""
    path = tmp_path / "row.seed0"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 3}))
    with held(path) as mine:
        assert not mine and holder(path) == "elsewhere, process 3"
    silent = time.time() - SILENCE - 1
    os.utime(path, (silent, silent))
    with held(path) as mine:
        assert mine


def test_waiting_takes_turns(tmp_path: Path) -> None:
    path = tmp_path / "table"
    code = HOLD.replace("sleep(60)", "sleep(1)")
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline().strip() == "True"
    with held(path, wait=True) as mine:
        assert mine
    assert other.wait(timeout=30) == 0


@pytest.mark.parametrize("processes", [2])
def test_two_processes_share_a_table(processes: int, tmp_path: Path) -> None:
    write_demo(tmp_path / "scenes", images=12)
    path, out = tmp_path / "tiny.yaml", tmp_path / "out"
    path.write_text(TABLE.replace("seeds: [1]", "seeds: [0, 1]"), encoding="utf-8")
    words = [
        sys.executable,
        "-m",
        "tagmask",
        "reproduce",
        str(path),
        "--data",
        str(tmp_path / "scenes"),
        "-o",
        str(out),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        for _ in range(processes)
    ]
    texts = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, texts
    jobs = [f"{row}, seed {seed}" for row in ("first", "second") for seed in (0, 1)]
    taken = [[job for job in jobs if f"] {job}" in text] for text in texts]
    assert sorted(job for mine in taken for job in mine) == sorted(jobs), "each once"
    assert all(taken), "both had work"
    table = json.loads((out / "tiny" / "table.json").read_text())
    assert [row["seeds"] for row in table["rows"]] == [[0, 1], [0, 1]]
    for row in ("first", "second"):
        for seed in (0, 1):
            log = (out / "tiny" / row / f"seed{seed}" / "log.jsonl").read_text().splitlines()
            steps = [json.loads(line)["step"] for line in log if '"losses"' in line]
            assert steps == sorted(set(steps)), "trained once"
    assert not [p for p in out.rglob("*") if p.name.endswith(".part")]
