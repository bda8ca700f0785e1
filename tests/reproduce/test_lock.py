"""Rows that several processes share: nobody works on another's row, and nothing is left over when one is killed."""

from __future__ import annotations

import errno
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

import filelock
import pytest

from tagmask.data import write_demo
from tagmask.errors import ConfigError
from tagmask.reproduce import lock as locks
from tagmask.reproduce import runner
from tagmask.reproduce.lock import SILENCE, held, holder
from tests.reproduce.tiny_table import TABLE


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for between machines, shorter."""
    monkeypatch.setattr(locks, "SETTLE", 0.05)
    monkeypatch.setattr(runner, "PAUSE", 0.1)


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


def test_of_two_machines_that_come_at_once_one_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither sees the other's system lock, and both find the note empty: the last one that wrote it has the row."""
    path = tmp_path / "row.seed0"
    theirs = {"host": "elsewhere", "pid": 3, "token": "x"}

    def other_writes(seconds: float) -> None:
        path.write_text(json.dumps(theirs))

    with monkeypatch.context() as patch:
        patch.setattr(locks, "time", SimpleNamespace(sleep=other_writes, time=time.time))
        with held(path) as mine:
            assert not mine
    assert json.loads(path.read_text()) == theirs, "theirs is left alone"
    path.write_text("")
    with held(path) as mine:
        assert mine, "the system's lock was given back"
        path.write_text(json.dumps(theirs))  # as after minutes of sleep, when another took over
    assert json.loads(path.read_text()) == theirs


def test_a_failing_sign_of_life_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def utime(path: Path) -> None:
        calls.append(path)
        raise OSError(errno.EIO, "away for a moment")

    monkeypatch.setattr(locks, "BEAT", 0.01)
    monkeypatch.setattr(locks, "os", SimpleNamespace(utime=utime, getpid=os.getpid))
    with held(tmp_path / "row") as mine:
        assert mine
        until = time.monotonic() + 20
        while len(calls) < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert len(calls) >= 3


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.ENOSPC, errno.EACCES])
def test_only_missing_locks_are_called_missing(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    missing = number in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
    error, message = (ConfigError, "has no locks") if missing else (OSError, os.strerror(number))
    with pytest.raises(error, match=message), held(tmp_path / "row"):
        pass


def test_a_lock_that_outlives_its_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """filelock takes a file's existence for a lock, and warns only, where the system has none."""
    monkeypatch.setattr(locks, "FileLock", filelock.SoftFileLock)
    with pytest.raises(ConfigError, match="has no locks"), held(tmp_path / "row"):
        pass
    assert not (tmp_path / "row.lock").exists()


class FakeJob:
    """A row of which only the order matters: done when its file is there, ready when its source's is."""

    def __init__(self, home: Path, name: str, source: FakeJob | None = None) -> None:
        self.row, self.seed, self.source = SimpleNamespace(name=name), 0, source
        self.lock, self.folder = home / f"{name}.lock", home / name
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


@pytest.mark.parametrize("alive", [True, False])
def test_the_silence_of_another_machine_is_waited_out(alive: bool, two: list[Any], tmp_path: Path) -> None:
    """A note that was renewed a moment ago is of a process that may have been killed since."""
    job = two[0]
    job.lock.write_text(json.dumps({"host": "elsewhere", "pid": 3, "token": "x"}))
    nearly = time.time() - SILENCE + 1.5
    os.utime(job.lock, (nearly, nearly))
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.2):
            os.utime(job.lock)

    process = threading.Thread(target=renew)
    if alive:
        process.start()
    run_free([job], tmp_path)
    stop.set()
    assert job.runs == (0 if alive else 1), "left to whoever is alive, else taken"
    if alive:
        process.join()


def test_waiting_takes_turns(tmp_path: Path) -> None:
    path = tmp_path / "table"
    code = HOLD.replace("sleep(60)", "sleep(1)")
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline().strip() == "True"
    with held(path, wait=True) as mine:
        assert mine
    assert other.wait(timeout=30) == 0


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
