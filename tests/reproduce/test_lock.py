"""Rows that several processes share: nobody works on another's row, and nothing is left over when one is killed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tagmask import lock as locks
from tagmask.data import write_demo
from tagmask.errors import ConfigError
from tagmask.lock import held
from tagmask.reproduce import runner
from tests.reproduce.tiny_table import TABLE


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PAUSE", 0.1)


HOLD = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])  # not through the package: seconds of imports
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
with lock.held(Path(sys.argv[2])) as mine:
    print(mine, flush=True)
    time.sleep(float(sys.argv[3]))
"""


def hold(path: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that has the lock now, for as long as it lives, ``seconds`` at most."""
    words = [sys.executable, "-c", HOLD, locks.__file__, str(path), str(seconds)]
    other = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline().strip() == "True"
    return other


def test_one_at_a_time_and_free_again_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "row.seed0"
    other = hold(path, 60)
    with held(path) as mine:
        assert not mine
    other.send_signal(signal.SIGKILL)
    other.wait()
    with held(path) as mine:
        assert mine
        with held(path) as again:
            assert not again
    with held(path) as mine:
        assert mine


def test_waiting_takes_turns(tmp_path: Path) -> None:
    other = hold(tmp_path / "table", 0.5)
    with held(tmp_path / "table", wait=True) as mine:
        assert mine
    assert other.wait(timeout=30) == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.ENOSPC])
def test_only_missing_locks_are_called_missing(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """filelock's own way out of missing locks would be a file that stays when its process is killed."""

    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    missing = number in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
    with pytest.raises(ConfigError if missing else OSError, match="row" if missing else None), held(tmp_path / "row"):
        pass


class FakeJob:
    """A row of which only the order matters: done when its file is there, ready when its source's is."""

    def __init__(self, home: Path, name: str, source: FakeJob | None = None) -> None:
        self.row, self.seed, self.source = SimpleNamespace(name=name), 0, source
        self.lock, self.folder = home / ".locks" / name, home / name
        self.runs = 0

    def done(self) -> bool:
        return self.folder.exists()

    def ready(self) -> bool:
        return self.source is None or self.source.done()

    def run(self, console: object) -> None:
        self.runs += 1
        self.folder.touch()

    def missing(self) -> list[Any]:
        return []


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(runner, "write_table", lambda *args: None)
    first = FakeJob(tmp_path, "first")
    return [first, FakeJob(tmp_path, "second", first)]


def run_free(jobs: list[Any], home: Path) -> None:
    runner.run_free(None, jobs, home, False, None)  # type: ignore[arg-type]


def test_a_row_that_builds_on_anothers_is_waited_for(two: list[Any], tmp_path: Path) -> None:
    first, second = two
    with ExitStack() as other:
        assert other.enter_context(held(first.lock))

        def finish() -> None:
            time.sleep(0.5)
            first.folder.touch()
            other.close()

        process = threading.Thread(target=finish)
        process.start()
        run_free(two, tmp_path)
        process.join()
    assert (first.runs, second.runs) == (0, 1)


def test_a_row_whose_process_died_while_it_was_waited_for_is_taken(two: list[Any], tmp_path: Path) -> None:
    first, second = two
    with ExitStack() as other:
        assert other.enter_context(held(first.lock))
        process = threading.Timer(0.5, other.close)
        process.start()
        run_free(two, tmp_path)
        process.join()
    assert (first.runs, second.runs) == (1, 1)


def test_a_row_that_another_has_and_nothing_builds_on_is_left_to_it(two: list[Any], tmp_path: Path) -> None:
    first, second = two
    second.source = None
    with held(first.lock):
        run_free(two, tmp_path)
    assert (first.runs, second.runs) == (0, 1)


@pytest.mark.slow
def test_two_processes_share_a_table(tmp_path: Path) -> None:
    """While this process holds a row that another builds on, two others do all that is free, and wait."""
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
    with held(out / "tiny" / ".locks" / "first.seed0") as mine:
        assert mine
        started = [
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
            for _ in range(2)
        ]
        until = time.monotonic() + 300
        while not (out / "tiny" / "second" / "seed1" / "result.json").is_file() and time.monotonic() < until:
            assert [process.poll() for process in started] == [None] * 2, "they wait for second.seed0's masks"
            time.sleep(0.2)
    texts = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * 2, texts
    jobs = [f"{row}, seed {seed}" for row in ("first", "second") for seed in (0, 1)]
    taken = [[job for job in jobs if f"] {job}" in text] for text in texts]
    assert sorted(job for mine in taken for job in mine) == sorted(jobs), "each once"
    table = json.loads((out / "tiny" / "table.json").read_text())
    assert [row["seeds"] for row in table["rows"]] == [[0, 1], [0, 1]]
    for row in ("first", "second"):
        for seed in (0, 1):
            log = (out / "tiny" / row / f"seed{seed}" / "log.jsonl").read_text().splitlines()
            steps = [json.loads(line)["step"] for line in log if '"losses"' in line]
            assert steps == sorted(set(steps)), "trained once"
    assert not [p for p in out.rglob("*") if p.name.endswith(".part")]
