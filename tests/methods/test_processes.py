"""Two processes with half of the batch each make the step of one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.methods.shares import contracts, numbers


@pytest.mark.slow
def test_two_processes_give_the_losses_gradients_and_buffers_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.methods.shares", str(tmp_path / "numbers")],
            env=os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
            },
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [process.wait(timeout=900) for process in started] == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"numbers.{rank}")
        assert found.keys() == contracts().keys()
        for name, kind in contracts().items():
            torch.testing.assert_close(
                found[name], numbers(kind()), rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
