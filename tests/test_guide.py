"""docs/add_a_method.md, followed to the letter with its toy method."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.data import write_demo
from tagmask.registry import METHODS

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "add_a_method.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.S)


def load(name: str, code: str, folder: Path) -> object:
    path = folder / f"{name}.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_guides_method_trains_and_passes_the_contract(tmp_path: Path) -> None:
    method, test = blocks("python")
    load("guide_selftrain", method, tmp_path)
    try:
        contract = load("guide_test_selftrain", test, tmp_path).TestSelfTrain()  # type: ignore[attr-defined]
        contract.test_loss_falls_when_overfitting_four_images()
        contract.test_each_term_reaches_what_it_should_and_only_that()
        contract.test_shapes_and_ranges_on_any_encoder("cnn")
        contract.test_resume_gives_the_numbers_of_an_uninterrupted_run(tmp_path)
        (tmp_path / "selftrain.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
        write_demo(tmp_path / "photos", images=12, size=(64, 64))
        words = ["train", tmp_path / "photos", "-c", tmp_path / "selftrain.yaml", "-o", tmp_path / "run", "--json",
                 "train.steps=2", "train.batch_size=2", "views.crop=64", "encoder.name=resnet18",
                 "encoder.weights=none", "train.workers=0", "method.warmup=1", "train.warmup=1"]  # fmt: skip
        result = CliRunner().invoke(app, [str(w) for w in words])
        assert result.exit_code == 0, (result.output, result.exception)
        assert json.loads(result.stdout)["steps"] == 2
        assert "threshold" in CliRunner().invoke(app, ["methods", "selftrain"]).output
    finally:
        METHODS._parts.pop("selftrain", None)
