"""``tagmask compare`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tagmask.errors import ConfigError, DataError
from tests.cli.calls import call, raise_error


def test_two_runs_in_one_picture(run: Path, copy: Path, tmp_path: Path) -> None:
    said = call("compare", run, copy, "-o", tmp_path / "both.png", "label.cam_scales=[1.0]").output
    assert "both.png" in said.replace("\n", "") and "'test'" in said
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.width > 4 * 320 and picture.height > 256
    words = ["--what", "cam", "--what", "refined", "--vary", "label.cam_scales=[0.5],[1]", "--photos", "scene_0002"]
    found = json.loads(call("compare", run, copy, *words, "-o", tmp_path / "both.html", "--json").stdout)
    (photo,) = found["photos"]
    assert photo["id"] == "scene_0002" and len(photo["pictures"]) == 8
    assert (tmp_path / "both.html").read_text(encoding="utf-8").count("<figure>") == 10


def test_what_is_wrong_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        raise_error("compare", run, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="RUN"):
        raise_error("compare", "label.refine=none")
    with pytest.raises(ConfigError, match="--what"):
        raise_error("compare", run, "--what", "nothing", "-o", tmp_path / "a.png")
