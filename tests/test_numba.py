"""The lattice in installations without numba's cache or compiler, each in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tagmask.refine import lattice as module

numba = pytest.mark.skipif(module.kernels() is None, reason="numba is not installed")


@numba
@pytest.mark.slow
def test_imports_where_nothing_can_be_kept_on_disk(tmp_path) -> None:
    """A read-only installation and a user without a home: numba finds no place for its cache."""
    package = tmp_path / "site" / "tagmask"
    shutil.copytree(Path(module.__file__).parent.parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "refine" / "__pycache__").write_text("a file where the folder should be")
    code = "import torch; from tagmask.refine.lattice import PermutohedralLattice as L, kernels; "
    code += "print(kernels() is None, L(torch.rand(1, 9, 2)).filter(torch.rand(1, 1, 9)).isfinite().all().item())"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "True"], done.stderr


@numba
@pytest.mark.slow
def test_without_just_in_time_compilation_torch_does_it() -> None:
    code = "import torch; from tagmask.refine.lattice import PermutohedralLattice as L, kernels; "
    code += "print(kernels(), L(torch.rand(1, 9, 2)).filter(torch.rand(1, 1, 9)).isfinite().all().item())"
    env = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["None", "True"], done.stderr
