"""The built wheel works when installed elsewhere and carries configurations, tables and the report's template."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

CHECK = """
import tagmask, pathlib
from tagmask.config import load_config, named_configs
from tagmask.reproduce import packaged_tables
assert "site" in str(pathlib.Path(tagmask.__file__)), tagmask.__file__
assert load_config("msrc14").views.crop == 224 and "demo" in named_configs()
assert "msrc14/baseline" in packaged_tables()
print(tagmask.list_methods())
"""


@pytest.mark.slow
def test_wheel_works_elsewhere(tmp_path: Path) -> None:
    source = tmp_path / "source"  # building leaves files behind, which the checkout should not have
    shutil.copytree(ROOT / "tagmask", source / "tagmask", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    wheel = next(tmp_path.glob("tagmask-*.whl"))
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    assert {
        "tagmask/configs/demo.yaml",
        "tagmask/report/report.html",
        "tagmask/view/static/app.js",
        "tagmask/py.typed",
    } <= set(names)
    assert not [n for n in names if n.startswith(("tests/", "docs/", "benchmarks/"))]
    # The dependencies are this environment's, the package is the wheel's: nothing of the checkout is on the path.
    ran = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path, env={"PYTHONPATH": str(site), "PATH": ""}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "baseline" in ran.stdout
