"""Settings of a method that say how it is used once it is trained: a run is opened with them, scores are stamped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tagmask.config import load_config, merge
from tagmask.errors import ConfigError
from tagmask.training import RunFolder
from tagmask.workflow import evaluate, open_run, train
from tests.workflow.conftest import BASE


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CoSA after two steps: two networks and two CAMs, which differ."""
    out = tmp_path_factory.mktemp("use") / "cosa"
    data = {"root": str(scenes), "train": "train.txt", "val": "val.txt", "test": "test.txt", "masks": "masks"}
    method = {"name": "cosa", "warmup": 0, "momentum": 0.9, "head_options": {"hidden": 16}}
    base = {k: v for k, v in BASE.items() if k != "method"}
    train(load_config(merge(base, {"data": data, "method": method})), out)
    return out


def test_network_and_cams_are_chosen_at_use(run: Path) -> None:
    assert RunFolder(run).config().method.inference == "assignment"  # type: ignore[attr-defined]
    image = torch.rand(1, 3, 64, 64)
    _, _, plain = open_run(run)
    _, config, online = open_run(run, ["method.inference=online"])
    _, _, ensemble = open_run(run, ["method.ensemble=true"])
    assert config.method.inference == "online"  # type: ignore[attr-defined]
    with torch.no_grad():
        for method, network in ((plain, plain.assigner), (online, online.online)):
            expected = network.decoder(network.encoder(image))
            found = method.segment(image)
            torch.testing.assert_close(found, torch.nn.functional.interpolate(expected, size=(64, 64), mode="bilinear"))
        assert not torch.equal(online.segment(image), plain.segment(image))
        assert not torch.equal(ensemble.cams(image), plain.cams(image))


def test_scores_say_which(run: Path) -> None:
    uses = [
        evaluate(run, "val", ["segmenter"], settings)[0]["protocol"]["use"]
        for settings in ([], ["method.inference=online"], ["method.ensemble=true"])
    ]
    assert uses == ["assignment network", "online network", "assignment network, mean of both CAMs"]


@pytest.mark.parametrize("setting", ["method.momentum=0.5", "method.pooling=avg", "method.name=baseline"])
def test_what_training_has_decided_stays(run: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match="was decided when"):
        open_run(run, [setting])
