"""Run folders and models of another format are refused by file and number."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tagmask
from tagmask.errors import DataError
from tagmask.files import read_json, write_json
from tagmask.training.folder import FORMAT
from tagmask.workflow import label, predict


@pytest.mark.parametrize("name", ["data.json", "model/classes.json"])
@pytest.mark.parametrize("number", [FORMAT - 1, FORMAT + 1, None])
def test_another_format_is_refused(
    name: str, number: int | None, classifier: Path, scenes: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(classifier, tmp_path / "run")
    values = read_json(run / name)
    write_json(run / name, {key: value for key, value in values.items() if key != "format"} | {"format": number})
    with pytest.raises(DataError, match=rf"{name}.*format {number}"):
        label(run)
    if name != "data.json":
        with pytest.raises(DataError, match=rf"{name}.*format {number}"):
            tagmask.load(run)
        with pytest.raises(DataError, match=rf"{name}.*format {number}"):
            predict(run, [scenes / "images"], tmp_path / "out")
