"""The checks of ``tagmask doctor`` where something is missing, full, damaged or cut off."""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.error
from collections import namedtuple
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tagmask.encoders.weights import LITE0
from tagmask.errors import ConfigError, TrainingError
from tagmask.workflow import doctor as module
from tagmask.workflow import self_test
from tagmask.workflow.doctor import EXTRAS, Check
from tests.cli.calls import call

ROOT = Path(__file__).resolve().parents[2]


def named(checks: Iterator[Check]) -> dict[str, Check]:
    found = {check.name: check for check in checks}
    assert all(check.way for check in found.values() if check.state != "ok"), "each problem has a way out"
    return found


@pytest.mark.parametrize(("free", "state"), [(40e9, "ok"), (2e9, "warn"), (1e6, "fail")])
def test_disk(free: float, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(100e9, 100e9 - free, free))
    found = named(module.disks(tmp_path / "not" / "there"))
    assert {check.state for check in found.values()} == {state} and len(found) == 3
    assert str(tmp_path) in found["disk: this folder"].found
    assert state == "ok" or "--out" in found["disk: this folder"].way and "TMPDIR" in found["disk: temporary"].way


def test_packages_that_are_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(name: str) -> str:
        if name in ("rich", "numba"):
            raise PackageNotFoundError(name)
        return "0.1" if name == "timm" else version(name)

    before = named(module.libraries())
    assert {check.state for check in before.values()} == {"ok"} and before["torch"].found == version("torch")
    monkeypatch.setattr(module, "version", installed)
    found = named(module.libraries())
    assert {name for name, check in found.items() if check.state == "fail"} == {"rich", "timm"}
    assert "pip install 'timm>=" in found["timm"].way
    extra = named(module.extras())["extra: fast"]
    assert extra.state == "ok" and EXTRAS["fast"] in extra.found and "tagmask[fast]' (numba)" in extra.way


def test_every_extra_is_explained() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
    assert set(re.findall(r"^(\w+) = \[", section, re.M)) == EXTRAS.keys() | {"dev", "docs"}


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert named(module.threads())["threads"].state == "ok"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert named(module.threads())["threads"].state == "ok"
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    check = named(module.threads())["threads"]
    assert check.state == "warn" and "2.5 of them allowed" in check.found and "OMP_NUM_THREADS=2" in check.way
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert named(module.threads())["threads"].state == "ok", "a thread needs no whole core"


def test_little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "CGROUPS", tmp_path)
    (tmp_path / "memory.max").write_text("1000000000\n")
    check = named(module.memory())["memory"]
    if "not known" not in check.found:
        assert check.state == "warn" and "of 1.0 GB" in check.found


def test_weights_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAGMASK_WEIGHTS", str(tmp_path / "nowhere"))
    assert named(module._weights_folder())["weights: files"].state == "warn"
    monkeypatch.setenv("TAGMASK_WEIGHTS", str(tmp_path))
    assert named(module._weights_folder())["weights: files"].state == "warn", "an empty folder"
    state = timm.create_model("test_resnet").state_dict()
    save_file(state, tmp_path / "test_resnet.safetensors")
    save_file(state, tmp_path / "test_vit.safetensors")
    save_file(state, tmp_path / "mine.safetensors")
    (tmp_path / "resnet18.pth").write_bytes(b"<html>not found</html>")
    (tmp_path / "notes.txt").write_text("no weights")
    found = named(module._weights_folder())
    good = {name for name, check in found.items() if check.state == "ok"}
    assert good == {"weights: mine.safetensors", "weights: test_resnet.safetensors"}
    assert found.keys() - good == {"weights: resnet18.pth", "weights: test_vit.safetensors"}
    assert found["weights: test_resnet.safetensors"].found == "fits test_resnet"
    assert "encoder.weights" in found["weights: mine.safetensors"].found
    monkeypatch.delenv("TAGMASK_WEIGHTS")
    assert named(module._weights_folder())["weights: files"].state == "ok"


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (None, "ok"),
        (urllib.error.URLError("no route to host"), "warn"),
        (TimeoutError("timed out"), "warn"),
        (urllib.error.HTTPError("hub", 403, "no", Message(), None), "warn"),
        (urllib.error.HTTPError("hub", 404, "no", Message(), None), "ok"),
    ],
)
def test_hub(answer: Exception | None, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(request: urllib.request.Request, timeout: float) -> Path:
        assert request.get_method() == "HEAD" and timeout <= 3
        if answer is not None:
            raise answer
        return open(os.devnull)  # type: ignore[return-value]

    monkeypatch.setattr(module.hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    check = module._hub()
    assert check.state == state and (state == "ok" or "TAGMASK_WEIGHTS" in check.way and LITE0 in check.way)
    monkeypatch.setattr(module.hub_constants, "HF_HUB_OFFLINE", True)
    assert module._hub().state == "warn"


def test_saliency_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ConfigError("guides.saliency needs onnxruntime: pip install it.")

    monkeypatch.setattr(module, "find_saliency", missing)
    check = module._saliency()
    assert check.state == "ok" and "onnxruntime" in check.way


def test_a_broken_build_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_finite() -> str:
        raise TrainingError("The loss is nan.")

    def breaks(device: torch.device) -> str:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(self_test, "check_training", not_finite)
    monkeypatch.setattr(self_test, "check_sums", breaks)
    found = named(module.computes())
    assert [check.state for check in found.values()] == ["fail", "fail", "ok"]
    assert "primitive" in found["self-test: sums"].found and "nan" in found["self-test: training"].found


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_verb_exits_with_1_where_a_check_fails(state: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [Check("python", "ok", "3.14"), Check("disk", state, "1 kB free [x]", "Make room.")]  # type: ignore[arg-type]
    monkeypatch.setattr(module, "doctor", lambda: checks)
    table, listed = call("doctor", ok=False), call("doctor", "--json", ok=False)
    assert table.exit_code == listed.exit_code == code
    assert "1 kB free [x]" in table.output and "Make room." in table.output
    assert json.loads(listed.stdout)[1] == {
        "name": "disk",
        "state": state,
        "found": "1 kB free [x]",
        "way": "Make room.",
    }


def test_all_parts_are_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(place: Path) -> None:
        raise PermissionError("not for you")

    monkeypatch.setattr(module.hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(shutil, "disk_usage", refuse)
    monkeypatch.delenv("TAGMASK_WEIGHTS", raising=False)
    found = named(iter(module.doctor(tmp_path)))
    wanted = ("python", "torch", "processor", "precision", "threads", "memory", "weights: package", "weights: files",
              "weights: hub", "guides.saliency", "dense CRF", "self-test: training")  # fmt: skip
    assert set(wanted) <= found.keys()
    assert found["disks"].state == "fail" and "not for you" in found["disks"].found
    assert found["self-test: training"].state == found["self-test: dense CRF"].state == "ok"
