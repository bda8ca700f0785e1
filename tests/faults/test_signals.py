"""Processes that are stopped by signals: what they keep, what they say, and that a resume gives the same run."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tagmask.cli import main
from tagmask.config import RunConfig, dump_yaml
from tagmask.data import write_mask
from tagmask.errors import Stopped
from tagmask.files import read_json, write_text
from tagmask.label import writer
from tagmask.lock import alone
from tagmask.stop import Later, at_once, on_signal
from tagmask.training import loop
from tagmask.workflow import label, train
from tests.faults.campaign import times
from tests.faults.damage import go_on, log_of, scenes, tiny

SLOW = """
import sys, time
from tagmask.training.step import TrainStep
real = TrainStep.run
def slow(self, *args):
    time.sleep(0.15)
    return real(self, *args)
TrainStep.run = slow
from tagmask.cli import main
main()
"""
"""The command line, with steps that take some time."""


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Ctrl-C is heard, here and in processes that tests start: it is not where the tests themselves run behind '&'."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return tiny(scenes(tmp_path_factory.mktemp("data") / "scenes"), train={"steps": 12, "evaluate_every": 4})


@pytest.fixture(scope="module")
def whole(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(config, out)
    return out


def start(config: RunConfig, out: Path, **changes: Any) -> subprocess.Popen[str]:
    """``tagmask train`` in a process group of its own, once it has made a step."""
    settings = out.with_name(f"{out.name}.yaml")
    own = config.model_copy(update={"train": config.train.model_copy(update=changes)})
    write_text(settings, dump_yaml(own))
    words = [sys.executable, "-c", SLOW, "train", "-c", str(settings), "-o", str(out)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 120
    log = out / "log.jsonl"
    while not (log.is_file() and log.stat().st_size) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    return process


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.is_file() else []


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent to look does not."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def check_same(out: Path, whole: Path) -> None:
    go_on(out)
    assert log_of(out) == log_of(whole)
    digests = [read_json(run / "model" / "classes.json")["digest"] for run in (out, whole)]
    assert digests[0] == digests[1]


def campaign(seed: int, count: int, config: RunConfig, whole: Path, folder: Path) -> Iterator[tuple[int, int]]:
    """Stop trainings at random times by random signals, and resume each. Gives signals and exit statuses."""
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        out = folder / f"{seed}_{number}"
        process = start(config, out, workers=draw.choice((0, 1)))
        time.sleep(draw.random() * 2.5)
        kind = draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        os.killpg(process.pid, kind) if draw.random() < 0.5 else process.send_signal(kind)
        text = process.communicate(timeout=120)[1]
        assert "Traceback" not in text, text
        check_same(out, whole)
        yield kind, process.returncode
        shutil.rmtree(out)


@pytest.mark.slow
def test_random_signals_at_random_times(config: RunConfig, whole: Path, tmp_path: Path) -> None:
    for kind, status in campaign(27, times(1), config, whole, tmp_path):
        assert status in (-kind if kind == signal.SIGKILL else 128 + kind, 0)


def test_a_terminals_signal_ends_a_training_after_its_step(config: RunConfig, whole: Path, tmp_path: Path) -> None:
    """Ctrl-C goes to the readers of photos, too; the command that is printed goes on."""
    process = start(config, tmp_path / "a run", workers=1)
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "Traceback" not in text
    last = text.strip().splitlines()[-1]
    found = re.search(r"Step (\d+) of 12 .*(tagmask train .*)", last)
    assert found is not None, text
    assert (tmp_path / "a run" / "checkpoints" / f"step_{int(found[1]):07d}.ckpt").is_file()
    assert shlex.split(found[2]) == ["tagmask", "train", "--resume", "-o", str(tmp_path / "a run")]
    assert not (tmp_path / "a run" / ".lock").exists()
    check_same(tmp_path / "a run", whole)


@pytest.mark.slow
def test_readers_of_photos_end_with_a_training_that_is_killed(config: RunConfig, tmp_path: Path) -> None:
    process = start(config, tmp_path / "run", workers=2, steps=1000)
    readers = children(process.pid)
    assert len(readers) >= 2
    process.kill()
    process.communicate()
    with alone(tmp_path / "run"):  # they do not keep others from going on
        pass
    until = time.monotonic() + 60
    while any(map(alive, readers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [reader for reader in readers if alive(reader)]


@pytest.mark.parametrize("point", ["score", "save"])
def test_a_resume_makes_the_score_that_a_kill_took(
    point: str, config: RunConfig, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the last checkpoint and the score, and between the score and the model."""

    def die(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if point == "save":
            patch.setattr(loop, "save_model", die)
        else:
            real = loop._Log.scores
            patch.setattr(loop._Log, "scores", lambda log, step, found: die() if step == 8 else real(log, step, found))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    check_same(tmp_path / "run", whole)


def test_a_signal_while_scoring_stops_at_once(
    config: RunConfig, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop._Log.scores

    def scores(log: Any, step: int, found: dict[str, float]) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        real(log, step, found)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="Step 4 of 12") as stop:
        patch.setattr(loop._Log, "scores", scores)
        train(config, tmp_path / "run")
    assert stop.value.number == signal.SIGTERM
    assert [record["step"] for record in log_of(tmp_path / "run")] == [1, 2, 3, 4]
    check_same(tmp_path / "run", whole)


def test_a_signal_while_masks_are_written_keeps_those_that_are_there(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))

    def write(path: Path, labels: Any) -> None:
        if any((run / "masks").glob("*.png")):
            os.kill(os.getpid(), signal.SIGTERM)
        write_mask(path, labels)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(writer, "write_mask", write)
        patch.setattr(sys, "argv", ["tagmask", "label", str(run)])
        main()
    assert end.value.code == 143 and "the same command" in capsys.readouterr().err
    done = label(run)
    # The first; that in whose writing the signal came; and at most the one that the thread had waiting.
    assert 2 <= done.skipped <= 3 and done.written > 1


def test_handlers_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    later = Later()
    with on_signal(later):
        os.kill(os.getpid(), signal.SIGINT)
        assert later.number == signal.SIGINT and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        with pytest.raises(Stopped, match="what there is"), later.interruptible("what there is"):
            pass
    with pytest.raises(Stopped), on_signal(at_once):
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
