"""Several processes that train one model, as docs/how/cluster.md starts them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tagmask.training import RunFolder
from tagmask.training.checkpoint import checkpoints
from tests.cli.calls import SPLITS, TINY

PAGE = Path(__file__).parents[2] / "docs" / "how" / "cluster.md"
pytestmark = pytest.mark.slow


def test_torchrun_as_printed(scenes: Path, tmp_path: Path) -> None:
    lines = PAGE.read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("torchrun ") and " run photos " in line]
    _, *words = shlex.split(line)
    given = {"photos": scenes, "tags.csv": scenes / "tags.csv", "runs/two": tmp_path / "run"}
    words = [str(given.get(word, word)) for word in words]
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, "-m", "baseline", *SPLITS, *TINY],
        capture_output=True,
        text=True,
    )
    shown = ran.stdout + ran.stderr
    assert ran.returncode == 0, shown
    assert "A step has 4 photos, 2 in each of 2 processes; learning rate" in shown
    assert ran.stdout.count("Plan, as settings") == 1, "the first process speaks"
    assert RunFolder(tmp_path / "run").log()[-1]["step"] == 4
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_process_that_dies_ends_the_others_in_a_line_and_fewer_go_on(scenes: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tagmask", "train"]
    settings = [*TINY, "train.steps=2000", "train.checkpoint_every=5", "train.precision=fp32"]
    begun = [*words, scenes, "-m", "baseline", "-o", tmp_path / "run", *SPLITS, *settings, "train.devices=2"]
    first = subprocess.Popen([str(w) for w in begun], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not checkpoints(tmp_path / "run" / "checkpoints"):
        assert first.poll() is None, first.communicate()
        time.sleep(0.2)
    (second,) = map(int, Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split())
    os.kill(second, signal.SIGKILL)
    said = first.communicate(timeout=120)[1]
    assert first.returncode == 1 and "Traceback" not in said, said
    assert said.count("error:") == 1 and "another one of this training is gone" in said and "--resume" in said

    done = int(checkpoints(tmp_path / "run" / "checkpoints")[-1].stem.removeprefix("step_"))
    going_on = [*words, "--resume", "-o", tmp_path / "run", "train.devices=1"]
    resumed = subprocess.Popen([str(w) for w in going_on], stderr=subprocess.PIPE, text=True)
    while int(checkpoints(tmp_path / "run" / "checkpoints")[-1].stem.removeprefix("step_")) <= done:
        assert resumed.poll() is None, resumed.communicate()
        time.sleep(0.2)
    resumed.send_signal(signal.SIGTERM)
    said = resumed.communicate(timeout=120)[1]
    assert f"The steps before {done} ran in 2 processes, these run in 1" in said
    assert resumed.returncode == 128 + signal.SIGTERM
