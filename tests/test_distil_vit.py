"""benchmarks/distil_vit.py: its crops have their part of the maps, it learns, resumes, and its weights can be used."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tagmask.config import EncoderConfig
from tagmask.data import write_demo
from tagmask.encoders import build_encoder

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "distil_vit.py"


@pytest.fixture
def distil(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("distil_vit", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "distil_vit", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SAVE_EVERY", 2)
    return module


def words(data: Path, out: Path, steps: int) -> list[str]:
    teacher = ["--teacher", "resnet18", "--teacher-weights", "none"]
    size = ["--crop", "64", "--sizes", "1", "1.25", "--batch", "4", "--components", "8", "--steps", str(steps)]
    return ["--data", str(data), "--split", "all", "--out", str(out), *teacher, *size]


def test_components_are_those_of_the_largest_variances(distil: ModuleType) -> None:
    features = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 1.0, 3.0]) + 7
    mean, axes = distil.components([features[:200], features[200:]], 2)
    seen = (features - mean) @ axes
    assert seen.mean(0).abs().max() < 1e-5
    covariance = seen.T @ seen / 500
    assert covariance.trace() == pytest.approx(2, rel=1e-4) and abs(covariance[0, 1]) < 1e-4
    assert axes[1].abs().max() < 0.2 * axes.abs().max(), "the axis of the smallest variance is left out"


def test_crops_have_their_part_of_the_maps(distil: ModuleType) -> None:
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing="ij")
    maps = torch.stack([rows, columns])
    photo = maps.repeat_interleave(16, 1).repeat_interleave(16, 2)
    photo = torch.cat([photo, photo[:1]]).byte()
    crops, targets = distil.draw([[(photo, maps)]], 30, 64, torch.Generator().manual_seed(0))
    assert crops.shape == (30, 3, 64, 64) and targets.shape == (30, 2, 4, 4)
    assert torch.allclose(crops[:, :2, ::16, ::16] * 255, targets)
    assert (targets[:, 1, 0, 0] > targets[:, 1, 0, 3]).any() and (targets[:, 1, 0, 0] < targets[:, 1, 0, 3]).any()
    colours = distil.recoloured(crops, torch.Generator().manual_seed(0))
    assert colours.min() >= 0 and colours.max() <= 1 and not torch.equal(colours, crops)


@pytest.mark.slow
def test_learns_resumes_and_can_be_used(
    distil: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, straight, cut = tmp_path / "scenes", tmp_path / "straight.safetensors", tmp_path / "cut.safetensors"
    write_demo(data, 12, size=(96, 128))
    distil.main(words(data, straight, 8))
    shares = [float(line.split("held out: ")[1].split("%")[0]) for line in capsys.readouterr().out.splitlines()[2:6]]
    assert shares[-1] > shares[0], shares
    real = distil.distance
    calls: list[int] = []

    def interrupted(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(distil, "distance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distil.main(words(data, cut, 8))
    with pytest.raises(SystemExit, match="begun with other settings"):
        distil.main(words(data, cut, 9))
    monkeypatch.setattr(distil, "components", None)  # the axes are those of the first call
    distil.main(words(data, cut, 8))
    assert len(calls) == 6 + 4, "from the fourth step on"
    assert not list(tmp_path.glob("*.part"))
    encoders = [build_encoder(EncoderConfig(name="deit_tiny_patch16_224", weights=str(p))) for p in (straight, cut)]
    for one, other in zip(*(encoder.state_dict().values() for encoder in encoders)):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "more,message",
    [
        (["--crop", "72"], "multiple"),
        (["--components", "600"], "no more --components"),
        (["--student", "resnet18"], "not a plain vision transformer"),
        (["--out", "weights.pth"], r"ends in \.safetensors"),
    ],
)
def test_what_would_go_wrong_later_is_refused_at_once(
    distil: ModuleType, more: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_demo(tmp_path / "scenes", 12, size=(96, 128))
    monkeypatch.setattr(distil, "teach", None)
    with pytest.raises(SystemExit, match=message):
        distil.main([*words(tmp_path / "scenes", tmp_path / "out.safetensors", 2), *more])
